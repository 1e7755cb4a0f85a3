"""An open store with one table of notes."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from store.database import Store
from tests.unit.store.notes import make_table


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = Store(f"sqlite:///{tmp_path / 'notes.sqlite'}")
    await opened.open()
    await opened.write(make_table)
    yield opened
    await opened.close()
