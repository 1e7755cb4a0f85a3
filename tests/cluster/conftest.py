"""A platform on one node, for a module of tests; tests of several nodes have their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.one_node import containers, live, one_node
from tests.cluster.platform import Platform, until


@pytest.fixture(scope="module")
def shared() -> Iterator[Platform]:
    with one_node() as made:
        yield made


@pytest.fixture
def platform(shared: Platform) -> Iterator[Platform]:
    """The platform, which every test leaves without sessions; nothing differs in the end."""
    try:
        yield shared
        shared.audit()
        for ref in live(shared):
            shared.call("DELETE", f"/session/{ref}")
        until(lambda: live(shared), lambda left: not left)
        until(lambda: containers(shared), lambda left: not left)
        shared.audit()
    except BaseException:
        print(shared.story())
        raise
