"""What health checks of inference sessions mean for them: RUNNING, RUNNING_DEGRADED, or another attempt."""

from __future__ import annotations

from collections.abc import Sequence

from spawner.sessions import degraded, retries, steps
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
    running = session.target == Target.RUNNING and kernel.status == Status.RUNNING
    if not running or kernel is not kernels[0]:  # the main one, which has the port
        return
    status, cause = Status(session.status), told or "its health check fails"
    if healthy:
        _keep(session, None)
        if status is Status.RUNNING_DEGRADED and not await degraded.lacks(change, kernels):
            await change.move_session(session, Status.RUNNING, "its health check passes again")
    elif status is Status.RUNNING:
        await change.move_session(session, Status.RUNNING_DEGRADED, cause)
        if await retries.try_again(change, session, kernels, retries.UNHEALTHY, cause):
            await steps.step(change, session, kernels)
        else:
            session.status_info = retries.exhausted(session, retries.UNHEALTHY, cause)
            _keep(session, session.status_info)
    elif status is Status.RUNNING_DEGRADED:
        _keep(session, cause)


def _keep(session: SessionRow, sick: str | None) -> None:
    """For whoever looks at the session for another reason (``degraded``)."""
    if (session.recovery or {}).get(retries.UNHEALTHY) != sick:
        session.recovery = {**(session.recovery or {}), retries.UNHEALTHY: sick}
