"""Which revision of the tables a database has, and how it gets the newest one.

These functions block and run an event loop of their own: asynchronous code calls them in a thread
(``await asyncio.to_thread(schema.check, url)``).
"""

import asyncio
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, inspect, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from store.engine import (
    StoreError,
    brief,
    create_private_file,
    parse_url,
    reading_engine,
    sqlite_path,
    transaction,
    writing_engine,
)

MIGRATIONS = Path(__file__).parent / "migrations"
PG_LOCK = 0x7065726A
"""Advisory lock under which two managers do not upgrade at once (``perj``)."""


class SchemaMismatch(StoreError):
    """The database's tables are not those of this Perijove; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Upgrade:
    """What an upgrade did: revisions before and after, and where the old SQLite file was copied to."""

    before: str | None
    after: str
    backup: Path | None

    @property
    def changed(self) -> bool:
        """Whether the database had an older revision, or none."""
        return self.before != self.after


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    return config


@cache
def revisions() -> tuple[str, ...]:
    """All revisions that this Perijove knows, oldest first."""
    scripts = ScriptDirectory.from_config(_config()).walk_revisions()
    return tuple(reversed([script.revision for script in scripts]))


def head_revision() -> str:
    """The revision that this Perijove works with."""
    return revisions()[-1]


def current_revision(url: str) -> str | None:
    """The revision of the database; None when it is empty or not there (it is not made).

    Raises ``StoreUnavailable`` when it cannot be reached, ``SchemaMismatch`` when its tables are not ours.
    """
    parsed = parse_url(url)
    path = sqlite_path(parsed)
    if path is not None and not path.exists():
        return None
    return asyncio.run(_current(parsed))


def check(url: str) -> None:
    """Raise ``SchemaMismatch`` unless the database has exactly the tables of this Perijove."""
    found = current_revision(url)
    if found == head_revision():
        return
    shown = parse_url(url).render_as_string(hide_password=True)
    _refuse_newer(found, shown)
    state = "has no tables yet" if found is None else f"is at revision {found}"
    raise SchemaMismatch(
        f"The database {shown} {state}; this Perijove needs revision {head_revision()}: "
        "run `perijove db upgrade`."
    )


def upgrade(url: str) -> Upgrade:
    """Bring the database to ``head_revision()`` in one transaction: it succeeds as a whole or changes nothing.

    A SQLite file that holds data is copied first, to ``<file>.before-<head>``. Raises ``StoreError``.
    """
    parsed = parse_url(url)
    path = sqlite_path(parsed)
    if path is not None:
        create_private_file(path)
    return asyncio.run(_upgrade(parsed, path))


async def _current(url: URL) -> str | None:
    engine = reading_engine(url)
    try:
        async with transaction(engine) as connection:
            return await connection.run_sync(_revision)
    finally:
        await engine.dispose()


async def _upgrade(url: URL, path: Path | None) -> Upgrade:
    # Rebuilding a table under foreign keys would delete its children: SQLite's own procedure is to switch
    # them off outside the transaction and to check them at its end.
    engine = writing_engine(url, foreign_keys=False)
    try:
        async with transaction(engine) as connection:
            done = await _migrate(connection, url, path)
            await connection.commit()
            return done
    finally:
        await engine.dispose()


async def _migrate(connection: AsyncConnection, url: URL, path: Path | None) -> Upgrade:
    if path is None:
        await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": PG_LOCK})
    before = await connection.run_sync(_revision)
    _refuse_newer(before, url.render_as_string(hide_password=True))
    if before == head_revision():
        return Upgrade(before, before, None)
    backup = None
    if path is not None and before is not None:
        backup = _copy(path)
    try:
        await connection.run_sync(lambda sync: command.upgrade(_config(sync), "head"))
    except DBAPIError as error:
        raise StoreError(
            f"The upgrade from revision {before} to {head_revision()} failed and changed nothing: {brief(error)}"
        ) from error
    if path is not None:
        broken = (await connection.execute(text("PRAGMA foreign_key_check"))).first()
        if broken is not None:
            raise SchemaMismatch(
                f"The upgrade to revision {head_revision()} would leave rows of {broken[0]} without their "
                "parents; nothing was changed."
            )
    return Upgrade(before, head_revision(), backup)


def _refuse_newer(found: str | None, shown: str) -> None:
    if found is not None and found not in revisions():
        raise SchemaMismatch(
            f"The database {shown} is at revision {found}, which this Perijove does not know (it knows "
            f"up to {head_revision()}): it was upgraded by a newer one. Run that one, or restore a backup."
        )


def _revision(connection: Connection) -> str | None:
    """The revision as recorded; None for a database without tables."""
    recorded = MigrationContext.configure(connection).get_current_revision()
    if recorded is None and inspect(connection).get_table_names():
        raise SchemaMismatch(
            f"The database {connection.engine.url.render_as_string(hide_password=True)} holds tables "
            "that are not Perijove's: name an empty database."
        )
    return recorded


def _copy(path: Path) -> Path:
    """Copy a SQLite file with what its write-ahead log holds; earlier copies are kept."""
    name, number = f"{path.name}.before-{head_revision()}", 1
    target = path.with_name(name)
    while target.exists():
        number += 1
        target = path.with_name(f"{name}.{number}")
    create_private_file(target)
    try:
        with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(target)) as copy:
            source.backup(copy)
    except sqlite3.Error as error:
        target.unlink()
        raise StoreError(
            f"{path} could not be copied to {target} before its upgrade, which was not begun: {error}"
        ) from error
    return target
