"""Databases of each kind, a control plane on PostgreSQL, and the node of a module."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from store import schema
from store.database import Store
from tests.harness.plane import Rig, rig
from tests.integration.sessions.docker_node import Site


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


@pytest_asyncio.fixture(loop_scope="module")
async def node(_site: Site) -> AsyncIterator[Site]:
    """The node that all tests of a module share (its fixture ``_site``); none leaves a session to the next one."""
    yield _site
    await _site.end_all()
