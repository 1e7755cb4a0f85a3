"""Signs of life of a node whose engine does not answer, and when an engine was away."""

from __future__ import annotations

import asyncio

import pytest

from spawner.accelerators.registry import Accelerators
from spawner.agent import offering
from spawner.agent.engines.base import EngineError
from spawner.agent.engines.docker import calls
from spawner.agent.engines.docker.calls import Outages
from spawner.agent.offering import Offering
from spawner.agent.protocol import ImageReport
from tests.harness.engine import MemoryEngine

IMAGE = ImageReport("image", "x86_64", None, 1, {})


class MoodyEngine(MemoryEngine):
    """Answers only while it is ``well``; lists images only while it is not ``stuck``."""

    def __init__(self) -> None:
        super().__init__()
        self.well, self.stuck = True, False
        self.found: tuple[ImageReport, ...] = ()

    async def ping(self) -> None:
        if not self.well:
            raise EngineError("the engine does not answer")

    async def images(self) -> tuple[ImageReport, ...]:
        self.calls.append("images")
        if self.stuck:
            await asyncio.Event().wait()
        return self.found


async def test_a_sign_of_life_tells_of_the_engine_and_does_not_wait_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(offering, "LOOK_EVERY", 0.001)
    monkeypatch.setattr(offering, "PATIENCE", 0.01)
    engine, changed = MoodyEngine(), asyncio.Event()
    offered = Offering(engine, Accelerators([]), changed.set)
    await offered.open()
    assert offered.features() == {}
    watching = asyncio.create_task(offered.watch())
    engine.well = False
    await asyncio.wait_for(changed.wait(), 5)
    changed.clear()
    asked = len(engine.calls)
    assert (await offered.heartbeat()).features == {"unwell": "the engine does not answer"}
    assert (await offered.heartbeat()).features is None
    assert len(engine.calls) == asked
    engine.well = True
    await asyncio.wait_for(changed.wait(), 5)
    engine.found = (IMAGE,)
    beat = await offered.heartbeat()
    assert (beat.features, beat.images) == ({}, (IMAGE,))
    engine.stuck = True
    for _ in range(3):
        assert (await offered.heartbeat()).images is None
    assert len(engine.calls) == asked + 2  # one question is under way, no more
    watching.cancel()
    await offered.close()


def test_outages(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(calls.time, "time", lambda: now)
    outages = Outages()
    outages.answered()
    assert not outages.cover(now)
    outages.failed()
    now = 1020.0
    outages.failed()
    assert not outages.cover(1010)  # it is not over: nobody could have told
    outages.answered()
    assert [outages.cover(moment) for moment in (989, 991, 1010, 1020, 1021)] == [
        False, True, True, True, False,
    ]  # fmt: skip
