"""The factors by which ``fair-share`` orders a resource group, with names that people know."""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from authenticator.problems import BadRequest, NotFound
from authenticator.tables import ProjectRow, UserRow
from spawner.scheduler.fairness import Factor, fair_share_factors
from spawner.scheduler.policies import Policies
from spawner.sessions.limits import Payer
from spawner.sessions.snapshot import FAIR_SHARE, read_snapshot, read_sound_groups
from spawner.sessions.tables import SessionRow


@dataclass(frozen=True, slots=True)
class Share:
    """A factor of a domain, a project, or a person in a project."""

    factor: Factor
    name: str
    """A domain's or project's name; ``PROJECT/USER`` of a person."""


async def read_shares(
    db: AsyncSession, now: dt.datetime, policies: Policies, group: str, payer: Payer
) -> list[Share]:
    """All factors of ``group`` now, by scope, the one who comes first before others.

    Raises ``NotFound`` for an unknown group, ``BadRequest`` for one that is ordered otherwise.
    """
    groups, _ = await read_sound_groups(db, policies)
    policy = groups.get(group)
    if policy is None:
        raise NotFound("resource group", f"there is no resource group {group[:80]!r} in use")
    if policy.sequencer != FAIR_SHARE:
        raise BadRequest(f"resource group {group!r} is ordered by {policy.sequencer}")
    # Without anybody who could pay, a snapshot leaves usage out.
    snapshot = (await read_snapshot(db, now, [payer], policies)).snapshot
    projects = await db.execute(select(ProjectRow.id, ProjectRow.name))
    names = {str(key): name for key, name in projects}
    people = await db.execute(select(UserRow.id, UserRow.username))
    names |= {str(key): name for key, name in people}
    return [
        Share(each, "/".join(names.get(part, part) for part in each.scope_id.split("/")))
        for each in fair_share_factors(snapshot, group)
    ]


async def shares_of(
    db: AsyncSession, now: dt.datetime, policies: Policies, session_id: uuid.UUID
) -> list[Share]:
    """The factors of a session's own domain, project and owner; none where others decide the order."""
    row = await db.get(SessionRow, session_id)
    if row is None:
        return []
    groups, _ = await read_sound_groups(db, policies)
    policy = groups.get(row.resource_group)
    if policy is None or policy.sequencer != FAIR_SHARE:
        return []
    project, owner = str(row.project_id), str(row.owner_id)
    payer = Payer(row.access_key, project, row.domain, owner)
    mine = {("domain", row.domain), ("project", project), ("user", f"{project}/{owner}")}
    found = await read_shares(db, now, policies, row.resource_group, payer)
    return [each for each in found if (each.factor.scope, each.factor.scope_id) in mine]
