"""History is bounded: by number while a session lives, by age afterwards; its transitions stay."""

from __future__ import annotations

import datetime as dt
import uuid
from collections import Counter

import pytest
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncSession

from spawner.sessions import retention
from spawner.sessions.states import Status
from spawner.sessions.tables import HistoryRow, SessionRow
from tests.harness.plane import Rig, until

KEEP = dt.timedelta(days=90)


async def crowd(plane: Rig, session_id: uuid.UUID, kind: str, count: int) -> None:
    """As many rows of a kind as a session gathers in a long wait."""
    row = {
        "kind": kind,
        "object_id": str(session_id),
        "session_id": session_id,
        "at": plane.clock(),
        "from_status": "PENDING",
        "to_status": "PENDING",
        "request_id": "",
        "data": {},
    }
    rows = [{**row, "cause": str(number)} for number in range(count)]

    async def work(db: AsyncSession) -> None:
        await db.execute(insert(HistoryRow), rows)

    await plane.store.write(work)


async def kept(plane: Rig) -> Counter[str]:
    """Rows by kind."""
    kinds = await plane.store.read(lambda db: db.scalars(select(HistoryRow.kind)))
    return Counter(kinds)


async def prune(plane: Rig) -> int:
    return await plane.store.write(lambda db: retention.prune(db, plane.clock(), KEEP))


@pytest.mark.parametrize("kind", retention.PASSING)
async def test_the_newest_of_a_living_session_are_kept(plane: Rig, kind: str) -> None:
    await plane.agent()
    ada = await plane.user()
    detail = await plane.create(ada, cpu="900")

    async def why() -> str:
        return (await plane.plane.sessions.get(ada, str(detail.session.id))).session.status_info

    await until(why, lambda told: told.startswith("cannot ever start"))  # the last word on it
    await crowd(plane, detail.session.id, kind, retention.MOST + 7)
    assert await prune(plane) >= 7
    assert await prune(plane) == 0
    assert (await kept(plane))[kind] == retention.MOST
    oldest = select(HistoryRow.cause).where(HistoryRow.kind == kind).order_by(HistoryRow.id)
    assert int(await plane.store.read(lambda db: db.scalar(oldest.limit(1))) or 0) >= 6


async def test_only_the_transitions_of_what_ended_long_ago_are_kept(plane: Rig) -> None:
    await plane.agent()
    ada = await plane.user()
    detail = await plane.run(ada)
    await plane.destroy(ada, detail)
    await plane.wait(detail, Status.TERMINATED)
    await crowd(plane, detail.session.id, "attempt", 3)
    before = await kept(plane)
    assert await prune(plane) == 0
    plane.clock.forward(KEEP.total_seconds() + 60)
    await prune(plane)
    after = await kept(plane)
    assert (after["attempt"], after["progress"], after["agent"]) == (0, 0, 0)
    assert (after["session"], after["kernel"]) == (before["session"], before["kernel"])
    row = await plane.store.read(lambda db: db.get_one(SessionRow, detail.session.id))
    assert row.terminated_at is not None
    await plane.validate()
