"""What agents report of kernels, written into rows. Reports of any run but the present one are strays."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Sequence

from sqlalchemy import select

from spawner.agent.protocol import KernelReport, ProtocolError
from spawner.scheduler.slots import human_amount
from spawner.sessions import steps
from spawner.sessions.states import FINAL, Status
from spawner.sessions.statistics import check_metrics
from spawner.sessions.tables import KernelRow, SessionRow
from spawner.sessions.transitions import Change

STATUSES = frozenset(
    {
        Status.PREPARING,
        Status.CREATING,
        Status.RUNNING,
        Status.TERMINATING,
        Status.TERMINATED,
    }
)
RETRIABLE = frozenset({"create-failed", "removed"})
"""Failures before RUNNING that another try, perhaps elsewhere, may not meet again."""
LOG_TAIL = 16_384
"""Characters of the log that are kept of a kernel that ended."""
TEXT = 1_000
_ORDER = (Status.SCHEDULED, Status.PREPARING, Status.CREATING, Status.RUNNING)


def check(report: KernelReport) -> uuid.UUID:
    """The kernel's id. Raises ``ProtocolError`` when the report makes no sense."""
    if report.status not in STATUSES:
        raise ProtocolError(
            f"report of kernel {report.kernel_id[:64]}: status {report.status[:32]!r} is not one of"
            f" {', '.join(sorted(STATUSES))}"
        )
    check_metrics(f"last_stat of {report.kernel_id[:36]}", report.last_stat)
    try:
        return uuid.UUID(report.kernel_id)
    except ValueError:
        raise ProtocolError(f"report of kernel {report.kernel_id[:64]!r}: not a UUID") from None


async def record(change: Change, agent_id: str, report: KernelReport) -> bool:
    """Record what ``agent_id`` says of one kernel.

    Returns False for a stray: a run that should not exist (any more) and must be drained. Raises
    ``ProtocolError``, changing nothing.
    """
    kernel_id = check(report)
    gone = report.status == Status.TERMINATED
    owner = await change.db.scalar(select(KernelRow.session_id).where(KernelRow.id == kernel_id))
    loaded = None if owner is None else await steps.load(change.db, owner)
    if loaded is None:
        return gone
    session, kernels = loaded
    kernel = next(each for each in kernels if each.id == kernel_id)
    if kernel.epoch != report.epoch or kernel.agent_id != agent_id:
        return gone
    status = Status(kernel.status)
    if status in FINAL or status is Status.PENDING:
        return gone
    if gone:
        await _ended(change, session, kernels, kernel, report)
    elif status is not Status.TERMINATING:
        await _seen(change, session, kernels, kernel, report)
    return True


async def missing(
    change: Change, agent_id: str, present: set[uuid.UUID], handed: set[uuid.UUID]
) -> None:
    """After a whole report: end what the agent should have and has not.

    ``handed`` are kernels first handed over on this connection: their absence proves nothing yet.
    """
    query = select(KernelRow.id).where(
        KernelRow.agent_id == agent_id,
        KernelRow.status.in_((Status.RUNNING.value, Status.TERMINATING.value)),
    )
    for kernel_id in (await change.db.scalars(query)).all():
        if kernel_id in present or kernel_id in handed:
            continue
        kernel = await change.db.get_one(KernelRow, kernel_id)
        await record(
            change,
            agent_id,
            KernelReport(
                str(kernel_id),
                str(kernel.session_id),
                kernel.epoch,
                Status.TERMINATED.value,
                failure="removed",
            ),
        )


async def _seen(
    change: Change,
    session: SessionRow,
    kernels: Sequence[KernelRow],
    kernel: KernelRow,
    report: KernelReport,
) -> None:
    """The kernel lives: take over where and how far it is; never step back."""
    kernel.container_id = report.container_id or kernel.container_id
    if report.url is not None:
        kernel.url = report.url[:255]
    if report.ports:
        kernel.ports = [dict(port) for port in report.ports]
    old, new = Status(kernel.status), Status(report.status)
    sentence = report.progress.strip()[:TEXT]
    if new in _ORDER and old in _ORDER and _ORDER.index(new) > _ORDER.index(old):
        if report.started_at is not None and new is Status.RUNNING:
            kernel.started_at = dt.datetime.fromtimestamp(report.started_at, dt.UTC)
        if old is Status.SCHEDULED and new is not Status.PREPARING:
            cause = steps.CAUSES[Status.PREPARING]
            await change.move_kernel(session, kernel, Status.PREPARING, cause)
        await change.move_kernel(session, kernel, new, sentence or steps.CAUSES[new])
        await steps.step(change, session, kernels)
    if sentence and sentence != session.status_info and new is not Status.RUNNING:
        kernel.status_info = session.status_info = sentence
        change.note(session, sentence)
        if sentence.lower().startswith("pulling") and old is new:
            change.tell_kernel(session, kernel, "kernel_pulling", sentence)


async def _ended(
    change: Change,
    session: SessionRow,
    kernels: Sequence[KernelRow],
    kernel: KernelRow,
    report: KernelReport,
) -> None:
    old = Status(kernel.status)
    kernel.exit_code = report.exit_code
    kernel.last_stat = report.last_stat or kernel.last_stat
    kernel.last_log = report.log_tail[-LOG_TAIL:]
    why = _why(kernel, report)
    if old is Status.TERMINATING:
        if session.target == "RUNNING" and Status(session.status) not in FINAL:
            await change.move_kernel(session, kernel, Status.PENDING, why)
        else:
            await change.move_kernel(session, kernel, Status.TERMINATED, kernel.status_info)
    elif old is Status.RUNNING:
        await change.move_kernel(session, kernel, Status.TERMINATED, why, reason="self-terminated")
    elif session.type == "batch" and report.exit_code is not None and report.failure == "exited":
        if old is Status.SCHEDULED:
            cause = steps.CAUSES[Status.PREPARING]
            await change.move_kernel(session, kernel, Status.PREPARING, cause)
        await change.move_kernel(session, kernel, Status.RUNNING, steps.CAUSES[Status.RUNNING])
        await steps.step(change, session, kernels)
        await change.move_kernel(session, kernel, Status.TERMINATED, why, reason="task-finished")
    elif report.failure not in RETRIABLE or not await steps.give_back(change, session, kernel, why):
        why = f"could not start: {why}{_last_words(report)}"
        await change.move_kernel(session, kernel, Status.ERROR, why, reason=steps.FAILED_TO_START)
    await steps.step(change, session, kernels)


def _why(kernel: KernelRow, report: KernelReport) -> str:
    """A sentence for the owner."""
    code = "" if report.exit_code is None else f" (exit code {report.exit_code})"
    if report.failure == "oom-killed":
        memory = human_amount("mem", int(kernel.slots.get("mem", 0)))
        return f"it was killed because it used more than its {memory}{code}"
    if report.failure == "removed":
        return "its container was removed by somebody else"
    if report.failure == "start-timeout":
        return f"it did not answer on its port in time{code}"
    if report.failure == "create-failed":
        return report.progress.strip()[:TEXT] or "its container could not be created"
    return f"its main process ended{code}"


def _last_words(report: KernelReport) -> str:
    lines = [line for line in report.log_tail.strip().splitlines() if line.strip()]
    return "" if not lines else ". Last lines of its output:\n" + "\n".join(lines[-10:])[-TEXT:]
