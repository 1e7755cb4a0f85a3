"""Agents that refuse what is placed on them: real processes, devices that change under a running agent."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.harness.fleet import Fleet, device, running_fleet
from tests.harness.recovery import timed

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]
WHOLE = {"cuda.shares": "1"}
STUBBORN = """
import sys
from spawner.agent import admission
from hub.app import main

def check(shares, devices, held):
    raise admission.Refused("it does not want to")

admission.check = check
sys.exit(main(sys.argv[1:]))
"""


async def status(fleet: Fleet, ref: str) -> dict[str, Any]:
    found: dict[str, Any] = await fleet.call("m1", "GET", f"/session/{ref}", user="admin")
    return found


async def starts(fleet: Fleet, ref: str) -> None:
    await fleet.until(lambda: status(fleet, ref), lambda told: told["status"] == "RUNNING", 30)


async def place(fleet: Fleet, agent: str, word: str) -> None:
    await fleet.call("m1", "POST", f"/agents/{agent}/{word}", {}, user="admin")


def offered(agents: dict[str, Any], name: str) -> dict[str, str]:
    """Capacity by device, as the manager knows them."""
    return {
        each["device_id"]: each["capacity"]
        for each in agents[name]["devices"]
        if each["slot"] == "cuda.shares"
    }


def refusals(fleet: Fleet, agent: str) -> int:
    """How often an agent says in its log that it refused."""
    return len(
        re.findall("planned for it|does not want to", (fleet.folder / f"{agent}.log").read_text())
    )


@pytest.mark.parametrize("change", ["fragmented", "gone"])
async def test_a_stale_map_is_corrected_and_the_place_kept(
    postgres_url: str, tmp_path: Path, change: str
) -> None:
    agents = {"n1": device(0), "n2": device(0)}
    # Signs of life are rare, so the manager does not learn of the change by itself.
    slow = {"heartbeat_interval": 600, "agent_timeout": 3000}
    async with running_fleet(tmp_path, postgres_url, 1, agents, **slow) as fleet:
        await place(fleet, "n2", "cordon")
        halves = [device(n, "0.4") for n in (0, 1)]
        fleet.devices("n1").write_text("".join(halves) if change == "fragmented" else "")
        first = await fleet.submit("m1", "first", **WHOLE)
        with timed(f"20,a refused placement ({change}) until the map is right"):
            wanted = {"gpu-0": "0.4", "gpu-1": "0.4"} if change == "fragmented" else {}
            await fleet.until(fleet.agents, lambda found: offered(found, "n1") == wanted)
        second = await fleet.submit("m1", "second", **WHOLE)
        told = await status(fleet, first)
        assert told["status"] == "PENDING"
        assert fleet.live("n1") == {}
        assert list((fleet.folder / "n1/scratch").iterdir()) == []
        (node,) = [each for name, each in (await fleet.agents()).items() if name == "n1"]
        assert {float(each["used"]) for each in node["devices"]} == {0.0}
        assert "waiting for another place" in await fleet.command("session", "history", first)
        # Two wait for one place: it is the first's, which kept its own in the queue.
        with timed(f"20,a refused session ({change}) until it runs elsewhere"):
            await place(fleet, "n2", "uncordon")
            await starts(fleet, first)
        assert len(fleet.live("n2")) == 1
        assert (await status(fleet, second))["status"] == "PENDING"
        assert refusals(fleet, "n1") == 1 or change == "gone"
        assert (await fleet.call("m1", "GET", f"/session/{first}/attempts", user="admin"))[
            "attempts"
        ] == []


async def test_a_refused_session_goes_to_another_node_at_once(
    postgres_url: str, tmp_path: Path
) -> None:
    agents = {"n1": device(0), "n2": device(0)}
    slow = {"heartbeat_interval": 600, "agent_timeout": 3000}
    async with running_fleet(tmp_path, postgres_url, 1, agents, **slow) as fleet:
        probe = await fleet.submit("m1", "probe", **WHOLE)
        await starts(fleet, probe)
        (chosen,) = [name for name in agents if fleet.live(name)]
        (other,) = agents.keys() - {chosen}
        await fleet.call("m1", "DELETE", f"/session/{probe}", user="admin")
        await fleet.until(
            fleet.agents, lambda found: float(found[chosen]["used"].get("cuda.shares", 0)) == 0
        )
        fleet.devices(chosen).write_text(device(0, "0.4") + device(1, "0.4"))
        with timed("20,a refused session until it runs elsewhere"):
            ref = await fleet.submit("m1", "moves", **WHOLE)
            await starts(fleet, ref)
        assert len(fleet.live(other)) == 1
        assert refusals(fleet, chosen) == 1


async def test_a_node_that_refuses_for_ever_is_asked_ever_more_rarely(
    postgres_url: str, tmp_path: Path
) -> None:
    async with running_fleet(tmp_path, postgres_url, 1, {"n1": device(0)}) as fleet:
        await fleet.kill("n1")
        fleet.program["n1"] = (sys.executable, "-c", STUBBORN)
        await fleet.start_agent("n1")
        await fleet.until(fleet.agents, bool)
        begun = time.monotonic()
        refs = [await fleet.submit("m1", f"waits-{n}", **{"cuda.shares": "0.1"}) for n in range(5)]

        async def asked() -> int:
            return refusals(fleet, "n1")

        # A second of rest after the first round, two after the next: five sessions are not asked for in a loop.
        await fleet.until(asked, lambda count: count > 2 * len(refs))
        assert time.monotonic() - begun > 3
        assert refusals(fleet, "n1") <= 4 * len(refs)
        await fleet.until(lambda: fleet.statuses("m1"), lambda seen: set(seen) == {"PENDING"})
        fleet.program.pop("n1")
        await fleet.kill("n1")
        await fleet.start_agent("n1")
        for ref in refs:
            await starts(fleet, ref)
