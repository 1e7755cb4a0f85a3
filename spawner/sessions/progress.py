"""The way of a session to RUNNING, told step by step from its history."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator
from functools import partial

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from spawner.sessions import queries
from spawner.sessions.events import EventBus
from spawner.sessions.requests import ProgressEvent
from spawner.sessions.states import FINAL, Status
from spawner.sessions.tables import HistoryRow, KernelRow, SessionRow
from store.database import Store, StoreError

PERCENT: dict[Status, int] = {
    Status.PENDING: 5,
    Status.SCHEDULED: 20,
    Status.PREPARING: 35,
    Status.CREATING: 65,
    Status.RUNNING: 100,
    Status.RUNNING_DEGRADED: 100,
    Status.RESTARTING: 35,
}
"""How far along each status is; statuses on the way out count as 100."""
UP = (Status.RUNNING, Status.RUNNING_DEGRADED)
LOOK_AGAIN = 15.0
"""Seconds after which a follower looks by itself, should a wake-up get lost."""
RETRY = 1.0
TELLING = ("session", "progress")

log = logging.getLogger(__name__)


def percent(status: Status | str) -> int:
    """How far along a session of ``status`` is."""
    return PERCENT.get(Status(status), 100)


async def follow(
    store: Store, bus: EventBus, session_id: uuid.UUID, after: int = 0
) -> AsyncIterator[ProgressEvent]:
    """Steps after ``after``, then new ones as they come; ends at RUNNING or when the session ended.

    Never raises to its reader: when the database is away, it waits and looks again.
    """
    last, quiet = after, 0.0
    with bus.subscribe(lambda event: event.session_id == session_id) as subscription:
        while True:
            try:
                session, kernel, rows = await store.read(
                    partial(_look, session_id=session_id, after=last)
                )
            except StoreError as error:
                quiet = RETRY
                log.warning("progress of session %s: %s", session_id, error)
            else:
                quiet = LOOK_AGAIN
                for row in rows:
                    last = row.id
                    yield ProgressEvent(
                        row.id, row.at, row.to_status, row.cause, percent(row.to_status)
                    )
                if session is None or kernel is None:
                    return
                status = Status(session.status)
                if status in UP or status in FINAL:
                    yield _end(session, kernel, last)
                    return
            try:
                if await subscription.get(quiet) is None:
                    return
            except TimeoutError:
                continue
            await asyncio.sleep(0)  # let a burst of events become one look


def _end(session: SessionRow, kernel: KernelRow, last: int) -> ProgressEvent:
    at = session.terminated_at or session.started_at or session.created_at
    url = kernel.url if Status(session.status) in UP else None
    return ProgressEvent(
        last, at, session.status, session.status_info, 100, True, url, kernel.exit_code
    )


async def _look(
    db: AsyncSession, session_id: uuid.UUID, after: int
) -> tuple[SessionRow | None, KernelRow | None, list[HistoryRow]]:
    session = await db.get(SessionRow, session_id)
    kernel = await db.scalar(
        select(KernelRow).where(
            KernelRow.session_id == session_id, KernelRow.cluster_role == "main"
        )
    )
    rows = [row for row in await queries.history(db, session_id, after) if row.kind in TELLING]
    return session, kernel, rows
