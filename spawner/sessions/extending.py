"""Owners extend sessions that would end, as far as their policy allows."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from authenticator.principals import Principal, Scope, require
from authenticator.problems import BadRequest, InvalidParameters, QuotaExceeded
from authenticator.tables import KeyPairPolicyRow, KeyPairRow, UserRow
from spawner.sessions import queries, steps
from spawner.sessions.durations import seconds_of
from spawner.sessions.idle_state import read_state
from spawner.sessions.idleness import LIFETIME, NETWORK, UTILIZATION, Verdict, read_checks
from spawner.sessions.kinds import BATCH, INTERACTIVE
from spawner.sessions.states import Status, Target
from spawner.sessions.tables import KernelRow, SessionRow
from spawner.sessions.transitions import Change, Journal

BY = 3600.0
"""Seconds by which a run-time limit is moved when the request does not say."""
RUNNING = (Status.RUNNING, Status.RUNNING_DEGRADED)


class Extensions:
    """The use case: idleness counts anew, and a run-time limit moves."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    async def extend(
        self, principal: Principal, ref: str, by: object, request_id: str
    ) -> SessionRow:
        """Extend a running session; ``by`` (a duration, or None) is for its run-time limit.

        Raises ``QuotaExceeded`` when the policy does not allow it (any more).
        """
        require(principal, Scope.SESSIONS_EXTEND)
        seconds = _duration(by)

        async def work(change: Change) -> uuid.UUID:
            row = await queries.resolve(change.db, principal, ref, Scope.SESSIONS_EXTEND)
            loaded = await steps.load(change.db, row.id)
            if loaded is not None:
                await _extend(change, *loaded, seconds)
            return row.id

        session_id = await self._journal.write(request_id, work)
        return await self._journal.store.read(lambda db: db.get_one(SessionRow, session_id))


def _duration(by: object) -> float:
    if by is None:
        return BY
    try:
        seconds = seconds_of(by)
    except ValueError as error:
        raise InvalidParameters({"by": str(error)}) from None
    if seconds < 1:
        raise InvalidParameters({"by": f"{str(by)[:80]}: 1 second or more"})
    return seconds


async def _policy(db: AsyncSession, access_key: str) -> KeyPairPolicyRow | None:
    query = (
        select(KeyPairPolicyRow)
        .join(KeyPairRow, KeyPairRow.policy == KeyPairPolicyRow.name)
        .where(KeyPairRow.access_key == access_key)
    )
    return (await db.scalars(query)).one_or_none()


async def _extend(
    change: Change, session: SessionRow, kernels: Sequence[KernelRow], seconds: float
) -> None:
    if session.status not in RUNNING or session.target != Target.RUNNING:
        raise BadRequest(f"only running sessions can be extended, this one is {session.status}")
    policy = await _policy(change.db, session.access_key)
    checks = read_checks(None if policy is None else policy.idle_checks)
    started = session.started_at or session.created_at
    state = read_state(session.idle, started)
    if checks.extensions is not None and state.extended >= checks.extensions:
        raise QuotaExceeded(
            f"it was extended {state.extended} times, and your policy allows {checks.extensions}"
        )
    if session.ends_at is not None:
        ends_at = session.ends_at + dt.timedelta(seconds=seconds)
        if policy is not None and policy.max_session_lifetime is not None:
            latest = started + dt.timedelta(seconds=policy.max_session_lifetime)
            ends_at = max(min(ends_at, latest), session.ends_at)
        idle = policy is not None and (policy.idle_timeout or checks.utilization is not None)
        if ends_at == session.ends_at and not idle:
            raise QuotaExceeded(
                f"it ends at {ends_at:%Y-%m-%d %H:%M UTC}, as late as your policy allows"
            )
        session.ends_at = ends_at
    now = change.now.timestamp()
    state.extended += 1
    state.touched_at, state.at = now, 0.0
    state.warned, state.parts = {}, []
    owner = await change.db.get_one(UserRow, session.owner_id)
    grace_ends = owner.created_at.timestamp() + checks.new_user_grace
    judged = _anew(session, kernels, policy, max(grace_ends, now))
    verdicts = {name: Verdict(ends_at - now, ends_at - now) for name, ends_at in judged.items()}
    state.judged(verdicts, checks.warn_before, now)
    session.idle = state.document()
    told = "" if session.ends_at is None else f"; it ends at {session.ends_at:%Y-%m-%d %H:%M UTC}"
    change.note(session, f"extended{told}")


def _anew(
    session: SessionRow, kernels: Sequence[KernelRow], policy: KeyPairPolicyRow | None, since: float
) -> dict[str, float]:
    """When each check ends a session at the earliest whose idleness counts ``since``."""
    found: dict[str, float] = {}
    if session.ends_at is not None:
        found[LIFETIME] = session.ends_at.timestamp()
    if policy is not None and policy.idle_timeout and session.type == INTERACTIVE:
        found[NETWORK] = since + policy.idle_timeout
    rules = None if policy is None else read_checks(policy.idle_checks).utilization
    slots = {slot for kernel in kernels for slot in kernel.slots}
    if rules is not None and session.type in (INTERACTIVE, BATCH) and rules.of(slots):
        started = (session.started_at or session.created_at).timestamp()
        found[UTILIZATION] = max(started + rules.initial_grace, since) + rules.window
    return found
