"""A control plane on a fresh SQLite database."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.harness.plane import Rig, rig, sqlite_url


@pytest.fixture(scope="session")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("templates")


@pytest.fixture
async def plane(tmp_path: Path, templates: Path) -> AsyncIterator[Rig]:
    async with rig(sqlite_url(tmp_path, templates), tmp_path) as made:
        yield made
