"""A control plane on an empty SQLite database.

All tests of this folder share one event loop and one store: most of the time of a fresh store goes into
compiling the same statements again.
"""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from store.database import Store
from tests.harness.plane import Rig, rig, sqlite_url, wipe

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents and pytest_asyncio.is_async_test(item):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def engine_store(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Store]:
    """The store that all tests here use, one after the other."""
    folder = tmp_path_factory.mktemp("engine")
    store = Store(sqlite_url(folder, folder))
    await store.open()
    yield store
    await store.close()


@pytest_asyncio.fixture(loop_scope="session")
async def plane(engine_store: Store, tmp_path: Path) -> AsyncIterator[Rig]:
    try:
        async with rig(engine_store, tmp_path) as made:
            yield made
    finally:
        await wipe(engine_store)
