"""Clusters that lost a part: what goes on without it, and what ends.

A session runs on, degraded, while its main container runs and it is no batch session; it runs
undegraded again when all its containers are there again. What ended is started again with its session only.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select

from spawner.sessions import retries, runs
from spawner.sessions.states import FINAL, Status
from spawner.sessions.tables import AgentRow, KernelRow, SessionRow
from spawner.sessions.transitions import Change

STATUSES = (Status.RUNNING, Status.RUNNING_DEGRADED)
GONE = (*FINAL, Status.TERMINATING)


def survives(session: SessionRow, kernels: Sequence[KernelRow]) -> bool:
    """Whether the session may go on without kernels besides its main one, as things are."""
    main = Status(kernels[0].status) if kernels else None
    return (
        session.cluster_size > 1
        and session.type != "batch"
        and Status(session.status) in STATUSES
        and main is Status.RUNNING
    )


async def follow(change: Change, session: SessionRow, kernels: Sequence[KernelRow]) -> bool:
    """Bring a running cluster to RUNNING or RUNNING_DEGRADED; False: it is for others to say."""
    if not survives(session, kernels):
        return False
    if any(Status(k.status) not in (*STATUSES, *GONE) for k in kernels[1:]):
        return False
    sick = (session.recovery or {}).get(retries.UNHEALTHY)
    cause = "; ".join(filter(None, (await lacks(change, kernels), sick)))
    if not cause:
        if session.status == Status.RUNNING_DEGRADED and not await _away(change, kernels[:1]):
            again = "all containers are there again"
            await change.move_session(session, Status.RUNNING, again)
        return True
    if session.status == Status.RUNNING:
        await change.move_session(session, Status.RUNNING_DEGRADED, cause)
    elif session.status_info != cause:
        session.status_info = cause
        change.note(session, cause)
    return True


async def lacks(change: Change, kernels: Sequence[KernelRow]) -> str:
    """What is lost or out of reach besides the main container; empty: nothing."""
    away, subs = await _away(change, kernels[1:]), kernels[1:]
    ended = [kernel for kernel in subs if Status(kernel.status) in GONE]
    silent = [k for k in subs if k.agent_id in away and k not in ended]
    return "; ".join(
        [f"{k.hostname} is lost: {k.status_info}" for k in ended]
        + [f"{k.hostname} is out of reach: its node does not answer" for k in silent]
    )


async def let_go(
    change: Change, session: SessionRow, kernels: Sequence[KernelRow], agent_id: str, cause: str
) -> bool:
    """Give up the kernels on a lost agent; False when the session cannot go on without them.

    They stay TERMINATING and accounted until the agent comes back and says that they are gone.
    """
    if not survives(session, kernels) or kernels[0].agent_id == agent_id:
        return False
    for kernel in kernels[1:]:
        if kernel.agent_id == agent_id and Status(kernel.status) not in GONE:
            await change.move_kernel(session, kernel, Status.TERMINATING, cause)
    return await follow(change, session, kernels)


async def begin_anew(
    change: Change, session: SessionRow, kernels: Sequence[KernelRow], cause: str
) -> None:
    """Bring all kernels back to the queue, the lost ones too: they start together or not at all."""
    away = await _away(change, kernels)
    await retries.requeue(change, session, kernels, retries.RESTARTED, cause)
    for kernel in kernels:
        if Status(kernel.status) in FINAL:
            change.revive_kernel(session, kernel, cause)
        elif kernel.agent_id in away:
            await runs.leave(change, session, kernel, cause)


async def _away(change: Change, kernels: Sequence[KernelRow]) -> frozenset[str]:
    """Agents of these kernels that do not answer."""
    ids = {kernel.agent_id for kernel in kernels if kernel.agent_id is not None}
    lost = select(AgentRow.id).where(AgentRow.id.in_(ids), AgentRow.status != "ALIVE")
    return frozenset(await change.db.scalars(lost))
