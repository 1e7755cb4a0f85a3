"""The lock of several managers on one SQLite file."""

import asyncio
from pathlib import Path

import pytest

from store.database import Store
from store.leadership import FileLeadership


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "perijove.sqlite"


def lock(database: Path, name: str = "scheduler") -> FileLeadership:
    return FileLeadership(database, name, check_seconds=0.01)


async def test_one_at_a_time_and_names_are_apart(database: Path) -> None:
    first, second, other = lock(database), lock(database), lock(database, "janitor")
    assert await first.try_acquire()
    assert not await second.try_acquire()
    assert await other.try_acquire()
    assert (first.held, second.held) == (True, False)
    await first.release()
    assert not first.held
    assert await second.try_acquire()
    for each in (second, other):
        await each.release()


async def test_the_next_in_line_gets_it(database: Path) -> None:
    first, second = lock(database), lock(database)
    async with first:
        waiting = asyncio.create_task(second.acquire())
        assert not (await asyncio.wait([waiting], timeout=0.03))[0]
    await asyncio.wait_for(waiting, 5)
    assert second.held
    await second.release()


async def test_a_holder_learns_that_its_file_was_replaced(database: Path) -> None:
    first, second = lock(database), lock(database)
    await first.acquire()
    first.path.unlink()
    await second.acquire()
    await asyncio.wait_for(first.lost.wait(), 5)
    assert (first.held, second.held) == (False, True)
    await first.release()
    assert not await first.try_acquire()
    await second.release()


async def test_a_store_makes_it_beside_its_file(store: Store) -> None:
    assert store.path is not None
    async with store.leadership("scheduler") as leadership:
        assert leadership.held
        assert store.path.with_name("notes.sqlite.scheduler.lock").exists()


@pytest.mark.parametrize("name", ["", "Scheduler", "../x", "a b"])
def test_names_are_checked(database: Path, name: str) -> None:
    with pytest.raises(ValueError, match="leadership name"):
        lock(database, name)
