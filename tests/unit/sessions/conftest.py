"""A control plane on an empty SQLite database."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from store.database import Store
from tests.harness.plane import Rig, rig


@pytest_asyncio.fixture(loop_scope="session")
async def plane(store: Store, tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig(store, tmp_path) as made:
        yield made
