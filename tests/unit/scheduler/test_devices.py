"""Cutting amounts out of devices."""

from __future__ import annotations

import pytest

from spawner.scheduler.devices import DeviceStock, slot_stock, take, usable
from spawner.scheduler.model import DeviceShare
from spawner.scheduler.slots import MICRO
from tests.harness.snapshots import agent, session, snapshot

from .answers import planned

CUTS = [
    ([8], 3, {"0": 3}),
    ([1, 1, 1, 1], 3, {"0": 1, "1": 1, "2": 1}),
    ([4, 2, 3], 2, {"1": 2}),
    ([4, 2, 3], 5, {"0": 4, "1": 1}),
    ([4, 4, 1], 9, {"0": 4, "1": 4, "2": 1}),
    ([0, 2, 2], 2, {"1": 2}),
]


@pytest.mark.parametrize(("free", "amount", "cuts"), CUTS)
def test_few_devices_and_the_last_part_where_it_is_tightest(
    free: list[int], amount: int, cuts: dict[str, int]
) -> None:
    stock = [DeviceStock(str(rank), rank, 9, left) for rank, left in enumerate(free)]
    assert dict(take(stock, amount)) == cuts
    assert [device.free for device in stock] == [
        left - cuts.get(str(rank), 0) for rank, left in enumerate(free)
    ]


@pytest.mark.parametrize("amount", [0, -1, 4])
def test_what_is_not_there_is_not_cut_and_nothing_is_taken(amount: int) -> None:
    stock = [DeviceStock("0", 0, 2, 2), DeviceStock("1", 1, 2, 1)]
    with pytest.raises(ValueError, match="cannot cut"):
        take(stock, amount)
    assert [device.free for device in stock] == [2, 1]


def test_only_whole_quanta_are_usable() -> None:
    assert usable("cuda.device", MICRO + 1) == MICRO
    assert usable("cuda.device", MICRO - 1) == 0
    assert usable("cpu", 250_000) == 200_000
    assert usable("mem", 7) == 7
    assert usable("mem", -7) == 0


def test_devices_are_counted_2_before_10() -> None:
    node = agent(has={"cuda.device": 12})
    peers = [device for device in node.devices if device.slot == "cuda.device"]
    assert [device.device_id for device in slot_stock(peers)][1:3] == ["cuda1", "cuda2"]


@pytest.mark.parametrize("cores", [False, True])
def test_cpus_come_from_one_device_or_from_cores(cores: bool) -> None:
    node = agent(has={"cpu": 4, "mem": "4g", "cuda.device": 2}, used={"cpu": "1.5"}, cores=cores)
    wants = {"cpu": 2, "mem": "1g", "cuda.device": 1, "cuda.shares": 0}
    (placement,) = planned(snapshot([node], [session(wants=wants)])).placements
    cpus = (
        [DeviceShare("cpu", "cpu2", MICRO), DeviceShare("cpu", "cpu3", MICRO)]
        if cores
        else [DeviceShare("cpu", "cpu", 2 * MICRO)]
    )
    assert list(placement.kernels[0].shares) == [
        *cpus,
        DeviceShare("cuda.device", "cuda0", MICRO),
        DeviceShare("mem", "mem", 2**30),
    ]


def test_all_kernels_of_a_session_get_their_own_devices_on_one_agent() -> None:
    nodes = [
        agent("a1", has={"cpu": 8, "cuda.device": 1}),
        agent("a2", has={"cpu": 8, "cuda.device": 2}),
    ]
    (placement,) = planned(
        snapshot(nodes, [session(wants={"cuda.device": 1}, kernels=2)])
    ).placements
    assert [kernel.agent_id for kernel in placement.kernels] == ["a2", "a2"]
    assert [kernel.shares[0].device_id for kernel in placement.kernels] == ["cuda0", "cuda1"]
