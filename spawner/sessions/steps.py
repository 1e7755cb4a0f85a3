"""The next idempotent step of a session: from its kernels' statuses and its target to its own status.

``advance`` may be called at any time and any number of times; it runs in the write that changed
something (a report, a destroy) and again from the reconciler, which makes up for anything missed.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from spawner.sessions import degraded, retries, runtimes
from spawner.sessions.holdings import CLAIM
from spawner.sessions.losses import is_spread
from spawner.sessions.states import FINAL, TRANSITIONS, Status, Target
from spawner.sessions.tables import KernelRow, SessionRow
from spawner.sessions.transitions import Change

MAX_RETRIES = 3
"""How often a session whose kernel could not be created goes back to the queue."""
FAILED_AGENTS = "failed_agents"
"""In ``status_data`` until it runs: where its kernels could not be created, once for each time."""
ON_THE_WAY = (Status.SCHEDULED, Status.PREPARING, Status.CREATING, Status.RUNNING)
CAUSES = {
    Status.PREPARING: "getting the image and the folders ready",
    Status.CREATING: "creating the container",
    Status.RUNNING: "running",
}
USER_REQUESTED = "user-requested"
FORCE_TERMINATED = "force-terminated"
SELF_TERMINATED = "self-terminated"
AGENT_TERMINATED = "agent-termination"
AGENT_DRAINED = "agent-drained"
FAILED_TO_START = "failed-to-start"
PREEMPTED = "preempted"
TASK_TIMEOUT = "task-timeout"
PENDING_TIMEOUT = "pending-timeout"
DEPENDENCY_FAILED = "dependency-failed"


async def load(
    db: AsyncSession, session_id: uuid.UUID
) -> tuple[SessionRow, list[KernelRow]] | None:
    """A session and its kernels, the main one first, locked against other writers."""
    session = await db.get(SessionRow, session_id, with_for_update=True, populate_existing=True)
    if session is None:
        return None
    query = (
        select(KernelRow)
        .where(KernelRow.session_id == session_id)
        .order_by(KernelRow.cluster_role != "main", KernelRow.cluster_index)
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    return session, list(await db.scalars(query))


async def advance(change: Change, session_id: uuid.UUID) -> None:
    """Bring one session as far as it can get now."""
    await change.db.flush()
    loaded = await load(change.db, session_id)
    if loaded is not None:
        await step(change, *loaded)


async def step(change: Change, session: SessionRow, kernels: Sequence[KernelRow]) -> None:
    """``advance`` for a session that is loaded and locked already, with all its kernels."""
    if Status(session.status) in FINAL:
        return
    if session.target == Target.TERMINATED:
        await _towards_end(change, session, kernels)
    else:
        await _towards_running(change, session, kernels)


def ask_to_end(session: SessionRow, reason: str, cause: str) -> None:
    """Turn the target; the first reason stays."""
    session.target = Target.TERMINATED
    if "end" not in session.status_data:
        session.status_data = {**session.status_data, "end": {"reason": reason, "message": cause}}


async def give_back(change: Change, session: SessionRow, kernel: KernelRow, why: str) -> bool:
    """Put a kernel that could not be created back to the queue; False when it had its chances."""
    tried: list[str] = list(session.status_data.get(FAILED_AGENTS, []))
    tried.append(str(kernel.agent_id))
    session.status_data = {**session.status_data, FAILED_AGENTS: tried}
    if len(tried) > MAX_RETRIES or session.target == Target.TERMINATED:
        return False
    cause = f"{why}: trying again (retry {len(tried)} of {MAX_RETRIES})"
    await change.move_kernel(session, kernel, Status.PENDING, cause, reason=FAILED_TO_START)
    return True


async def preempt(change: Change, session_id: uuid.UUID, for_session_id: str, action: str) -> bool:
    """End a running session, or put it back to the queue, for the sake of a waiting one.

    Returns False when it ended, or was told to end, meanwhile. What it holds stays accounted until its
    node says that it is gone.
    """
    loaded = await load(change.db, session_id)
    if loaded is None:
        return False
    session, kernels = loaded
    if session.target == Target.TERMINATED or Status(session.status) in (*FINAL, Status.PENDING):
        return False
    if session.status == Status.PREEMPTED or CLAIM in session.status_data:
        return False
    kept = {k: v for k, v in session.status_data.items() if k != FAILED_AGENTS}
    session.status_data = {**kept, CLAIM: for_session_id}
    if action == "terminate" or session.status == Status.RUNNING_DEGRADED:
        cause = "ended to make room for a session of higher priority"
        if await retries.try_again(change, session, kernels, retries.PREEMPTED, cause):
            await step(change, session, kernels)
            return True
        ask_to_end(session, PREEMPTED, cause)
        await step(change, session, kernels)
        return True
    cause = "put back to the queue to make room for a session of higher priority"
    await put_back(change, session, kernels, cause, PREEMPTED)
    return True


async def put_back(
    change: Change, session: SessionRow, kernels: Sequence[KernelRow], cause: str, reason: str
) -> None:
    """Send a session that is not told to end back to the queue; its node ends what runs of it."""
    for kernel in kernels:
        await retries.recall(change, session, kernel, cause)
    if Status.PREEMPTED in TRANSITIONS[Status(session.status)]:
        await change.move_session(session, Status.PREEMPTED, cause, reason=reason)
    else:
        change.note(session, cause)
    await step(change, session, kernels)


async def _towards_end(change: Change, session: SessionRow, kernels: Sequence[KernelRow]) -> None:
    end = session.status_data.get("end", {})
    reason, cause = end.get("reason", USER_REQUESTED), end.get("message", "its owner ended it")
    if session.status == Status.PENDING:
        for kernel in kernels:
            await change.move_kernel(session, kernel, Status.CANCELLED, cause, reason=reason)
        await change.move_session(session, Status.CANCELLED, cause, reason=reason)
        return
    for kernel in kernels:
        await _drain(change, session, kernel, reason, cause)
    main = kernels[0]
    ended = all(Status(kernel.status) in FINAL for kernel in kernels)
    if ended and Status.TERMINATED in TRANSITIONS[Status(session.status)]:
        await finish(change, session, main, Status.TERMINATED, reason, cause)
        return
    await change.move_session(session, Status.TERMINATING, cause, reason=reason)
    if ended:
        await finish(change, session, main, Status.TERMINATED, reason, cause)


async def _drain(
    change: Change, session: SessionRow, kernel: KernelRow, reason: str, cause: str
) -> None:
    status = Status(kernel.status)
    if status in FINAL or status is Status.TERMINATING:
        return
    if status is Status.PENDING:
        await change.move_kernel(session, kernel, Status.CANCELLED, cause, reason=reason)
        return
    await change.move_kernel(session, kernel, Status.TERMINATING, cause, reason=reason)
    if status is Status.SCHEDULED:  # recorded as PREPARING before any agent hears of it
        unborn = "it had not been handed to a node yet"
        await change.move_kernel(session, kernel, Status.TERMINATED, unborn, reason=reason)


async def _towards_running(
    change: Change, session: SessionRow, kernels: Sequence[KernelRow]
) -> None:
    if await degraded.follow(change, session, kernels):
        return
    statuses = [Status(kernel.status) for kernel in kernels]
    failed = [kernel for kernel in kernels if kernel.status == Status.ERROR]
    ended = [kernel for kernel in kernels if Status(kernel.status) in FINAL]
    if failed:
        await _fail(change, session, kernels, failed[0])
    elif ended:
        await _end_unasked(change, session, kernels, ended[0])
    elif all(status is Status.PENDING for status in statuses):
        session.status_data = {k: v for k, v in session.status_data.items() if k != CLAIM}
        ran = session.status in (Status.RESTARTING, Status.PREEMPTED)
        if session.status != Status.PENDING and (ran or "retry" in session.status_data):
            retries.next_attempt(session)
        await change.move_session(session, Status.PENDING, kernels[0].status_info)
    elif any(status is Status.PENDING for status in statuses):
        for kernel in kernels:  # all or nothing: the others come back too
            await retries.recall(
                change, session, kernel, "another kernel of the session goes back to the queue"
            )
    else:
        await _follow(change, session, statuses)
        if session.status == Status.RUNNING and is_spread(session):  # their leases are over now
            change.agents.update(str(kernel.agent_id) for kernel in kernels)


async def _follow(change: Change, session: SessionRow, statuses: Sequence[Status]) -> None:
    """The session is as far as the last of its kernels, seen from the start."""
    if any(status not in ON_THE_WAY for status in statuses):
        return
    reached = min(ON_THE_WAY.index(status) for status in statuses)
    old = Status(session.status)
    if old is Status.RESTARTING:
        start = 0
    elif old in ON_THE_WAY:
        start = ON_THE_WAY.index(old)
    else:
        return
    if reached <= start:
        return
    goal = ON_THE_WAY[reached]
    if goal not in TRANSITIONS[old]:
        await change.move_session(session, Status.PREPARING, CAUSES[Status.PREPARING])
    if goal is Status.RUNNING:
        session.status_data = {k: v for k, v in session.status_data.items() if k != FAILED_AGENTS}
    await change.move_session(session, goal, CAUSES[goal])


async def _fail(
    change: Change, session: SessionRow, kernels: Sequence[KernelRow], failed: KernelRow
) -> None:
    others = [kernel for kernel in kernels if kernel is not failed]
    for kernel in others:
        await _drain(change, session, kernel, FAILED_TO_START, "another kernel failed")
    await finish(change, session, failed, Status.ERROR, FAILED_TO_START, failed.status_info)


async def _end_unasked(
    change: Change, session: SessionRow, kernels: Sequence[KernelRow], ended: KernelRow
) -> None:
    """A kernel ended by itself: the session ends with it, and takes the other kernels along."""
    session.status_data = {k: v for k, v in session.status_data.items() if k != "retry"}
    ask_to_end(session, SELF_TERMINATED, ended.status_info)
    if session.type == "batch" and session.result == "undefined":
        done = ended.exit_code == 0 and ended is kernels[0]
        session.result = "success" if done else "failure"
        if session.result == "success" and session.started_at is not None:
            seconds = (change.now - session.started_at).total_seconds()
            await runtimes.learn(change.db, session.owner_id, session.image, seconds)
    await _towards_end(change, session, kernels)


async def finish(
    change: Change,
    session: SessionRow,
    kernel: KernelRow,
    to: Status,
    reason: str,
    cause: str,
) -> None:
    """The last step; ``kernel`` is the one whose exit code counts. Kernels of lost nodes may end later."""
    code = kernel.exit_code
    session.status_data = {
        **{k: v for k, v in session.status_data.items() if k != "scheduler"},
        "kernel": {"exit_code": code},
        "session": {"status": to.value.lower()},
    }
    if to is Status.ERROR:
        session.status_data = {
            **session.status_data,
            "error": {"src": "agent", "name": reason, "repr": cause},
        }
        if session.type == "batch":
            session.result = "failure"
    if session.result != "undefined":
        change.tell_session(session, f"session_{session.result}", reason, code)
    await change.move_session(session, to, cause, reason=reason, exit_code=code)
