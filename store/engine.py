"""Database URLs and engines: SQLite in WAL mode or PostgreSQL, with transactions that begin and end where we say.

The ``sqlite3`` module begins transactions by itself, too late for SAVEPOINT and only in deferred mode. Its own
handling is switched off here: SQLAlchemy's ``begin`` event sends ``BEGIN`` (reading) or ``BEGIN IMMEDIATE``
(writing), so that a writer never fails half-way for a lock it could have waited for at its start.
"""

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

BUSY_TIMEOUT_MS = 10_000
DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}
_QUIET: dict[str, Any] = {"hide_parameters": True}
"""Rows hold secrets, and errors go to logs and monitors."""
IDLE_TRANSACTION_MS = 15_000
"""PostgreSQL gives up a transaction in which nothing is asked for so long: a suspended process holds locks."""
READERS = 4
"""Reading connections that stay open."""


class StoreError(Exception):
    """The store cannot do what was asked; the message is a sentence."""


class StoreUnavailable(StoreError):
    """The database cannot be reached or does not take the change now; nothing was changed. Try again."""


def parse_url(text: str) -> URL:
    """The URL with its asynchronous driver filled in.

    Raises ``StoreError`` for anything but a SQLite file or PostgreSQL; passwords are not repeated in it.
    """
    try:
        url = make_url(text)
    except ArgumentError:
        raise StoreError(
            "the database URL cannot be read: write sqlite:////path/to/file or "
            "postgresql://user@host/database"
        ) from None
    shown = url.render_as_string(hide_password=True)
    if url.drivername.partition("+")[0] not in DRIVERS:
        raise StoreError(
            f"the database URL {shown} names no supported database: sqlite or postgresql"
        )
    driver = DRIVERS[url.drivername.partition("+")[0]]
    if url.drivername not in (driver, driver.partition("+")[0]):
        raise StoreError(
            f"the database URL {shown} names another driver: leave it out or use {driver}"
        )
    if driver == DRIVERS["sqlite"] and (not url.database or url.database == ":memory:"):
        raise StoreError(f"the database URL {shown} names no file: sqlite:////path/to/file")
    return url.set(drivername=driver)


def sqlite_path(url: URL) -> Path | None:
    """The file of a SQLite URL; None for PostgreSQL."""
    if url.get_backend_name() != "sqlite" or url.database is None:
        return None
    return Path(url.database).absolute()


def create_private_file(path: Path) -> None:
    """Create an empty database file that only its owner may read (it will hold secret keys)."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise StoreUnavailable(
            f"the database file {path} cannot be opened: {error.strerror}"
        ) from error


def reading_engine(url: URL) -> AsyncEngine:
    """An engine whose transactions see one snapshot and cannot write."""
    if sqlite_path(url) is not None:
        return _sqlite_engine(url, begin="BEGIN", read_only=True, pool_size=READERS)
    # Whoever waits for a connection waits for others of this process: a burst is served late, not refused.
    engine = create_async_engine(
        url, pool_size=READERS, max_overflow=8, pool_pre_ping=True, pool_timeout=30, **_QUIET
    )
    return engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)


def writing_engine(url: URL, *, foreign_keys: bool = True) -> AsyncEngine:
    """An engine with one connection, for the one writer of this process (and for migrations)."""
    if sqlite_path(url) is not None:
        return _sqlite_engine(
            url, begin="BEGIN IMMEDIATE", read_only=False, pool_size=1, foreign_keys=foreign_keys
        )
    settings = {"idle_in_transaction_session_timeout": str(IDLE_TRANSACTION_MS)}
    return create_async_engine(
        url,
        pool_size=1,
        max_overflow=0,
        pool_pre_ping=True,
        connect_args={"server_settings": settings},
        **_QUIET,
    )


def _sqlite_engine(
    url: URL, *, begin: str, read_only: bool, pool_size: int, foreign_keys: bool = True
) -> AsyncEngine:
    engine = create_async_engine(
        url, pool_size=pool_size, max_overflow=0, pool_timeout=10, **_QUIET
    )

    @event.listens_for(engine.sync_engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        if not read_only:
            cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute(f"PRAGMA foreign_keys = {'ON' if foreign_keys else 'OFF'}")
        cursor.execute(f"PRAGMA query_only = {'ON' if read_only else 'OFF'}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin_transaction(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def is_unavailable(error: BaseException) -> bool:
    """Whether an error of connecting or beginning says that the database is away, locked or no database."""
    return isinstance(error, (OSError, PoolTimeout, DBAPIError))


@asynccontextmanager
async def transaction(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A connection with an open transaction, rolled back unless it is committed inside."""
    async with AsyncExitStack() as stack:
        try:
            connection = await stack.enter_async_context(engine.connect())
            await connection.begin()
        except Exception as error:
            if is_unavailable(error):
                raise StoreUnavailable(f"the database cannot be used: {brief(error)}") from error
            raise
        yield connection


def brief(error: BaseException) -> str:
    """The driver's own words, without the statement and its parameters: those may hold secrets."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return f"{type(cause).__name__}: {cause}".partition("\n")[0]
