"""URLs and the settings of SQLite."""

from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from store.database import Store
from store.engine import StoreError, StoreUnavailable, parse_url


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("sqlite:////a/b.sqlite", "sqlite+aiosqlite:////a/b.sqlite"),
        ("sqlite+aiosqlite:///b.sqlite", "sqlite+aiosqlite:///b.sqlite"),
        ("postgresql://u@h:5/d", "postgresql+asyncpg://u@h:5/d"),
        ("postgresql+asyncpg://u@h/d", "postgresql+asyncpg://u@h/d"),
    ],
)
def test_the_driver_is_filled_in(given: str, used: str) -> None:
    assert parse_url(given).render_as_string(hide_password=False) == used


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "cannot be read"),
        ("nonsense", "cannot be read"),
        ("mysql://u:hunter2@h/d", "names no supported database"),
        ("postgresql+psycopg://u:hunter2@h/d", "postgresql\\+asyncpg"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
    ],
)
def test_other_urls_are_refused_without_their_password(url: str, reason: str) -> None:
    with pytest.raises(StoreError, match=reason) as refused:
        parse_url(url)
    assert "hunter2" not in str(refused.value)


async def test_sqlite_is_private_durable_and_checks_foreign_keys(store: Store) -> None:
    async def settings(session: AsyncSession) -> dict[str, object]:
        names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        return {name: await session.scalar(text(f"PRAGMA {name}")) for name in names}

    wanted = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 10_000}
    assert await store.write(settings) == wanted
    assert await store.read(settings) == wanted
    assert store.path is not None
    assert store.path.stat().st_mode & 0o777 == 0o600


async def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match=r"missing/x\.sqlite cannot be opened: No such file"):
        await Store(f"sqlite:///{tmp_path}/missing/x.sqlite").open()


async def test_a_file_that_is_no_database_is_unavailable(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    path.write_bytes(b"this is not a database, whatever its name says" * 40)
    store = Store(f"sqlite:///{path}")
    with pytest.raises(StoreError, match="not a database"):
        await store.open()
    await store.close()
