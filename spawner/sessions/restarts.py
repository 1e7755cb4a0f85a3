"""A restart of a running session: a new run of each kernel on the same node, devices and folders.

The node ends the old run before it starts the new one; of what reports the old epoch only its output is kept. A
cluster that lost a part has no devices for it any more: all of it goes through the queue.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import update

from authenticator.problems import BadRequest
from spawner.sessions import clusters, degraded, retries, runs, steps
from spawner.sessions.kinds import INTERACTIVE
from spawner.sessions.states import Status, Target
from spawner.sessions.tables import AllocationRow, KernelRow, SessionRow
from spawner.sessions.transitions import Change

CAUSE = "restarting on request"


async def restart(change: Change, session: SessionRow, kernels: Sequence[KernelRow]) -> None:
    """Begin. Raises ``BadRequest`` for a session that cannot be restarted; harmless while it restarts."""
    if session.type != INTERACTIVE:
        raise BadRequest(f"only interactive sessions can be restarted, this one is {session.type}")
    if session.origin.get("hub"):
        raise BadRequest("this session is a server of JupyterHub: stop and start it there")
    if session.status == Status.RESTARTING and session.target == Target.RUNNING:
        return
    if session.status == Status.RUNNING_DEGRADED and session.target == Target.RUNNING:
        await degraded.begin_anew(change, session, kernels, CAUSE)
        await steps.step(change, session, kernels)
        return
    if session.status != Status.RUNNING or session.target != Target.RUNNING:
        raise BadRequest(f"only running sessions can be restarted, this one is {session.status}")
    await change.move_session(session, Status.RESTARTING, CAUSE)
    for kernel in kernels:
        await runs.replace(change, session, kernel, retries.RESTARTED, CAUSE)
        await change.db.execute(
            update(AllocationRow)
            .where(
                AllocationRow.kernel_id == kernel.id,
                AllocationRow.epoch == kernel.epoch,
                AllocationRow.agent_id == kernel.agent_id,
                AllocationRow.freed_at.is_(None),
            )
            .values(epoch=kernel.epoch + 1)
            .execution_options(synchronize_session=False)
        )
        kernel.epoch += 1
        kernel.container_id = kernel.url = kernel.started_at = None
        kernel.ports = []
        await change.move_kernel(session, kernel, Status.RESTARTING, CAUSE)
    clusters.connect(session, kernels)
    retries.next_attempt(session)
