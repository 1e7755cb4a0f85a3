"""One server for all tests of this folder."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from authenticator.keypairs import NewKeyPair
from authenticator.principals import Role
from store.database import Store
from tests.harness.plane import sqlite_url
from tests.unit.api.server import Api, serving

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents and pytest_asyncio.is_async_test(item):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def api(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    folder = tmp_path_factory.mktemp("api")
    store = Store(sqlite_url(folder, folder))
    try:
        async with serving(store, folder) as made:
            yield made
    finally:
        await store.close()


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def ada(api: Api) -> NewKeyPair:
    """Key pair of an ordinary user."""
    return await api.user("ada")


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def root(api: Api) -> NewKeyPair:
    """Key pair of a superadmin."""
    return await api.user("root", Role.SUPERADMIN)
