"""A reader that goes away in the middle of a statement leaves no connection behind."""

import asyncio
import threading

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from store.database import Store


def connections() -> set[threading.Thread]:
    """Threads of open SQLite connections, those of other stores in this process included."""
    return {each for each in threading.enumerate() if "_connection_worker" in each.name}


async def test_a_cancelled_read_finishes_by_itself(store: Store) -> None:
    inside, finished = asyncio.Event(), asyncio.Event()
    before = connections()

    async def work(session: AsyncSession) -> None:
        inside.set()
        for _ in range(3):
            await session.execute(text("SELECT 1"))
        finished.set()

    reading = asyncio.create_task(store.read(work))
    await inside.wait()
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    assert reading.cancelled()
    assert not finished.is_set()
    await store.close()
    assert finished.is_set()
    assert connections() - before == set()
