"""What the database says about the things that a request for a session names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from authenticator.principals import Principal
from authenticator.problems import AuthFailed
from authenticator.tables import (
    DomainRow,
    KeyPairPolicyRow,
    KeyPairRow,
    MembershipRow,
    ProjectPolicyRow,
    ProjectRow,
    UserPolicyRow,
    UserRow,
)
from spawner.scheduler.slots import KINDS
from spawner.sessions.callbacks import CallbackRules
from spawner.sessions.image_rows import holders
from spawner.sessions.registration import REMOVED
from spawner.sessions.tables import AgentDeviceRow, AgentRow, ImageRow, ResourceGroupRow
from spawner.sessions.wishes import find_parents


@dataclass(frozen=True, slots=True)
class Facts:
    """What the database says about the things that a request names."""

    groups: Mapping[str, ResourceGroupRow]
    images: Sequence[ImageRow]
    """Rows of the requested image, one for each architecture."""
    slots: frozenset[str]
    policy: KeyPairPolicyRow
    projects: Sequence[ProjectRow]
    user_policy: UserPolicyRow | None = None
    project_policies: Mapping[str, ProjectPolicyRow] = field(default_factory=dict)
    """Policies of ``projects`` by name."""
    parents: tuple[str, ...] = ()
    """Ids of the sessions it depends on."""
    bad_parents: Mapping[str, str] = field(default_factory=dict)
    """A sentence for each dependency that cannot be one."""
    withheld: bool = False
    """Whether the image is switched off or somebody else's."""
    image_agents: tuple[str, ...] = ()
    """The only agents that have it, if it was made of a session."""
    domain_active: bool = True
    """Whether the owner's domain may be used."""
    callbacks: CallbackRules = field(default_factory=CallbackRules)
    """Where callbacks may go; a setting of the manager's."""
    unconnected: frozenset[str] = frozenset()
    """Resource groups none of whose agents can connect containers."""

    @property
    def default_group(self) -> ResourceGroupRow | None:
        """The group for requests that name none."""
        ranked = sorted(self.groups.values(), key=lambda g: (not g.is_default, g.name))
        return ranked[0] if ranked else None

    def most_containers(self, project: ProjectRow | None) -> int:
        """Containers that a session of ``project`` may have, after all policies."""
        shared = None if project is None else self.project_policies.get(project.resource_policy)
        also = [each.max_containers_per_session for each in (self.user_policy, shared) if each]
        most = self.policy.max_containers_per_session
        return min([most, *(each for each in also if each is not None)])


async def read_facts(
    db: AsyncSession,
    owner: Principal,
    image: str,
    parents: Iterable[str] = (),
    callbacks: CallbackRules | None = None,
) -> Facts:
    """One read of all that ``check`` needs. Raises ``AuthFailed`` when the key pair is gone."""
    groups = await db.scalars(select(ResourceGroupRow).where(ResourceGroupRow.is_active))
    names = [image] if ":" in image.rpartition("/")[2] else [image, f"{image}:latest"]
    images = list(await db.scalars(select(ImageRow).where(ImageRow.name.in_(names))))
    slots = await db.scalars(select(AgentDeviceRow.slot).distinct())
    policy = await db.scalar(
        select(KeyPairPolicyRow)
        .join(KeyPairRow, KeyPairRow.policy == KeyPairPolicyRow.name)
        .where(KeyPairRow.access_key == owner.access_key)
    )
    if policy is None:
        raise AuthFailed(f"{owner.username} has no active key pair")
    projects = await db.scalars(
        select(ProjectRow)
        .join(MembershipRow, MembershipRow.project_id == ProjectRow.id)
        .where(MembershipRow.user_id == owner.user_id, ProjectRow.is_active)
        .order_by(ProjectRow.name != "default", ProjectRow.name)
    )
    user_policy = await db.scalar(
        select(UserPolicyRow)
        .join(UserRow, UserRow.resource_policy == UserPolicyRow.name)
        .where(UserRow.id == owner.user_id)
    )
    mine = list(projects)
    named = {project.resource_policy for project in mine}
    of_projects = await db.scalars(select(ProjectPolicyRow).where(ProjectPolicyRow.name.in_(named)))
    usable = [row for row in images if row.is_enabled and row.owner_id in (None, owner.user_id)]
    found = sorted(usable, key=lambda row: (row.name != image, row.architecture))
    own = found[0].name if found and found[0].owner_id is not None else None
    ids, bad = await find_parents(db, owner.user_id, parents)
    return Facts(
        {group.name: group for group in groups},
        [row for row in found if row.name == found[0].name],
        frozenset(slots) | frozenset(KINDS),
        policy,
        mine,
        user_policy,
        {row.name: row for row in of_projects},
        tuple(dict.fromkeys(ids)),
        bad,
        withheld=bool(images) and not found,
        domain_active=await db.scalar(
            select(DomainRow.is_active).where(DomainRow.name == owner.domain)
        )
        is True,
        unconnected=await _unconnected(db),
        callbacks=callbacks or CallbackRules(),
        image_agents=() if own is None else tuple(sorted((await holders(db)).get(own, ()))),
    )


async def _unconnected(db: AsyncSession) -> frozenset[str]:
    """Groups that have agents, but none that can connect containers."""
    groups: dict[str, bool] = {}
    query = select(AgentRow.resource_group, AgentRow.features).where(AgentRow.status != REMOVED)
    for group, features in await db.execute(query):
        groups[group] = groups.get(group, False) or bool((features or {}).get("clusters"))
    return frozenset(group for group, able in groups.items() if not able)
