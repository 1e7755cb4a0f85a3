"""Checks at submission that need the rows of others: the owner's queue, names, and designated agents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy import ColumnElement, select
from sqlalchemy.ext.asyncio import AsyncSession

from authenticator.problems import InvalidParameters, QuotaExceeded, SessionAlreadyExists
from authenticator.tables import KeyPairPolicyRow, ProjectPolicyRow, UserPolicyRow
from spawner.scheduler.slots import human_amount
from spawner.sessions.facts import Facts
from spawner.sessions.kinds import SYSTEM
from spawner.sessions.requests import NewSession
from spawner.sessions.states import Status, Target
from spawner.sessions.tables import AgentRow, SessionRow


@dataclass(frozen=True, slots=True)
class Queue:
    """What waits on the account of one scope, and what its policy lets wait."""

    waiting: ColumnElement[bool]
    policy: KeyPairPolicyRow | UserPolicyRow | ProjectPolicyRow
    whose: str = "your waiting sessions"
    has: str = "you have"


async def check_counts(db: AsyncSession, facts: Facts, session: SessionRow) -> None:
    """Raise ``QuotaExceeded`` when ``session``, not yet a row, is too much for one of the queues it joins."""
    project = next(each for each in facts.projects if each.id == session.project_id)
    queues = [Queue(SessionRow.access_key == session.access_key, facts.policy)]
    if facts.user_policy is not None:
        queues.append(Queue(SessionRow.owner_id == session.owner_id, facts.user_policy))
    shared = facts.project_policies.get(project.resource_policy)
    if shared is not None:
        whose = f"the waiting sessions of your project {project.name}"
        has = f"your project {project.name} has"
        queues.append(Queue(SessionRow.project_id == project.id, shared, whose, has))
    for queue in queues:
        await _check_queue(db, queue, session.requested_slots)


async def _check_queue(db: AsyncSession, queue: Queue, slots: Mapping[str, int]) -> None:
    most, cap = queue.policy.max_pending_sessions, queue.policy.max_pending_resource_slots
    if most is None and cap is None:
        return
    query = select(SessionRow.requested_slots).where(
        queue.waiting,
        SessionRow.status == Status.PENDING.value,
        SessionRow.type != SYSTEM,
    )
    asked_for = list(await db.scalars(query))
    if most is not None and len(asked_for) >= most:
        raise QuotaExceeded(
            f"{queue.has} {len(asked_for)} sessions waiting and may have {most}:"
            " wait for one to start, or cancel one"
        )
    for slot, limit in (cap or {}).items():
        waiting = sum(int(asked.get(slot, 0)) for asked in asked_for)
        amount = slots.get(slot, 0)
        if amount and waiting + amount > int(limit):
            raise QuotaExceeded(
                f"{queue.whose} may ask for {human_amount(slot, int(limit))} together:"
                f" {human_amount(slot, waiting)} wait, and this one asks for"
                f" {human_amount(slot, amount)}"
            )


async def check_agents(db: AsyncSession, names: Iterable[str]) -> None:
    """Raise ``InvalidParameters`` for designated agents that do not exist."""
    wanted = set(names)
    known = set(await db.scalars(select(AgentRow.id).where(AgentRow.id.in_(wanted))))
    unknown = sorted(wanted - known)
    if unknown:
        raise InvalidParameters(
            {"config.agentList": f"there is no agent {', '.join(unknown)[:200]}"}
        )


def check_reuse(live: SessionRow, new: NewSession, image: str) -> None:
    """Raise ``SessionAlreadyExists`` unless ``live``, which has the name of ``new``, may serve for it."""
    data = {"existingSessionId": str(live.id)}
    if live.target == Target.TERMINATED:
        raise SessionAlreadyExists(
            f"session {live.name!r} is still ending: try again in a moment", data
        )
    if live.image != image:
        raise SessionAlreadyExists(
            f"session {live.name!r} runs the image {live.image}, not {image}", data
        )
    if not new.reuse_if_exists:
        raise SessionAlreadyExists(f"there is a live session named {live.name!r} already", data)
