"""Learned run times: how long the next batch session of an owner with an image will probably take.

The estimate is that of round-trip times in TCP (RFC 6298): a moving mean plus four times the moving mean
deviation, so that steady jobs are trusted and erratic ones get room.
"""

from __future__ import annotations

import uuid

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from spawner.sessions.tables import RunTimeRow

ALPHA, BETA = 1 / 8, 1 / 4
ENOUGH = 3
"""Runs after which the estimate is used."""
ROOM = 4.0

RunTimes = dict[tuple[str, str], float]
"""Seconds by owner id and image."""


async def learn(db: AsyncSession, owner_id: uuid.UUID, image: str, seconds: float) -> None:
    """Take a run that came to its own end into account."""
    row = await db.get(RunTimeRow, (owner_id, image), with_for_update=True, populate_existing=True)
    if row is None:
        first = RunTimeRow(
            owner_id=owner_id, image=image, samples=1, mean=seconds, deviation=seconds / 2
        )
        db.add(first)
        return
    row.deviation += BETA * (abs(seconds - row.mean) - row.deviation)
    row.mean += ALPHA * (seconds - row.mean)
    row.samples += 1


def estimate(row: RunTimeRow) -> float:
    """Seconds within which nearly all runs of this kind end."""
    return row.mean + ROOM * row.deviation


async def read_run_times(db: AsyncSession) -> RunTimes:
    """All estimates that rest on enough runs."""
    rows = await db.scalars(select(RunTimeRow).where(RunTimeRow.samples >= ENOUGH))
    return {(str(row.owner_id), row.image): estimate(row) for row in rows}
