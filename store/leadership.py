"""Which of several managers leads: an advisory lock that its holder can see being lost.

On PostgreSQL it is a session-level advisory lock on a connection of its own; on SQLite, where all managers run
on one machine, an ``flock`` on a file beside the database. Both vanish with their process; on PostgreSQL one that
does not check for ``LEASE_SECONDS`` (it is suspended) is ousted. What a holder writes it writes behind ``fence``, in
the same transaction: once another one holds the lock, nothing of the former is committed any more.
"""

import asyncio
import fcntl
import hashlib
import logging
import os
import re
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Self

from sqlalchemy import URL, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

from store.engine import StoreUnavailable, is_unavailable, sqlite_path

CHECK_SECONDS = 1.0
ANSWER_SECONDS = 5.0
"""A database that does not answer a holder for so long has lost it."""
LEASE_SECONDS = 10.0
"""A holder that does not ask the database for so long is ousted by whoever else wants the lock."""
log = logging.getLogger(__name__)


class LeadershipLost(StoreUnavailable):
    """Another manager leads: nothing was changed."""


class Leadership(ABC):
    """A named lock. ``async with lock:`` waits for it; ``lock.lost`` is set when it is gone unasked."""

    def __init__(self, name: str, check_seconds: float = CHECK_SECONDS) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9-]{0,31}", name):
            raise ValueError(f"leadership name {name!r}: small letters, digits and '-', at most 32")
        self.name = name
        self.check_seconds = check_seconds
        self.lost = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None

    @property
    def held(self) -> bool:
        """Whether we hold it, as far as we know."""
        return self._watch is not None and not self.lost.is_set()

    async def try_acquire(self) -> bool:
        """Take the lock if nobody holds it. Raises ``StoreUnavailable`` when the database is away."""
        if self.held:
            return True
        await self.release()
        if not await self._take():
            return False
        self.lost.clear()
        self._watch = asyncio.create_task(self._watch_over(), name=f"leadership-{self.name}")
        return True

    async def acquire(self) -> None:
        """Wait until we hold the lock, also while the database is away."""
        while True:
            try:
                if await self.try_acquire():
                    return
            except StoreUnavailable as error:
                # Nobody leads while nobody can say who does: ask again.
                log.debug("leadership %s: %s", self.name, error)
            await asyncio.sleep(self.check_seconds)

    async def fence(self, db: AsyncSession) -> None:
        """Keep the transaction of ``db`` from being committed after another one holds the lock.

        Raises ``LeadershipLost``.
        """
        if not self.held or not await self._fenced(db):
            self.lost.set()
            raise LeadershipLost(f"this process does not hold the lock {self.name!r} any more")

    async def release(self) -> None:
        """Give the lock up; harmless when it is not held."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch])
            self._watch = None
        await self._drop()

    async def __aenter__(self) -> Self:
        await self.acquire()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.release()

    async def _watch_over(self) -> None:
        """Set ``lost`` as soon as the lock is seen to be gone."""
        while True:
            await asyncio.sleep(self.check_seconds)
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    if await self._still_ours():
                        continue
            except (OSError, TimeoutError, SQLAlchemyError) as error:
                # A database that does not answer has lost us as well.
                log.debug("leadership %s: %r", self.name, error)
            self.lost.set()
            return

    @abstractmethod
    async def _take(self) -> bool:
        """Try once."""

    @abstractmethod
    async def _still_ours(self) -> bool:
        """Whether the lock that was taken is still held."""

    @abstractmethod
    async def _drop(self) -> None:
        """Let go of everything."""

    async def _fenced(self, db: AsyncSession) -> bool:
        """Whether the lock is ours, and stays so until the transaction ends; nobody ousts the holder of a file."""
        return True


class FileLeadership(Leadership):
    """``flock`` on ``<database>.<name>.lock``."""

    def __init__(self, database: Path, name: str, check_seconds: float = CHECK_SECONDS) -> None:
        super().__init__(name, check_seconds)
        self.path = database.with_name(f"{database.name}.{name}.lock")
        self._file: int | None = None

    async def _take(self) -> bool:
        try:
            handle = os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreUnavailable(f"the lock file {self.path}: {error.strerror}") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return False
        self._file = handle
        return True

    async def _still_ours(self) -> bool:
        """A file that was removed or replaced could be locked by another manager."""
        if self._file is None:
            return False
        mine, present = os.fstat(self._file), self.path.stat()
        return (mine.st_dev, mine.st_ino) == (present.st_dev, present.st_ino)

    async def _drop(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


_HOLDERS = """
    FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE locktype = 'advisory' AND granted AND objsubid = 1
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND ((classid::bigint << 32) | objid::bigint) = :key
"""
_OUST = text(
    f"SELECT pg_terminate_backend(pid) {_HOLDERS}"
    " AND clock_timestamp() - state_change > make_interval(secs => :lease)"
)
_HELD = text(f"SELECT 1 {_HOLDERS} AND pid = :pid")


class PostgresLeadership(Leadership):
    """``pg_try_advisory_lock`` on a connection that is used for nothing else.

    Behind it stands a second lock, which every fenced transaction shares until it ends: a new holder waits
    for all of them before it begins.
    """

    def __init__(
        self,
        url: URL,
        name: str,
        check_seconds: float = CHECK_SECONDS,
        lease: float = LEASE_SECONDS,
    ) -> None:
        super().__init__(name, check_seconds)
        self._engine = create_async_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        digest = hashlib.sha256(f"perijove:{name}".encode()).digest()
        self._key, self._fence = (
            int.from_bytes(part, "big", signed=True) for part in (digest[:8], digest[8:16])
        )
        self._lease, self._pid = lease, 0
        self._connection: AsyncConnection | None = None

    async def _take(self) -> bool:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                self._connection = await self._engine.connect()
                taken = await self._lock(self._connection)
        except Exception as error:
            await self._drop()
            if is_unavailable(error):
                raise StoreUnavailable("the database cannot be reached for its lock") from error
            raise
        if not taken:
            await self._drop()
        return taken

    async def _lock(self, connection: AsyncConnection) -> bool:
        """Take the lock and wait for what its last holder still writes, or oust one that went silent."""
        key, fence = {"key": self._key}, {"key": self._fence}
        answer = await connection.execute(text("SELECT pg_try_advisory_lock(:key)"), key)
        if not answer.scalar_one():
            await connection.execute(_OUST, {**key, "lease": self._lease})
            return False
        for step in ("pg_advisory_lock", "pg_advisory_unlock"):
            await connection.execute(text(f"SELECT {step}(:key)"), fence)
        self._pid = (await connection.execute(text("SELECT pg_backend_pid()"))).scalar_one()
        return True

    async def _still_ours(self) -> bool:
        if self._connection is None:
            return False
        await self._connection.execute(text("SELECT 1"))
        return True

    async def _fenced(self, db: AsyncSession) -> bool:
        shared = text("SELECT pg_advisory_xact_lock_shared(:key)")
        await db.execute(shared, {"key": self._fence})
        found = await db.execute(_HELD, {"key": self._key, "pid": self._pid})
        return found.first() is not None

    async def _drop(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await connection.close()


def leadership_lock(url: URL, name: str) -> Leadership:
    """The lock ``name`` of the database behind a parsed ``url``."""
    path = sqlite_path(url)
    return PostgresLeadership(url, name) if path is None else FileLeadership(path, name)
