"""A hub, a proxy and a manager, all real servers."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.spawner.contract_manager import ContractManager
from tests.integration.spawner.hub_process import HubProcess


@contextlib.asynccontextmanager
async def contract_manager() -> AsyncIterator[ContractManager]:
    """A manager in which every session waits until the test lets it run."""
    manager = ContractManager()
    await manager.start()
    try:
        yield manager
    finally:
        await manager.close()


@contextlib.asynccontextmanager
async def running_hub(folder: Path, manager: ContractManager) -> AsyncIterator[HubProcess]:
    """A running hub that uses ``manager``; fails if it wrote a traceback of ours."""
    hub = HubProcess(folder, manager.url, manager.secret)
    try:
        await hub.start_proxy()
        await hub.start_hub()
        yield hub
        assert "Traceback" not in hub.unexpected, hub.unexpected
    finally:
        await hub.close()


@pytest.fixture
async def manager() -> AsyncIterator[ContractManager]:
    """A manager of one test."""
    async with contract_manager() as manager:
        yield manager


@pytest.fixture
async def hub(manager: ContractManager, tmp_path: Path) -> AsyncIterator[HubProcess]:
    """A hub of one test, which may be killed."""
    async with running_hub(tmp_path, manager) as hub:
        yield hub
