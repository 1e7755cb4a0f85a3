"""Clocks that are wrong or jump, and processes that are suspended: nothing ends for it, and nothing happens twice.

Every test ends in the audit. What was measured is written to ``artifacts/recovery.csv``.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.one_node import host_of, identities, submit
from tests.cluster.platform import Platform, until
from tests.harness.recovery import timed
from tests.integration.docker_engine import unavailable

pytestmark = [pytest.mark.integration, pytest.mark.docker, pytest.mark.timeout(240)]
HEARTBEAT = 1.0
PAUSE = 12.0
"""Seconds that a manager sleeps: more than a node may be silent, than a session may be idle, than ``lost_after``."""
SETTLED = 10.0
"""Seconds after its pause in which nothing that it knew before ends anything."""
CPUS = 0.1
"""What ``submit`` asks for."""


def faketime() -> str:
    """The library that fakes the clock."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    if library is None:
        unavailable("libfaketime is not installed (apt-get install libfaketime)")
    return str(library)


@contextlib.contextmanager
def agent_with(platform: Platform, clock: dict[str, str]) -> Iterator[None]:
    """Inside the block the agent runs with libfaketime and this in its environment."""
    faked = {"LD_PRELOAD": faketime(), "FAKETIME_DONT_FAKE_MONOTONIC": "1", **clock}
    platform.kill("h1")
    platform.start_agent(host_of(platform), faked)
    try:
        until(platform.agents, lambda found: found and found["h1"]["sessions"])
        yield
    finally:
        platform.kill("h1")
        platform.start_agent(host_of(platform))
        until(platform.agents, bool)


@contextlib.contextmanager
def rules(platform: Platform, group: dict[str, Any], policy: dict[str, Any]) -> Iterator[None]:
    """Options of the resource group and fields of the key pair policy, inside the block."""
    before = {"idle_timeout": 0, "idle_checks": {}}
    for options, fields in ((group, policy), ({}, before)):
        given = {"options": options}
        platform.call("PATCH", "/admin/resource-groups/default", given, user="admin")
        platform.call("PATCH", "/admin/keypair-policies/default", fields, user="admin")
        if options is group:
            yield


def ran(platform: Platform, name: str) -> None:
    """A job runs to its end now, and its start is told by the engine's clock."""
    job = submit(platform, name, "sleep 1")
    begun = time.time()
    ended = platform.wait(job, "TERMINATED")
    told = dt.datetime.fromisoformat(ended["containers"][0]["started_at"]).timestamp()
    assert abs(told - begun) < 60
    (attempt,) = platform.call("GET", f"/session/{job}/attempts")["attempts"]
    assert attempt["cause"] == "success"


def accounts(platform: Platform) -> tuple[float, float]:
    """CPU seconds that were charged to everybody, and that everybody held, since the platform began."""
    amount = "SELECT total(slot_seconds) / 1e6 FROM usage_accounts WHERE scope = 'domain' AND slot = 'cpu'"
    with contextlib.closing(sqlite3.connect(platform.state / "perijove.sqlite")) as rows:
        ((charged,),) = rows.execute(amount).fetchall()
        held = "SELECT amount / 1e6, allocated_at, freed_at FROM allocations WHERE slot = 'cpu'"
        spans = [(cpus, since, until or now()) for cpus, since, until in rows.execute(held)]
    return charged, sum(cpus * (stamp(until) - stamp(since)) for cpus, since, until in spans)


def now() -> str:
    return dt.datetime.now(dt.UTC).replace(tzinfo=None).isoformat(" ")


def stamp(text: str) -> float:
    return dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC).timestamp()


def ended_and_charged(platform: Platform, ref: str) -> None:
    """End the last session: every second that anybody held anything is charged once, to a heartbeat."""
    platform.call("DELETE", f"/session/{ref}")
    platform.wait(ref, "TERMINATED")
    until(lambda: accounts(platform), lambda seen: abs(seen[0] - seen[1]) < CPUS * HEARTBEAT)


@pytest.mark.parametrize("skew", ["+1h", "-1h"])
def test_an_agent_whose_clock_is_wrong(platform: Platform, skew: str) -> None:
    stays = submit(platform, f"stays{skew}".replace("+", "p"))
    platform.wait(stays, "RUNNING")
    before = identities(platform)[stays]
    with agent_with(platform, {"FAKETIME": skew}):
        ran(platform, f"job{skew}".replace("+", "p"))
        assert platform.session(stays)["status"] == "RUNNING"
        assert identities(platform)[stays] == before
        assert platform.agents()["h1"]["status"] == "ALIVE"


def test_an_agents_clock_jumps(platform: Platform, tmp_path: Path) -> None:
    clock, log = tmp_path / "clock", platform.state / "manager.log"
    idle = {"idle_timeout": 1800, "idle_checks": {"warn_before": "1s"}}
    stays = submit(platform, "stays-jumping")
    platform.wait(stays, "RUNNING")
    before = identities(platform)[stays]
    clock.write_text("+0")
    faked = {"FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1"}
    with rules(platform, {"lost_after": "5m"}, idle), agent_with(platform, faked):
        begun = log.stat().st_size
        for number, jump in enumerate(("+1h", "-1h", "+0", "+1h", "+0")):
            new = clock.with_suffix(".new")
            new.write_text(jump)
            new.replace(clock)
            ran(platform, f"jump-{number}")
            assert platform.session(stays)["status"] == "RUNNING"
            assert platform.agents()["h1"]["status"] == "ALIVE"
    assert identities(platform)[stays] == before
    ended_and_charged(platform, stays)
    assert "is lost" not in log.read_text()[begun:]


def test_a_manager_is_suspended(platform: Platform) -> None:
    idle = {"idle_timeout": 10, "idle_checks": {"warn_before": "5s"}}
    log = platform.state / "manager.log"
    with rules(platform, {"lost_after": "4s"}, idle):
        ref = submit(platform, "sleeper")
        platform.wait(ref, "RUNNING")
        before = identities(platform)[ref]
        until(lambda: platform.session(ref)["perijove"]["warning"], bool, 90)
        begun = log.stat().st_size
        platform.processes["manager"].send_signal(signal.SIGSTOP)
        try:
            awake = time.monotonic() + PAUSE
            while time.monotonic() < awake:
                assert identities(platform)[ref] == before
        finally:
            platform.processes["manager"].send_signal(signal.SIGCONT)
        with timed(f"24,manager suspended {PAUSE:g} s until a job has run"):
            ran(platform, "after-the-pause")
        settled = time.monotonic() + SETTLED
        while time.monotonic() < settled:
            assert platform.session(ref)["status"] == "RUNNING"
        assert platform.agents()["h1"]["status"] == "ALIVE"
    assert identities(platform)[ref] == before
    ended_and_charged(platform, ref)
    assert "is lost" not in log.read_text()[begun:]
