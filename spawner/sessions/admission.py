"""Checks at submission that need the rows of others: the owner's queue, names, and designated agents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from authenticator.principals import Principal
from authenticator.problems import InvalidParameters, QuotaExceeded, SessionAlreadyExists
from authenticator.tables import KeyPairPolicyRow
from spawner.scheduler.slots import human_amount
from spawner.sessions.kinds import SYSTEM
from spawner.sessions.requests import NewSession
from spawner.sessions.states import Status, Target
from spawner.sessions.tables import AgentRow, SessionRow


async def check_counts(
    db: AsyncSession, owner: Principal, policy: KeyPairPolicyRow, slots: Mapping[str, int]
) -> None:
    """Raise ``QuotaExceeded`` when the owner's queue has too many sessions, or asks for too much.

    ``slots`` is what one more session asks for.
    """
    most, cap = policy.max_pending_sessions, policy.max_pending_resource_slots
    if most is None and cap is None:
        return
    query = select(SessionRow.requested_slots).where(
        SessionRow.access_key == owner.access_key,
        SessionRow.status == Status.PENDING.value,
        SessionRow.type != SYSTEM,
    )
    queue = list(await db.scalars(query))
    if most is not None and len(queue) >= most:
        raise QuotaExceeded(
            f"you have {len(queue)} sessions waiting and may have {most}:"
            " wait for one to start, or cancel one"
        )
    for slot, limit in (cap or {}).items():
        waiting = sum(int(asked.get(slot, 0)) for asked in queue)
        amount = slots.get(slot, 0)
        if amount and waiting + amount > int(limit):
            raise QuotaExceeded(
                f"your waiting sessions may ask for {human_amount(slot, int(limit))} together:"
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
