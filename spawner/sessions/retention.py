"""How much history is kept: all transitions of sessions and kernels; of everything else what somebody may ask for.

Attempts to schedule and messages to those who wait are bounded for each session while it lives, and
forgotten some time after its end; what happened to agents is forgotten by age.
"""

from __future__ import annotations

import datetime as dt
from typing import Any, cast

from sqlalchemy import ColumnElement, CursorResult, delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from spawner.sessions.tables import HistoryRow, SessionRow
from spawner.sessions.telling import ATTEMPT

MOST = 200
"""Attempts, messages, and callbacks given up, of one session that are kept: the newest."""
PASSING = (ATTEMPT, "progress", "callback")
"""Kinds of rows that no transition needs."""
AGENT = "agent"


async def prune(db: AsyncSession, now: dt.datetime, keep: dt.timedelta) -> int:
    """Forget what is more than ``MOST`` of a session, or older than ``keep``; returns the rows deleted."""
    before = now - keep
    over = select(SessionRow.id).where(SessionRow.terminated_at < before)
    gone = await _delete(db, HistoryRow.kind.in_(PASSING), HistoryRow.session_id.in_(over))
    gone += await _delete(db, HistoryRow.kind == AGENT, HistoryRow.at < before)
    crowded = await db.execute(
        select(HistoryRow.kind, HistoryRow.object_id)
        .where(HistoryRow.kind.in_(PASSING))
        .group_by(HistoryRow.kind, HistoryRow.object_id)
        .having(func.count() > MOST)
    )
    for kind, object_id in crowded.all():
        mine = (HistoryRow.kind == kind, HistoryRow.object_id == object_id)
        newest = select(HistoryRow.id).where(*mine).order_by(HistoryRow.id.desc())
        last = await db.scalar(newest.offset(MOST).limit(1))
        gone += await _delete(db, *mine, HistoryRow.id <= last)
    return gone


async def _delete(db: AsyncSession, *which: ColumnElement[bool]) -> int:
    statement = delete(HistoryRow).where(*which).execution_options(synchronize_session=False)
    return cast("CursorResult[Any]", await db.execute(statement)).rowcount
