"""Clocks that are wrong or jump, and processes that are suspended: nothing ends for it, and nothing happens twice.

Every test ends in the audit. What was measured is written to ``artifacts/recovery.csv``.
"""

from __future__ import annotations

import datetime as dt
import time
from pathlib import Path

import pytest

from tests.cluster.one_node import host_of, identities, submit
from tests.cluster.platform import Platform, until
from tests.integration.docker_engine import unavailable

pytestmark = [pytest.mark.integration, pytest.mark.docker, pytest.mark.timeout(240)]


@pytest.mark.parametrize("skew", ["+1h", "-1h"])
def test_an_agent_whose_clock_is_wrong(platform: Platform, skew: str) -> None:
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    if library is None:
        unavailable("libfaketime is not installed (apt-get install libfaketime)")
    stays = submit(platform, f"stays{skew}".replace("+", "p"))
    platform.wait(stays, "RUNNING")
    before = identities(platform)[stays]
    wrong = {"LD_PRELOAD": str(library), "FAKETIME": skew, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    platform.kill("h1")
    platform.start_agent(host_of(platform), wrong)
    try:
        until(lambda: platform.agents(), lambda found: found and found["h1"]["sessions"])
        job = submit(platform, f"job{skew}".replace("+", "p"), "sleep 2")
        begun = time.time()
        ended = platform.wait(job, "TERMINATED")
        told = dt.datetime.fromisoformat(ended["containers"][0]["started_at"]).timestamp()
        assert abs(told - begun) < 60  # the engine's clock counts, not the agent's
        assert platform.session(stays)["status"] == "RUNNING"
        assert identities(platform)[stays] == before
        assert platform.agents()["h1"]["status"] == "ALIVE"
    finally:
        platform.kill("h1")
        platform.start_agent(host_of(platform))
        until(platform.agents, bool)
