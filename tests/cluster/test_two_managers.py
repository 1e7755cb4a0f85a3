"""Two managers on one PostgreSQL: one that is suspended while it leads is followed by the other, and steps down.

The test ends in the audit. How long it took is written to ``artifacts/recovery.csv``.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.one_node import creations, host_of, one_node, submit
from tests.cluster.platform import Platform, until
from tests.harness.ports import free_port
from tests.harness.recovery import timed
from tests.integration.docker_engine import unavailable
from tests.integration.postgres_server import PostgresServer, find_binaries

pytestmark = [
    pytest.mark.integration,
    pytest.mark.docker,
    pytest.mark.postgres,
    pytest.mark.timeout(240),
]
LEADS = "this manager schedules now"
STEPS_DOWN = "this manager does not schedule any more"


@pytest.fixture(scope="module")
def shared() -> Iterator[Platform]:
    binaries = find_binaries()
    if binaries is None:
        unavailable("PostgreSQL is not installed")
    assert binaries is not None
    server = PostgresServer(binaries)
    try:
        with one_node(database=server.new_database()) as made:
            yield made
    finally:
        server.stop()


def test_a_suspended_leader_is_followed_and_steps_down(platform: Platform, tmp_path: Path) -> None:
    first, second = (platform.state / f"{name}.log" for name in ("manager", "second"))
    until(first.read_text, lambda log: LEADS in log)
    platform.url = f"http://{platform.hosts.gateway}:{free_port()}"
    platform.start_manager(name="second")
    platform.kill("h1")
    platform.start_agent(host_of(platform))
    until(platform.agents, bool)
    stays = submit(platform, "stays")
    platform.wait(stays, "RUNNING")
    with creations(platform, tmp_path / "made") as made:
        platform.processes["manager"].send_signal(signal.SIGSTOP)
        try:
            with timed("5,leader suspended until another one has started a session"):
                refs = [submit(platform, "meanwhile")]
                platform.wait(refs[0], "RUNNING")
            assert second.read_text().count(LEADS) == 1
        finally:
            platform.processes["manager"].send_signal(signal.SIGCONT)
        with timed("5,suspended leader goes on until it steps down"):
            until(first.read_text, lambda log: STEPS_DOWN in log)
        refs.append(submit(platform, "afterwards"))
        platform.wait(refs[1], "RUNNING")
    assert made == Counter(refs)
    assert first.read_text().count(LEADS) == 1
    assert STEPS_DOWN not in second.read_text()
    assert platform.session(stays)["status"] == "RUNNING"
