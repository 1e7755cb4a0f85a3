"""Feasibility against brute force: several agents, several slots, fractions, clusters of containers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache

from hypothesis import given
from hypothesis import strategies as st

from spawner.scheduler.dryrun import fit
from spawner.scheduler.model import Agent, Device, DeviceRules, KernelRequest, SessionRequest
from spawner.scheduler.slots import MICRO
from tests.harness.snapshots import ARCHITECTURE, GROUP, IMAGE, session, snapshot

from .answers import planned, started
from .test_oracle import can_be_cut

UNIT = {"cpu": MICRO // 2, "mem": 2**30, "cuda.shares": MICRO // 4}
"""The oracle counts in these: half a CPU, 1 GiB, a quarter of a GPU."""
DUST = {"cpu": MICRO // 20, "mem": 0, "cuda.shares": MICRO // 200}
"""Less than can be given of a slot: it is free and of no use, however many devices have some."""
SIZE = 4
"""Units that each device has in all."""

Free = Mapping[str, tuple[int, ...]]
"""Units free of each device of an agent, by slot."""
Wants = Mapping[str, int]

FREE: st.SearchStrategy[Free] = st.fixed_dictionaries(
    {
        "cpu": st.lists(st.integers(0, SIZE), min_size=1, max_size=2).map(tuple),
        "mem": st.integers(0, SIZE).map(lambda units: (units,)),
        "cuda.shares": st.lists(st.integers(0, SIZE), max_size=3).map(tuple),
    }
)
WANTS: st.SearchStrategy[Wants] = st.fixed_dictionaries(
    {
        "cpu": st.integers(0, SIZE),
        "mem": st.integers(0, 2),
        "cuda.shares": st.sampled_from((0, 0, 1, 2, 3, 4)),
    }
)


def _agent(number: int, free: Free, dusty: bool) -> Agent:
    devices = [
        Device(
            slot, f"{slot}{n}", SIZE * UNIT[slot], have * UNIT[slot] + (DUST[slot] if low else 0)
        )
        for slot, units in free.items()
        for n, have in enumerate(units)
        for low in (dusty and have < SIZE,)
    ]
    return Agent(f"a{number}", GROUP, ARCHITECTURE, tuple(devices))


def _session(parts: Sequence[Wants], mode: str, rules: DeviceRules) -> SessionRequest:
    kernels = tuple(
        KernelRequest(f"k{number}", {s: n * UNIT[s] for s, n in wants.items()}, IMAGE, ARCHITECTURE)
        for number, wants in enumerate(parts)
    )
    return replace(session(), kernels=kernels, cluster_mode=mode, devices=rules)


@cache
def one_device_each(devices: tuple[int, ...], wants: tuple[int, ...]) -> bool:
    """Try every device for the first want as a whole, then the rest."""
    if not wants:
        return True
    return any(
        one_device_each((*devices[:n], free - wants[0], *devices[n + 1 :]), wants[1:])
        for n, free in enumerate(devices)
        if free >= wants[0]
    )


def _holds(free: Free, here: Sequence[Wants], whole: bool) -> bool:
    """Whether one agent can give all of ``here`` at once."""
    for slot, devices in free.items():
        wants = tuple(each[slot] for each in here if each[slot])
        apart = whole and slot == "cuda.shares"
        if not (one_device_each if apart else can_be_cut)(devices, wants):
            return False
    return True


def _ways(parts: int, agents: int, mode: str) -> Iterator[tuple[int, ...]]:
    """Every way to put the containers on agents."""
    if mode == "single-node":
        return ((agent,) * parts for agent in range(agents))
    return itertools.product(range(agents), repeat=parts)


def _can_start(agents: Sequence[Free], parts: Sequence[Wants], mode: str, whole: bool) -> bool:
    return any(
        all(
            _holds(free, [p for p, seat in zip(parts, way, strict=True) if seat == number], whole)
            for number, free in enumerate(agents)
        )
        for way in _ways(len(parts), len(agents), mode)
    )


@given(
    st.lists(FREE, min_size=1, max_size=3),
    st.lists(WANTS, min_size=1, max_size=3),
    st.sampled_from(("single-node", "multi-node", "multi-node")),
    st.sampled_from(("concentrated", "dispersed", "round-robin", "legacy")),
    st.booleans(),
    st.booleans(),
)
def test_a_cluster_starts_exactly_when_there_is_a_way_to_place_it(
    agents: list[Free], parts: list[Wants], mode: str, selector: str, whole: bool, dusty: bool
) -> None:
    """Whatever the strategy prefers, it never misses the only way, and the dry run agrees."""
    rules = DeviceRules(unfragmented=whole)
    nodes = [_agent(number, free, dusty) for number, free in enumerate(agents)]
    asked = _session(parts, mode, rules)
    expected = _can_start(agents, parts, mode, whole)
    assert bool(started(snapshot(nodes, [asked], selector=selector))) == expected
    assert (fit(snapshot(nodes, selector=selector), asked).verdict == "now") == expected


@given(
    st.lists(FREE, min_size=1, max_size=2),
    st.lists(WANTS, min_size=2, max_size=4),
    st.booleans(),
)
def test_nobody_waits_whom_an_agent_still_has_room_for(
    agents: list[Free], wants: list[Wants], whole: bool
) -> None:
    """In their order: each starts exactly when brute force finds room in what those before it left.

    The rooms that are left are those of the plan, so that only the last one's answer is judged.
    """
    rules = DeviceRules(unfragmented=whole)
    nodes = [_agent(number, free, False) for number, free in enumerate(agents)]
    queue = [
        replace(_session([each], "single-node", rules), session_id=f"s{n}", submitted_at=float(n))
        for n, each in enumerate(wants)
    ]
    before = planned_free(agents, nodes, queue[:-1])
    if before is None:
        return
    last = queue[-1].session_id in started(snapshot(nodes, queue))
    assert last == _can_start(before, wants[-1:], "single-node", whole)


def planned_free(
    agents: Sequence[Free], nodes: Sequence[Agent], queue: Sequence[SessionRequest]
) -> list[Free] | None:
    """What is free after all of ``queue`` started, or None when one of them waits."""
    answer = planned(snapshot(nodes, queue))
    if answer.waiting:
        return None
    left = [{slot: list(units) for slot, units in free.items()} for free in agents]
    for placement in answer.placements:
        for kernel in placement.kernels:
            for share in kernel.shares:
                here = left[int(kernel.agent_id.removeprefix("a"))][share.slot]
                here[int(share.device_id.removeprefix(share.slot))] -= (
                    share.amount // UNIT[share.slot]
                )
    return [{slot: tuple(units) for slot, units in free.items()} for free in left]
