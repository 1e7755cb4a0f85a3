"""Databases of each kind, and a control plane on PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from store import schema
from store.database import Store
from tests.harness.plane import Rig, rig


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty, migrated database of each kind."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'perijove.sqlite'}"
    else:
        url = str(request.getfixturevalue("postgres_url"))
    schema.upgrade(url)
    return url


@pytest.fixture
async def plane(postgres_url: str, tmp_path: Path) -> AsyncIterator[Rig]:
    """A control plane on PostgreSQL."""
    await asyncio.to_thread(schema.upgrade, postgres_url)
    store = Store(postgres_url)
    async with rig(store, tmp_path) as made:
        yield made
    await store.close()
