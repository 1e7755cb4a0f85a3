"""The one database: reads see a snapshot, writes share commits and are durable when they return.

All writes of a process go through one task. It takes every work that waits, runs each in a SAVEPOINT of one
transaction, commits once and only then answers: many writers cost one disk flush together. A work that fails
takes back its own changes and nobody else's.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from store.engine import (
    StoreError,
    StoreUnavailable,
    brief,
    create_private_file,
    parse_url,
    reading_engine,
    sqlite_path,
    transaction,
    writing_engine,
)
from store.leadership import Leadership, leadership_lock

__all__ = ["CommitFailed", "Store", "StoreClosed", "StoreError", "StoreUnavailable"]

T = TypeVar("T")
Work = Callable[[AsyncSession], Awaitable[T]]

MAX_BATCH = 200
"""Works in one commit at most, so that the first of a flood does not wait for the last."""

_IN_THE_WAY = ("40P01", "40001")
"""PostgreSQL's words for a deadlock, and for a transaction that another one overtook."""

log = logging.getLogger(__name__)


class StoreClosed(StoreError):
    """The store is not open (not yet, or no more)."""


class CommitFailed(StoreUnavailable):
    """The database did not confirm a commit. Over a network the change may have been made all the same."""


@dataclass(slots=True)
class _Pending:
    """A work that waits for the writer, and the promise its caller waits for."""

    work: Work[Any]
    future: asyncio.Future[Any]


@dataclass(slots=True)
class _Done:
    """A work that ran: its result, or its own error, waits for the commit.

    Errors wait too: a work that failed over a row of the same batch (a name taken a moment ago) must not
    send its caller to look for that row before it can be seen.
    """

    future: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None


class Store:
    """The database behind ``url``; one per process and event loop."""

    def __init__(self, url: str) -> None:
        self.url = parse_url(url)
        self.path = sqlite_path(self.url)
        # They connect when used first, and keep their compiled statements while the store is closed.
        self._writer, self._reader = writing_engine(self.url), reading_engine(self.url)
        self._queue: deque[_Pending] = deque()
        self._arrived = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        self._reads: set[asyncio.Task[Any]] = set()

    async def open(self) -> None:
        """Connect and start the writer; a SQLite file is created (empty, 0600) where there is none.

        Raises ``StoreUnavailable`` when the database cannot be reached. The schema is not checked here:
        that is ``store.schema.check``.
        """
        if self._task is not None:
            return
        if self.path is not None:
            await asyncio.to_thread(create_private_file, self.path)
        self._closing = False
        try:
            for engine in (self._writer, self._reader):
                async with transaction(engine) as connection:
                    await connection.execute(text("SELECT 1"))
        except BaseException:
            await self._dispose()
            raise
        self._task = asyncio.create_task(self._write_forever(), name="store-writer")

    async def close(self) -> None:
        """Refuse new works, finish those that wait, disconnect. Harmless when repeated."""
        self._closing = True
        self._arrived.set()
        if self._task is not None:
            await asyncio.wait([self._task, *self._reads])
            task, self._task = self._task, None
            await self._dispose()
            if not task.cancelled():
                task.result()  # a writer that ended by a fault of its own says so here

    async def read(self, work: Work[T]) -> T:
        """Run ``work`` in a transaction that sees one snapshot and cannot write.

        Rows stay usable after the session is gone, as far as they were loaded. Raises ``StoreUnavailable``.
        A caller that is cancelled does not interrupt the work: a driver that is torn out of a statement
        leaks its connection, and with it a read lock and a thread.
        """
        if self._task is None or self._closing:
            raise StoreClosed("the store is not open")
        task = asyncio.create_task(self._read(self._reader, work))
        self._reads.add(task)
        task.add_done_callback(self._read_done)
        return await asyncio.shield(task)

    def _read_done(self, task: asyncio.Task[Any]) -> None:
        self._reads.discard(task)
        if not task.cancelled():
            task.exception()  # seen by the caller, unless that was cancelled and does not care

    @staticmethod
    async def _read(engine: AsyncEngine, work: Work[T]) -> T:
        async with transaction(engine) as connection:
            session = AsyncSession(connection, expire_on_commit=False, autoflush=False)
            try:
                return await work(session)
            except Exception as error:
                if connection.invalidated:
                    raise StoreUnavailable(f"the database went away: {brief(error)}") from error
                raise
            finally:
                await session.close()

    async def write(self, work: Work[T]) -> T:
        """Run ``work`` in its own SAVEPOINT; when this returns, its changes are on disk.

        ``work`` raises: its changes are taken back and its error is raised here, after the commit that
        shows what it ran into. The commit fails: all works of that commit raise ``CommitFailed``. A
        caller that is cancelled before its work began changes nothing; one that is cancelled later does
        not stop the work. Nothing is retried.
        A work touches the database only: while it runs, all other writers wait.
        """
        if self._task is None or self._task.done() or self._closing:
            raise StoreClosed("the store is not open")
        if asyncio.current_task() is self._task:
            raise RuntimeError(
                "a work that writes asked for another write: it would wait for itself"
            )
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._queue.append(_Pending(work, future))
        self._arrived.set()
        return await future

    def leadership(self, name: str) -> Leadership:
        """An advisory lock: of all managers on this database, one at a time holds ``name``."""
        return leadership_lock(self.url, name)

    async def _write_forever(self) -> None:
        """The writer: one batch after the other until the store closes and the queue is empty."""
        batch: list[_Pending] = []
        try:
            while True:
                self._arrived.clear()
                batch = self._next_batch()
                if batch:
                    await self._write_batch(batch)
                elif self._closing:
                    return
                else:
                    await self._arrived.wait()
        finally:
            for pending in [*batch, *self._queue]:
                _fail(pending.future, StoreClosed("the store closed before it could write this"))
            self._queue.clear()

    def _next_batch(self) -> list[_Pending]:
        batch: list[_Pending] = []
        while self._queue and len(batch) < MAX_BATCH:
            pending = self._queue.popleft()
            if not pending.future.cancelled():
                batch.append(pending)
        return batch

    async def _write_batch(self, batch: list[_Pending]) -> None:
        """One transaction for all of ``batch``; every future is settled when this returns."""
        done: list[_Done] = []
        committing = False
        try:
            async with transaction(self._writer) as connection:
                try:
                    for pending in batch:
                        if not pending.future.cancelled():
                            await self._run(connection, pending, done)
                            await _demand_alive(connection)
                    committing = True
                    await connection.commit()
                except BaseException:
                    # After a failed COMMIT the driver may still be inside the transaction: begin afresh.
                    await connection.invalidate()
                    raise
        except Exception as error:  # noqa: BLE001 - handed to every caller of this commit
            log.error("a commit of %d writes failed: %s", len(batch), brief(error))
            for pending in batch:
                _fail(pending.future, _failure(error, committing))
            return
        for each in done:
            if each.error is not None:
                _fail(each.future, each.error)
            elif not each.future.done():
                each.future.set_result(each.result)

    async def _run(self, connection: AsyncConnection, pending: _Pending, done: list[_Done]) -> None:
        """Run one work in a SAVEPOINT of its own; its failure settles its own future only.

        Raises ``StoreUnavailable`` when the failure took the whole transaction along: SQLite ends a
        transaction by itself on a full disk or an I/O error, and a lost server ends it as well. What the
        works before it did is then gone too, and those after it must not run.
        """
        session = AsyncSession(
            connection, expire_on_commit=False, join_transaction_mode="create_savepoint"
        )
        try:
            result = await pending.work(session)
            await session.commit()
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            await _demand_alive(connection, error)
            await session.rollback()
            pending.future.cancel()
        except Exception as error:  # noqa: BLE001 - handed to the caller of this work
            await _demand_alive(connection, error)
            await session.rollback()
            done.append(_Done(pending.future, error=_told(error)))
        else:
            done.append(_Done(pending.future, result))
        finally:
            await session.close()

    async def _dispose(self) -> None:
        for engine in (self._writer, self._reader):
            await engine.dispose()


def _failure(error: Exception, committing: bool) -> StoreError:
    """What each caller of a lost transaction is told (an exception of its own)."""
    if isinstance(error, StoreUnavailable) and not committing:
        return StoreUnavailable(str(error))
    failure = CommitFailed(f"the database did not confirm the change: {brief(error)}")
    failure.__cause__ = error
    return failure


def _told(error: Exception) -> Exception:
    """What the caller of a work is told; one that stood in another manager's way is not at fault."""
    if isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", "") in _IN_THE_WAY:
        told = StoreUnavailable(f"another writer was in the way: {brief(error)}")
        told.__cause__ = error
        return told
    return error


async def _demand_alive(connection: AsyncConnection, error: BaseException | None = None) -> None:
    if not await _is_alive(connection):
        why = "" if error is None else f": {brief(error)}"
        raise StoreUnavailable(f"the database gave the transaction up{why}") from error


async def _is_alive(connection: AsyncConnection) -> bool:
    """Whether the transaction that we opened is still there, asked of the driver and not of SQLAlchemy."""
    if connection.invalidated:
        return False
    driver: Any = (await connection.get_raw_connection()).driver_connection
    if connection.dialect.name == "sqlite":
        return bool(driver.in_transaction)
    return not driver.is_closed()


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
