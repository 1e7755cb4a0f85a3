"""A platform for a module of tests, on one node where the module has no other one (its fixture ``shared``)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.one_node import one_node
from tests.cluster.platform import Platform


@pytest.fixture(scope="module")
def shared() -> Iterator[Platform]:
    with one_node() as made:
        yield made


@pytest.fixture
def platform(shared: Platform) -> Iterator[Platform]:
    """The platform, which every test leaves without sessions; nothing differs in the end."""
    yield shared
    try:
        shared.audit()
    finally:
        print(shared.story())  # shown when a test failed
        shared.end_all()
    shared.audit()
