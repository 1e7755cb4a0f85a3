"""Runs of kernels that ended, with their output; and runs that were given up together with their node.

The output of every run is kept, compressed, apart from the kernel's row, which is read often. What all
runs of a session keep is bounded: the oldest give theirs up first.
"""

from __future__ import annotations

import datetime as dt
import uuid
import zlib
from collections.abc import Collection

from sqlalchemy import delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from spawner.agent.logs import MAX_LOG
from spawner.agent.protocol import KernelReport
from spawner.sessions import ledger
from spawner.sessions.retries import NODE_LOST, attempt_of
from spawner.sessions.states import Status
from spawner.sessions.tables import KernelRow, LostRunRow, RunRow, SessionRow
from spawner.sessions.transitions import Change

KEPT_BYTES = 8 * 1024 * 1024
"""Compressed output that all runs of one session keep together."""
Run = tuple[uuid.UUID, int]
"""Kernel and epoch."""


async def keep(
    change: Change,
    session: SessionRow,
    kernel: KernelRow,
    report: KernelReport,
    cause: str,
    message: str,
) -> None:
    """Write down how a run ended and what it printed; harmless when it was told before."""
    if await change.db.get(RunRow, (kernel.id, report.epoch)) is not None:
        return
    change.db.add(
        RunRow(
            kernel_id=kernel.id,
            epoch=report.epoch,
            session_id=session.id,
            attempt=attempt_of(session),
            cause=cause,
            message=message,
            exit_code=report.exit_code,
            started_at=kernel.started_at,
            ended_at=_end_of(report, kernel, change.now),
            log=_log(report),
        )
    )
    await change.db.flush()
    await _bound(change.db, session.id)


def _end_of(report: KernelReport, kernel: KernelRow, now: dt.datetime) -> dt.datetime:
    """When a run ended: by its node, if that is neither before its start nor still to come."""
    if report.ended_at is None:
        return now
    told = dt.datetime.fromtimestamp(report.ended_at, dt.UTC)
    return min(now, max(told, kernel.started_at or told))


async def replace(
    change: Change, session: SessionRow, kernel: KernelRow, cause: str, message: str
) -> None:
    """Write down that another run takes the place of one that still runs; its output comes when it ended."""
    await keep(change, session, kernel, _unheard(kernel), cause, message)


async def replaced(change: Change, kernel: KernelRow, report: KernelReport) -> None:
    """A run that another took the place of ended: keep what it printed."""
    run = await change.db.get(RunRow, (kernel.id, report.epoch))
    if run is not None and run.log is None:
        run.exit_code, run.ended_at = report.exit_code, change.now
        await _complete(change.db, run, report)


async def _complete(db: AsyncSession, run: RunRow, report: KernelReport) -> None:
    """The output of a run that was written down before its node told of its end."""
    run.log = _log(report)
    await db.flush()
    await _bound(db, run.session_id)


async def _bound(db: AsyncSession, session_id: uuid.UUID) -> None:
    """Drop the oldest output until the session keeps no more than it may."""
    query = (
        select(RunRow.kernel_id, RunRow.epoch, func.length(RunRow.log))
        .where(RunRow.session_id == session_id, RunRow.log.is_not(None))
        .order_by(RunRow.ended_at.desc(), RunRow.epoch.desc())
    )
    total = 0
    for kernel_id, epoch, size in (await db.execute(query)).all():
        total += size
        if total > KEPT_BYTES:
            await db.execute(
                update(RunRow)
                .where(RunRow.kernel_id == kernel_id, RunRow.epoch == epoch)
                .values(log=None)
            )


async def of_session(db: AsyncSession, session_id: uuid.UUID) -> list[RunRow]:
    """Ended runs of a session without their output, oldest first."""
    query = (
        select(RunRow)
        .where(RunRow.session_id == session_id)
        .order_by(RunRow.attempt, RunRow.ended_at, RunRow.epoch)
    )
    rows = list(await db.scalars(query))
    for row in rows:
        db.expunge(row)
    return rows


async def output(db: AsyncSession, kernel_id: uuid.UUID, attempt: int | None = None) -> str | None:
    """What a run of ``kernel_id`` printed (of ``attempt``, or the last one); None if there is none."""
    query = select(RunRow).where(RunRow.kernel_id == kernel_id)
    if attempt is not None:
        query = query.where(RunRow.attempt == attempt)
    row = (await db.scalars(query.order_by(RunRow.epoch.desc()).limit(1))).one_or_none()
    if row is None:
        return None
    return "(this output is not kept any more)" if row.log is None else unpack(row.log)


def _log(report: KernelReport) -> bytes | None:
    tail = report.log_tail
    return report.log or (zlib.compress(tail.encode()) if tail else None)


def unpack(log: bytes) -> str:
    """The text of a kept log; a broken one says so, and none gets larger than ``MAX_LOG``."""
    try:
        return zlib.decompressobj().decompress(log, MAX_LOG).decode("utf-8", "replace")
    except zlib.error:
        return "(the log that the node sent cannot be read)"


async def leave(change: Change, session: SessionRow, kernel: KernelRow, cause: str) -> None:
    """Give a run up with its node, and put its kernel back to the queue.

    What the run holds stays accounted: the node may still run it.
    """
    if kernel.agent_id is None or kernel.status == Status.PENDING:
        return
    if kernel.status != Status.SCHEDULED:  # a node has never heard of those
        change.db.add(
            LostRunRow(
                kernel_id=kernel.id,
                epoch=kernel.epoch,
                agent_id=kernel.agent_id,
                session_id=session.id,
                lost_at=change.now,
            )
        )
        await keep(change, session, kernel, _unheard(kernel), NODE_LOST, cause)
        if kernel.status != Status.TERMINATING:
            await change.move_kernel(session, kernel, Status.TERMINATING, cause)
    await change.move_kernel(session, kernel, Status.PENDING, cause)


async def lost(db: AsyncSession, agent_id: str) -> set[tuple[str, int]]:
    """Runs (kernel id, epoch) of ``agent_id`` that were given up and not heard to be gone."""
    rows = await db.execute(
        select(LostRunRow.kernel_id, LostRunRow.epoch).where(LostRunRow.agent_id == agent_id)
    )
    return {(str(kernel_id), epoch) for kernel_id, epoch in rows}


async def heard(change: Change, agent_id: str, kernel_id: uuid.UUID, report: KernelReport) -> bool:
    """Whether ``report`` is of a run that was given up; when it is gone, its devices are free."""
    row = await change.db.get(LostRunRow, (kernel_id, report.epoch, agent_id))
    if row is None:
        return False
    if report.status == Status.TERMINATED:
        run = await change.db.get(RunRow, (kernel_id, report.epoch))
        if run is not None:
            await _complete(change.db, run, report)
        await _gone(change, row)
    return True


async def missing(change: Change, agent_id: str, present: Collection[Run]) -> None:
    """After a whole report: runs that were given up and are not on their node any more are gone."""
    query = select(LostRunRow).where(LostRunRow.agent_id == agent_id)
    for row in (await change.db.scalars(query)).all():
        if (row.kernel_id, row.epoch) not in present:
            await _gone(change, row)


def _unheard(kernel: KernelRow) -> KernelReport:
    """The end of a run of which its node told nothing."""
    return KernelReport(
        str(kernel.id), str(kernel.session_id), kernel.epoch, Status.TERMINATED.value
    )


async def _gone(change: Change, row: LostRunRow) -> None:
    key = (row.kernel_id, row.epoch, row.agent_id)
    await change.db.execute(
        delete(LostRunRow)
        .where(
            LostRunRow.kernel_id == row.kernel_id,
            LostRunRow.epoch == row.epoch,
            LostRunRow.agent_id == row.agent_id,
        )
        .execution_options(synchronize_session=False)
    )
    change.db.expunge(row)
    await ledger.free_run(change.db, *key, change.now)
    change.agents.add(key[2])
    change.schedule = True
