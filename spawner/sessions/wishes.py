"""What a session asks of the scheduler besides resources, as kept in ``sessions.scheduling``.

Only what differs from the defaults is kept, so that a row says what its owner said.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from spawner.scheduler.model import Dependency, DeviceRules, SessionGroup
from spawner.sessions.states import FINAL, Status
from spawner.sessions.tables import SessionRow

FAILED_PARENTS = ("wait", "cancel", "ignore")
DESIGNATIONS = ("strict", "preferred")
GROUP_RULES = ("spread", "pack")
ParentState = Literal["waiting", "succeeded", "failed"]
FRAGMENTATION = "allow_fractional_resource_fragmentation"


@dataclass(frozen=True, slots=True)
class Wishes:
    """Checked wishes of one session."""

    dependencies: tuple[str, ...] = ()
    """Ids of parents."""
    failed_parents: Literal["wait", "cancel", "ignore"] = "wait"
    run_time: float | None = None
    """Seconds after which it is ended."""
    preemptible: bool = True
    designation: Literal["strict", "preferred"] = "strict"
    session_group: SessionGroup | None = None

    def row(self) -> dict[str, Any] | None:
        """As it is kept; None when there is nothing to say."""
        kept: dict[str, Any] = {}
        default = Wishes()
        for name in ("failed_parents", "run_time", "preemptible", "designation"):
            if getattr(self, name) != getattr(default, name):
                kept[name] = getattr(self, name)
        if self.dependencies:
            kept["dependencies"] = list(self.dependencies)
        if self.session_group is not None:
            group = self.session_group
            kept["session_group"] = {
                "name": group.name,
                "rule": group.rule,
                "strict": group.strict,
            }
        return kept or None


def wishes_of(kept: Mapping[str, Any] | None) -> Wishes:
    """The wishes that a row keeps."""
    if not kept:
        return Wishes()
    plain = {name: value for name, value in kept.items() if name != "session_group"}
    plain["dependencies"] = tuple(plain.get("dependencies", ()))
    group = kept.get("session_group")
    return Wishes(**plain, session_group=None if group is None else SessionGroup(**group))


def device_rules(default: DeviceRules, resource_opts: Mapping[str, Any]) -> DeviceRules | None:
    """A session's own rule about fragments over those of its group; None when it has none."""
    allowed = resource_opts.get(FRAGMENTATION)
    return None if allowed is None else replace(default, unfragmented=not allowed)


async def parent_states(db: AsyncSession, parents: Iterable[str]) -> dict[str, Dependency]:
    """How far each of ``parents`` is; one that is not there any more has failed."""
    ids = {uuid.UUID(parent) for parent in parents}
    if not ids:
        return {}
    found = {str(parent): Dependency(str(parent), "failed") for parent in ids}
    columns = (SessionRow.id, SessionRow.name, SessionRow.status, SessionRow.result)
    query = select(*columns).where(SessionRow.id.in_(ids))
    for session_id, name, status, result in await db.execute(query):
        succeeded = status == Status.TERMINATED and result == "success"
        ended: ParentState = "succeeded" if succeeded else "failed"
        state = ended if Status(status) in FINAL else "waiting"
        found[str(session_id)] = Dependency(str(session_id), state, name)
    return found


async def find_parents(
    db: AsyncSession, owner_id: uuid.UUID, names: Iterable[str]
) -> tuple[list[str], dict[str, str]]:
    """Ids of the owner's sessions that ``names`` (ids or names) mean, and a sentence for each bad one.

    A name means the newest session of that name, whether it lives or not.
    """
    found: list[str] = []
    errors: dict[str, str] = {}
    for name in dict.fromkeys(names):
        try:
            which = SessionRow.id == uuid.UUID(name)
        except ValueError:
            which = SessionRow.name == name
        query = (
            select(SessionRow.id, SessionRow.type)
            .where(which, SessionRow.owner_id == owner_id)
            .order_by(SessionRow.created_at.desc(), SessionRow.id)
            .limit(1)
        )
        row = (await db.execute(query)).first()
        if row is None:
            errors[name[:80]] = "you have no session of this name or id"
        elif row.type != "batch":
            errors[name[:80]] = f"only a batch session can succeed, and this one is {row.type}"
        else:
            found.append(str(row.id))
    return found, errors
