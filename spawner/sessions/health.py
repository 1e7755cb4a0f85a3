"""What health checks of inference sessions mean for them: RUNNING, RUNNING_DEGRADED, or another attempt."""

from __future__ import annotations

from collections.abc import Sequence

from spawner.sessions import retries, steps
from spawner.sessions.states import Status, Target
from spawner.sessions.tables import KernelRow, SessionRow
from spawner.sessions.transitions import Change


async def follow(
    change: Change,
    session: SessionRow,
    kernels: Sequence[KernelRow],
    kernel: KernelRow,
    healthy: bool,
    told: str,
) -> None:
    """Take over whether the service of ``kernel`` answers; ``told`` says what its node saw."""
    status = Status(session.status)
    if session.target != Target.RUNNING or kernel.status != Status.RUNNING:
        return
    if healthy and status is Status.RUNNING_DEGRADED:
        await change.move_session(session, Status.RUNNING, "its health check passes again")
    elif not healthy and status is Status.RUNNING:
        cause = told or "its health check fails"
        await change.move_session(session, Status.RUNNING_DEGRADED, cause)
        again = await retries.try_again(change, session, kernels, retries.UNHEALTHY, cause)
        if again:
            await steps.step(change, session, kernels)
        else:
            session.status_info = retries.exhausted(session, retries.UNHEALTHY, cause)
