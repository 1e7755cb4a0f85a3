"""One SQLite store for all tests that are asked for ``store``: each finds it empty.

They share an event loop as well. Most of the time of a fresh store goes into compiling the same statements again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from store.database import Store
from tests.harness.plane import sqlite_url, wipe

SHARED = {"shared_store", "standing"}
"""Fixtures that live on the event loop of the whole run."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if pytest_asyncio.is_async_test(item) and SHARED & {*item.fixturenames}:
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared_store(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Store]:
    """The store that the tests use one after the other."""
    folder = tmp_path_factory.mktemp("store")
    store = Store(sqlite_url(folder, folder))
    await store.open()
    yield store
    await store.close()


@pytest_asyncio.fixture(loop_scope="session")
async def store(shared_store: Store) -> AsyncIterator[Store]:
    """An open store with all tables and no rows."""
    yield shared_store
    await wipe(shared_store)
