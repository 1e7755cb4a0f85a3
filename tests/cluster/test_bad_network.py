"""A network that loses, delays, repeats and reorders: everything happens once, and nobody is given up.

Every test ends in the audit. What was measured is written to ``artifacts/recovery.csv``.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import time
import urllib.error
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cluster.one_node import LABEL, SMALL, creations, host_of, submit
from tests.cluster.platform import Platform, until
from tests.cluster.relay import Relay
from tests.harness.recovery import note, timed
from tests.integration.docker_engine import TEST_IMAGE

pytestmark = [pytest.mark.integration, pytest.mark.docker, pytest.mark.timeout(240)]
SESSIONS = 20
AT_ONCE = 4
PATIENT = 40
"""Seconds after which a silent agent is lost: the product's own default."""
MISCHIEF = (
    "requests overtaken",
    "requests repeated",
    "answers lost",
    "connections cut",
    "frames of a connection that was gone",
    "frames from the agent overtaken",
    "frames from the agent repeated",
    "frames to the agent overtaken",
    "frames to the agent repeated",
)


def test_a_bad_network_makes_nothing_happen_twice(platform: Platform) -> None:
    host = host_of(platform)
    client = host.client
    made: dict[str, tuple[str, str]] = {}

    def ended() -> bool:
        # Asked again and again: an engine remembers its last 256 events only.
        listed = client.api.events(since=0, until=int(time.time()) + 1, decode=True,
                                   filters={"event": "create", "type": "container"})  # fmt: skip
        for each in listed:
            facts = each["Actor"]["Attributes"]
            if f"{LABEL}.session" in facts:
                made[each["Actor"]["ID"]] = facts[f"{LABEL}.session"], facts[f"{LABEL}.epoch"]
        return all(platform.session(ref)["status"] == "TERMINATED" for ref in refs)

    with timed("10,20 sessions with a third of all packets lost"), host.lossy(0.3):
        refs = [submit(platform, f"lossy-{n}", "true") for n in range(20)]
        until(ended, bool, 120)
    client.close()
    for ref in refs:
        attempts = platform.call("GET", f"/session/{ref}/attempts")["attempts"]
        assert [(each["attempt"], each["cause"]) for each in attempts] == [(1, "success")]
        assert [each for each in made.values() if each[0] == ref] == [(ref, "1")]


@contextlib.contextmanager
def relayed(platform: Platform) -> Iterator[Relay]:
    """Agent and people reach the manager through a relay that does them every wrong."""
    straight = platform.url
    with Relay(platform.hosts.gateway, straight).running() as relay:
        platform.kill("h1")
        platform.url = relay.url
        platform.start_agent(host_of(platform))
        try:
            until(platform.agents, bool)
            yield relay
        finally:
            platform.url = straight
            platform.kill("h1")
            platform.start_agent(host_of(platform))
            until(platform.agents, bool)


def insist(platform: Platform, method: str, path: str, body: object = None) -> None:
    """Ask until there is an answer: what was asked before may have been done."""
    while True:
        try:
            platform.call(method, path, body)
        except urllib.error.HTTPError:
            raise
        except OSError:
            continue
        return


def live_and_die(platform: Platform, name: str) -> tuple[str, float]:
    """Start a session, end it when it runs; its id, and the seconds that its start took as its rows tell."""
    given = {
        "name": name, "image": TEST_IMAGE, "enqueueOnly": True, "reuseIfExists": True,
        "config": {"resources": SMALL, "resource_opts": {"shmem": "8m"}},
    }  # fmt: skip
    insist(platform, "POST", "/session", given)
    ref = platform.session(name)["sessionId"]
    platform.wait(ref, "RUNNING")
    insist(platform, "DELETE", f"/session/{ref}")
    platform.wait(ref, "TERMINATED")
    told = platform.call("GET", f"/session/{ref}/status-history")["result"]
    begun, ran = (dt.datetime.fromisoformat(told[each]) for each in ("PENDING", "RUNNING"))
    return ref, (ran - begun).total_seconds()


def lives(platform: Platform, kind: str, report: Path) -> list[str]:
    """``SESSIONS`` sessions, some at a time; each was created once."""
    with (
        timed(f"10,{SESSIONS} sessions from start to end on a {kind} network"),
        creations(platform, report) as made,
        ThreadPoolExecutor(AT_ONCE) as people,
    ):
        names = [f"{kind}-{n}" for n in range(SESSIONS)]
        done = list(people.map(lambda name: live_and_die(platform, name), names))
    starts = sorted(seconds for _, seconds in done)
    note(f"10,half of the starts on a {kind} network", starts[SESSIONS // 2])
    note(f"10,slowest start of {SESSIONS} on a {kind} network", starts[-1])
    refs = [ref for ref, _ in done]
    assert made == Counter(refs)
    return refs


def test_twenty_sessions_on_the_worst_network(platform: Platform, tmp_path: Path) -> None:
    log = platform.state / "manager.log"
    begun = log.stat().st_size
    platform.kill("manager")
    platform.start_manager(agent_timeout=PATIENT)
    until(platform.agents, bool)
    lives(platform, "clean", tmp_path / "clean")
    host = host_of(platform)
    with relayed(platform) as relay, host.slow("1mbit"), host.lossy(0.3):
        refs = lives(platform, "bad", tmp_path / "bad")
    print(relay.done)
    assert all(relay.done[each] for each in MISCHIEF), relay.done
    for ref in refs:
        attempts = platform.call("GET", f"/session/{ref}/attempts")["attempts"]
        assert [each["cause"] for each in attempts] == ["ended"], attempts
    assert b"is lost" not in log.read_bytes()[begun:]
