"""A control plane on an empty SQLite database."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from spawner.sessions.control import ControlSettings
from store.database import Store
from tests.harness.plane import Rig, rig, sqlite_url


@pytest_asyncio.fixture(loop_scope="session")
async def plane(store: Store, tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig(store, tmp_path) as made:
        yield made


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def standing(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    """A plane with a database of its own, for tests that are refused and leave nothing."""
    folder = tmp_path_factory.mktemp("standing")
    store = Store(sqlite_url(folder, folder))
    try:
        settings = ControlSettings(agent_timeout=3600.0)  # its agent gives no signs of life
        async with rig(store, folder, settings) as made:
            yield made
    finally:
        await store.close()
