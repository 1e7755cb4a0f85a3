"""Feasibility against brute force: can these amounts be cut out of these devices at all?"""

from __future__ import annotations

import itertools
from functools import cache

from hypothesis import given
from hypothesis import strategies as st

from spawner.scheduler.model import Agent, Device
from spawner.scheduler.slots import MICRO
from tests.harness.snapshots import session, snapshot

from .answers import started


@cache
def can_be_cut(devices: tuple[int, ...], wants: tuple[int, ...]) -> bool:
    """Try every way of giving the first want whole quanta of each device, then the rest."""
    if not wants:
        return True
    ranges = [range(free + 1) for free in devices]
    return any(
        can_be_cut(tuple(f - t for f, t in zip(devices, taken, strict=True)), wants[1:])
        for taken in itertools.product(*ranges)
        if sum(taken) == wants[0]
    )


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=3),
    st.integers(0, 3),
    st.integers(1, 2),
    st.sampled_from(["cuda.device", "cpu"]),
)
def test_a_session_starts_exactly_when_its_devices_can_be_cut(
    free: list[int], want: int, kernels: int, slot: str
) -> None:
    node = Agent(
        "a1",
        "default",
        "x86_64",
        tuple(Device(slot, str(n), 3 * MICRO, units * MICRO) for n, units in enumerate(free)),
    )
    asked = session(wants={slot: want}, kernels=kernels)
    assert bool(started(snapshot([node], [asked]))) == can_be_cut(tuple(free), (want,) * kernels)
