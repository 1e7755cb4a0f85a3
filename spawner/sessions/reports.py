"""What agents report of kernels, written into rows. Reports of any run but the present one are strays."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Sequence

from sqlalchemy import select

from spawner.agent.protocol import REFUSED, KernelReport, ProtocolError
from spawner.scheduler.slots import human_amount
from spawner.sessions import health, losses, refusals, retries, runs, steps
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
RETRIABLE = frozenset({"create-failed", "removed", "engine-restarted"})
"""Failures before RUNNING that another try, perhaps elsewhere, may not meet again."""
UNDONE = frozenset({REFUSED, "fenced"})
"""Failures before RUNNING that are no fault of the session: it has its old place in the queue, however often."""
LOG_TAIL = 16_384
"""Characters of the log that are kept of a kernel that ended."""
TEXT = 1_000
_ORDER = (Status.SCHEDULED, Status.PREPARING, Status.CREATING, Status.RUNNING)
_PLACE = {status: place for place, status in enumerate(_ORDER)} | {Status.RESTARTING: 0}


def check(report: KernelReport) -> uuid.UUID:
    """The kernel's id. Raises ``ProtocolError`` when the report makes no sense."""
    if report.status not in STATUSES:
        raise ProtocolError(
            f"report of kernel {report.kernel_id[:64]}: status {report.status[:32]!r} is not one of"
            f" {', '.join(sorted(STATUSES))}"
        )
    for name, at in (("started_at", report.started_at), ("ended_at", report.ended_at)):
        try:
            dt.datetime.fromtimestamp(at or 0.0, dt.UTC)
        except (ValueError, OverflowError, OSError):
            told = f"{name} is {at:g} seconds, which is no time"
            raise ProtocolError(f"report of kernel {report.kernel_id[:64]}: {told}") from None
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
    if await runs.heard(change, agent_id, kernel_id, report):
        return True
    gone = report.status == Status.TERMINATED
    owner = await change.db.scalar(select(KernelRow.session_id).where(KernelRow.id == kernel_id))
    loaded = None if owner is None else await steps.load(change.db, owner)
    if loaded is None:
        return gone
    session, kernels = loaded
    kernel = next(each for each in kernels if each.id == kernel_id)
    if kernel.epoch != report.epoch or kernel.agent_id != agent_id:
        if gone and kernel.agent_id == agent_id:
            await runs.replaced(change, kernel, report)
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
    change: Change, agent_id: str, found: set[runs.Run], handed: set[uuid.UUID]
) -> None:
    """After a whole report: end what the agent should have and has not.

    ``found`` are the runs that it has. ``handed`` are kernels first handed over on this connection:
    their absence proves nothing yet.
    """
    await runs.missing(change, agent_id, found)
    present = {kernel_id for kernel_id, _ in found}
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
    if new in _ORDER and old in _PLACE and _ORDER.index(new) > _PLACE[old]:
        if report.started_at is not None and new is Status.RUNNING:
            kernel.started_at = dt.datetime.fromtimestamp(report.started_at, dt.UTC)
        if old is Status.SCHEDULED and new is not Status.PREPARING:
            cause = steps.CAUSES[Status.PREPARING]
            await change.move_kernel(session, kernel, Status.PREPARING, cause)
        await change.move_kernel(session, kernel, new, sentence or steps.CAUSES[new])
        if new is Status.RUNNING:
            await refusals.forget(change, kernel.agent_id)
        await steps.step(change, session, kernels)
    if report.healthy is not None and new is Status.RUNNING:
        await health.follow(change, session, kernels, kernel, report.healthy, sentence)
    elif sentence and sentence != session.status_info and new is not Status.RUNNING:
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
    # A program that ends with 0 because its node ended it has not done its work.
    kernel.exit_code = None if report.failure == "fenced" else report.exit_code
    kernel.last_stat = report.last_stat or kernel.last_stat
    kernel.last_log = report.log_tail[-LOG_TAIL:]
    why, cause = _why(kernel, report), retries.cause_of(session, report)
    recalled = old is Status.TERMINATING and cause == retries.ENDED
    told = retries.told_cause(session) if recalled else cause
    if report.failure in UNDONE and old not in (Status.RUNNING, Status.TERMINATING):
        if report.failure == REFUSED:
            await refusals.note(change, str(kernel.agent_id))
        told = f"{why}: waiting for another place"
        await change.move_kernel(session, kernel, Status.PENDING, told, reason=report.failure)
        await steps.step(change, session, kernels)
        return
    await runs.keep(change, session, kernel, report, told, why)
    if old is Status.TERMINATING:
        await _ended_as_told(change, session, kernel, why, cause)
    elif old is Status.RUNNING:
        await _ended_alone(change, session, kernels, kernel, why, cause)
    elif session.type == "batch" and report.failure in ("exited", "oom-killed"):
        if old is Status.SCHEDULED:
            cause_of_start = steps.CAUSES[Status.PREPARING]
            await change.move_kernel(session, kernel, Status.PREPARING, cause_of_start)
        await change.move_kernel(session, kernel, Status.RUNNING, steps.CAUSES[Status.RUNNING])
        await steps.step(change, session, kernels)
        await _ended_alone(change, session, kernels, kernel, why, cause)
    elif report.failure not in RETRIABLE or not await steps.give_back(change, session, kernel, why):
        why = f"could not start: {why}"
        if not await retries.try_again(change, session, kernels, cause, why, ended=kernel):
            why = f"{retries.exhausted(session, cause, why)}{_last_words(report)}"
            reason = steps.FAILED_TO_START
            await change.move_kernel(session, kernel, Status.ERROR, why, reason=reason)
    await steps.step(change, session, kernels)


async def _ended_as_told(
    change: Change, session: SessionRow, kernel: KernelRow, why: str, cause: str
) -> None:
    """A kernel that was told to end is gone: it waits again, unless its work was done before."""
    done = cause == retries.SUCCESS and kernel.cluster_role == "main"
    given_up = session.cluster_size > 1 and session.status == Status.RUNNING_DEGRADED
    if session.target != "RUNNING" or given_up or Status(session.status) in FINAL:
        await change.move_kernel(session, kernel, Status.TERMINATED, kernel.status_info)
    elif done:
        await change.move_kernel(session, kernel, Status.TERMINATED, why, reason="task-finished")
    else:
        asked = session.status_data.get("retry")
        told = asked["message"] if asked else why
        await retries.back(change, session, kernel, told, asked["cause"] if asked else cause)


async def _ended_alone(
    change: Change,
    session: SessionRow,
    kernels: Sequence[KernelRow],
    kernel: KernelRow,
    why: str,
    cause: str,
) -> None:
    """A running kernel ended unasked: another attempt, or the end of its session."""
    lost = cause == retries.NODE_LOST and retries.policy_of(session) is None
    if lost and losses.starts_again(session):
        await retries.requeue(
            change, session, kernels, cause, f"{why}: starting again", ended=kernel
        )
    elif not await retries.try_again(change, session, kernels, cause, why, ended=kernel):
        reason = "task-finished" if session.type == "batch" else steps.SELF_TERMINATED
        told = retries.exhausted(session, cause, why)
        data = {"attempt": retries.attempt_of(session), "cause": cause}
        await change.move_kernel(session, kernel, Status.TERMINATED, told, reason=reason, data=data)


def _why(kernel: KernelRow, report: KernelReport) -> str:
    """A sentence for the owner."""
    code = "" if report.exit_code is None else f" (exit code {report.exit_code})"
    if report.failure == "oom-killed":
        memory = human_amount("mem", int(kernel.slots.get("mem", 0)))
        return f"it was killed because it used more than its {memory}{code}"
    if report.failure == "removed":
        return "its container was removed by somebody else"
    if report.failure == "engine-restarted":
        return "the container engine of its node was restarted"
    if report.failure == "fenced":
        return "its node could not reach the manager and ended it"
    if report.failure == "start-timeout":
        return f"it did not answer on its port in time{code}"
    if report.failure in ("create-failed", REFUSED):
        return report.progress.strip()[:TEXT] or "its container could not be created"
    return f"its main process ended{code}"


def _last_words(report: KernelReport) -> str:
    lines = [line for line in report.log_tail.strip().splitlines() if line.strip()]
    return "" if not lines else ". Last lines of its output:\n" + "\n".join(lines[-10:])[-TEXT:]
