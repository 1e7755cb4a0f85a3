"""Two hundred requests at two managers for sixteen half devices on three nodes: real processes, one PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from spawner.agent.protocol import Share
from tests.harness.fleet import Fleet, device, running_fleet
from tests.harness.recovery import timed

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]
AGENTS = {
    "n1": "".join(device(n) for n in range(3)),
    "n2": "".join(device(n) for n in range(3)),
    "n3": "".join(device(n) for n in range(2)),
}
WHOLE = 1_000_000
PLACES = 16
REQUESTS = 200


class Watch:
    """What agents and their engines have, looked at every 50 ms."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.samples = 0
        self.most = 0
        """Live runs on all nodes at once, as the engines have them."""
        self.told = 0
        """The same, as the agents say."""
        self.faults: list[str] = []

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            begun = time.monotonic()
            told = await asyncio.gather(*map(self.fleet.told, AGENTS))
            live = await asyncio.to_thread(lambda: {each: self.fleet.live(each) for each in AGENTS})
            self.note(sum(each or 0 for each in told), live)
            await asyncio.sleep(max(0.0, 0.05 - (time.monotonic() - begun)))

    def note(self, told: int, live: dict[str, dict[str, tuple[Share, ...]]]) -> None:
        held: Counter[tuple[str, str]] = Counter()
        for agent, found in live.items():
            for shares in found.values():
                for share in shares:
                    if share.slot == "cuda.shares":
                        held[agent, share.device_id] += share.amount
        self.samples += 1
        self.most = max(self.most, sum(map(len, live.values())))
        self.told = max(self.told, told)
        if (
            told > PLACES
            or sum(map(len, live.values())) > PLACES
            or max(held.values(), default=0) > WHOLE
        ):
            self.faults.append(f"agents say {told}, engines have {live}")


@contextlib.asynccontextmanager
async def watched(fleet: Fleet) -> AsyncIterator[Watch]:
    watch = Watch(fleet)
    watching = asyncio.create_task(watch.run())
    try:
        yield watch
        assert not watching.done(), watching.exception()
        assert watch.faults == []
    finally:
        watching.cancel()
        await asyncio.wait([watching])


async def settled(fleet: Fleet, manager: str, running: int, waiting: int) -> None:
    """So many run and so many wait, each of which knows why."""
    wanted = {"RUNNING": running, "PENDING": waiting}
    await fleet.until(lambda: fleet.statuses(manager), lambda seen: seen == wanted)

    async def silent() -> list[str]:
        found = (await fleet.sessions(manager)).values()
        return [e["name"] for e in found if e["status"] == "PENDING" and not e["message"]]

    await fleet.until(silent, lambda names: not names)
    live = {run for each in AGENTS for run in fleet.live(each)}
    assert len(live) == running


async def test_two_hundred_requests_at_two_managers(postgres_url: str, tmp_path: Path) -> None:
    async with running_fleet(tmp_path, postgres_url, 2, AGENTS) as fleet, watched(fleet) as watch:
        with timed("19,200 requests until 16 run and all others know why not"):
            await asyncio.gather(
                *(
                    fleet.submit(
                        f"m{n % 2 + 1}", f"race-{n}", f"user-{n % 8}", **{"cuda.shares": "0.5"}
                    )
                    for n in range(REQUESTS)
                )
            )
            await settled(fleet, "m1", PLACES, REQUESTS - PLACES)
        first = {run for each in AGENTS for run in fleet.live(each)}

        await fleet.kill("n1")
        with timed("19,an agent killed and back"):
            await fleet.start_agent("n1")
            await fleet.until(fleet.agents, lambda found: found.keys() == AGENTS.keys())
            await settled(fleet, "m1", PLACES, REQUESTS - PLACES)
        assert {run for each in AGENTS for run in fleet.live(each)} == first

        leader = await fleet.leader()
        (other,) = {"m1", "m2"} - {leader}
        running = [
            ref
            for ref, each in (await fleet.sessions(other)).items()
            if each["status"] == "RUNNING"
        ]
        ending = asyncio.gather(
            *(fleet.call(other, "DELETE", f"/session/{ref}", user="admin") for ref in running[:8])
        )
        await fleet.kill(leader)
        with timed("19,leading manager killed while sessions end"):
            await ending
            await fleet.leader()
            await fleet.start_manager(leader)
            await fleet.until(fleet.agents, lambda found: found.keys() == AGENTS.keys())
            await settled(fleet, other, PLACES, REQUESTS - PLACES - 8)
        assert watch.most == watch.told == PLACES
        assert watch.samples > 50
