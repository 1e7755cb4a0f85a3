"""Writes: shared commits, works that fail alone, callers that go away, transactions that are lost."""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, delete, event, select, text
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import AsyncSession

from store.database import CommitFailed, Store, StoreClosed, StoreUnavailable
from tests.unit.store.notes import NoteRow, make_table

Work = Callable[[AsyncSession], Awaitable[NoteRow]]


def adding(name: str) -> Work:
    async def work(session: AsyncSession) -> NoteRow:
        row = NoteRow(name=name)
        session.add(row)
        return row

    return work


class Refused(Exception):
    pass


def refusing(name: str, *, flushed: bool = True) -> Work:
    async def work(session: AsyncSession) -> NoteRow:
        session.add(NoteRow(name=name))
        if flushed:
            await session.flush()
        raise Refused(name)

    return work


async def names(store: Store) -> set[str]:
    async def work(session: AsyncSession) -> set[str]:
        return set((await session.scalars(select(NoteRow.name))).all())

    return await store.read(work)


def on_disk(store: Store) -> set[str]:
    assert store.path is not None
    with sqlite3.connect(store.path) as other:
        rows = {name for (name,) in other.execute("SELECT name FROM notes")}
    other.close()
    return rows


async def start_afresh(session: AsyncSession) -> None:
    await make_table(session)
    await session.execute(delete(NoteRow))


class Blocked:
    """A work that holds the writer until it is released."""

    def __init__(self, store: Store) -> None:
        self.began, self.release = asyncio.Event(), asyncio.Event()
        self.task = asyncio.create_task(store.write(self._work))

    async def _work(self, session: AsyncSession) -> None:
        self.began.set()
        await self.release.wait()


async def test_what_was_written_is_on_disk_when_write_returns(store: Store) -> None:
    row = await store.write(adding("a"))
    assert on_disk(store) == {"a"}
    assert row.name == "a"


async def test_a_work_that_fails_takes_back_itself_only(store: Store) -> None:
    await store.write(adding("taken"))
    works = (adding("a"), refusing("b"), adding("taken"), adding("c"), refusing("d", flushed=False))
    answers = await asyncio.gather(*map(store.write, works), return_exceptions=True)
    kinds = [type(answer) for answer in answers]
    assert kinds == [NoteRow, Refused, IntegrityError, NoteRow, Refused]
    assert on_disk(store) == {"taken", "a", "c"}
    first = answers[0]
    assert isinstance(first, NoteRow)
    assert (first.name, first.text) == ("a", "")  # still loaded after its neighbours failed


async def test_works_that_wait_share_one_commit(store: Store) -> None:
    commits = []

    def count(connection: Connection) -> None:
        commits.append(connection)

    event.listen(Engine, "commit", count)
    try:
        async with asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(store.write(adding(f"n{number}")))
    finally:
        event.remove(Engine, "commit", count)
    assert len(on_disk(store)) == 20
    assert len(commits) == 1


async def test_a_work_may_use_savepoints_of_its_own(store: Store) -> None:
    async def work(session: AsyncSession) -> None:
        session.add(NoteRow(name="kept"))
        with pytest.raises(IntegrityError):
            async with session.begin_nested():
                session.add_all([NoteRow(name="twice"), NoteRow(name="kept")])
        session.add(NoteRow(name="after"))

    await store.write(work)
    assert on_disk(store) == {"kept", "after"}


def test_any_mix_keeps_exactly_the_works_that_succeeded(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'notes.sqlite'}")

    async def scenario(kinds: list[str]) -> None:
        await store.write(start_afresh)
        works = [
            {
                "add": adding(f"n{number}"),
                "refuse": refusing(f"n{number}"),
                "refuse-unflushed": refusing(f"n{number}", flushed=False),
                "same": adding("same"),
            }[kind]
            for number, kind in enumerate(kinds)
        ]
        answers = await asyncio.gather(*map(store.write, works), return_exceptions=True)
        kept = [answer.name for answer in answers if isinstance(answer, NoteRow)]
        expected = {f"n{n}" for n, kind in enumerate(kinds) if kind == "add"}
        expected |= {"same"} & set(kinds)
        assert sorted(kept) == sorted(expected) == sorted(await names(store))

    with asyncio.Runner() as runner:
        runner.run(store.open())
        mixes = st.lists(st.sampled_from(["add", "refuse", "refuse-unflushed", "same"]), max_size=8)
        given(mixes)(
            settings(deadline=None, max_examples=8)(lambda kinds: runner.run(scenario(kinds)))
        )()
        runner.run(store.close())


async def test_a_caller_cancelled_while_waiting_changes_nothing(store: Store) -> None:
    blocked = Blocked(store)
    await blocked.began.wait()
    waiting = asyncio.create_task(store.write(adding("never")))
    beside = asyncio.create_task(store.write(adding("beside")))
    await asyncio.sleep(0)
    waiting.cancel()
    blocked.release.set()
    await asyncio.gather(blocked.task, beside)
    assert waiting.cancelled()
    assert on_disk(store) == {"beside"}


async def test_a_caller_cancelled_while_its_work_runs_does_not_stop_it(store: Store) -> None:
    began, release = asyncio.Event(), asyncio.Event()

    async def work(session: AsyncSession) -> None:
        session.add(NoteRow(name="kept"))
        began.set()
        await release.wait()

    caller = asyncio.create_task(store.write(work))
    await began.wait()
    caller.cancel()
    release.set()
    await store.write(adding("next"))
    assert caller.cancelled()
    assert on_disk(store) == {"kept", "next"}


async def test_a_work_that_cancels_itself_fails_alone(store: Store) -> None:
    async def work(session: AsyncSession) -> None:
        session.add(NoteRow(name="gone"))
        raise asyncio.CancelledError

    cancelled, _ = await asyncio.gather(
        store.write(work), store.write(adding("kept")), return_exceptions=True
    )
    assert isinstance(cancelled, asyncio.CancelledError)
    assert on_disk(store) == {"kept"}


async def test_a_write_inside_a_write_is_refused_rather_than_deadlocked(store: Store) -> None:
    async def work(session: AsyncSession) -> None:
        await store.write(adding("inner"))

    with pytest.raises(RuntimeError, match="wait for itself"):
        await store.write(work)
    await store.write(adding("after"))
    assert on_disk(store) == {"after"}


async def test_a_lost_transaction_fails_all_its_works_and_keeps_none(store: Store) -> None:
    """What SQLite does by itself on a full disk: the transaction ends under the works."""

    async def losing(session: AsyncSession) -> None:
        await session.execute(text("ROLLBACK"))

    answers = await asyncio.gather(
        *(store.write(work) for work in (adding("before"), losing, adding("after"))),
        return_exceptions=True,
    )
    assert [type(answer) for answer in answers] == [StoreUnavailable] * 3
    assert on_disk(store) == set()
    await store.write(adding("later"))
    assert on_disk(store) == {"later"}


async def test_a_failed_commit_is_told_to_all_its_works(store: Store) -> None:
    """A deferred foreign key is only looked at by COMMIT."""

    async def tables(session: AsyncSession) -> None:
        await session.execute(
            text(
                "CREATE TABLE child (note TEXT REFERENCES notes(name) DEFERRABLE INITIALLY DEFERRED)"
            )
        )

    async def orphan(session: AsyncSession) -> None:
        await session.execute(text("INSERT INTO child VALUES ('nobody')"))

    await store.write(tables)
    answers = await asyncio.gather(
        store.write(adding("a")), store.write(orphan), return_exceptions=True
    )
    assert [type(answer) for answer in answers] == [CommitFailed] * 2
    assert answers[0] is not answers[1]
    assert "FOREIGN KEY" in str(answers[0])
    assert on_disk(store) == set()
    await store.write(adding("later"))
    assert on_disk(store) == {"later"}


async def test_a_locked_database_is_unavailable_and_then_works_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("store.engine.BUSY_TIMEOUT_MS", 20)
    store = Store(f"sqlite:///{tmp_path / 'notes.sqlite'}")
    await store.open()
    await store.write(make_table)
    assert store.path is not None
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="locked"):
        await store.write(adding("a"))
    assert await names(store) == set()  # readers are not held up
    other.execute("ROLLBACK")
    other.close()
    await store.write(adding("a"))
    assert await names(store) == {"a"}
    await store.close()


async def test_close_finishes_what_waits_and_refuses_the_rest(store: Store) -> None:
    blocked = Blocked(store)
    await blocked.began.wait()
    waiting = [asyncio.create_task(store.write(adding(f"n{n}"))) for n in range(3)]
    await asyncio.sleep(0)
    closing = asyncio.create_task(store.close())
    await asyncio.sleep(0)
    with pytest.raises(StoreClosed):
        await store.write(adding("late"))
    blocked.release.set()
    await asyncio.gather(closing, *waiting)
    assert on_disk(store) == {"n0", "n1", "n2"}
    with pytest.raises(StoreClosed):
        await names(store)
    await store.close()


async def test_a_store_opens_again_after_it_was_closed(store: Store) -> None:
    await store.close()
    await store.open()
    await store.write(adding("a"))
    assert on_disk(store) == {"a"}


async def test_a_read_cannot_write(store: Store) -> None:
    async def work(session: AsyncSession) -> None:
        session.add(NoteRow(name="a"))
        await session.flush()

    with pytest.raises(OperationalError, match="readonly"):
        await store.read(work)
    assert on_disk(store) == set()


async def test_a_read_sees_one_snapshot_however_long_it_takes(store: Store) -> None:
    async def work(session: AsyncSession) -> tuple[int, int]:
        before = len((await session.scalars(select(NoteRow.name))).all())
        await store.write(adding("between"))
        return before, len((await session.scalars(select(NoteRow.name))).all())

    assert await store.read(work) == (0, 0)
    assert await names(store) == {"between"}
