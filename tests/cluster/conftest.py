"""A platform on one node, for a module of tests; tests of several nodes have their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.hosts import running_hosts
from tests.cluster.one_node import containers, live
from tests.cluster.platform import Platform, running_platform, until
from tests.integration.docker_engine import TEST_IMAGE, ensure_test_image, running_engine


@pytest.fixture(scope="module")
def shared() -> Iterator[Platform]:
    with running_engine():
        ensure_test_image()
        with running_hosts([TEST_IMAGE], 1) as hosts, running_platform(hosts) as made:
            until(made.agents, lambda found: all(TEST_IMAGE in a["images"] for a in found.values()))
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
