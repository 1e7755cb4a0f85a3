"""Rules about devices: whole shares, one NUMA node, what is the host's, families that exclude each other."""

from __future__ import annotations

from dataclasses import replace

import pytest

from spawner.scheduler.model import Agent, Device, DeviceRules, SessionRequest
from spawner.scheduler.plan import plan
from spawner.scheduler.slots import MICRO
from tests.harness.snapshots import session, snapshot

from .answers import planned, reasons, told


def _node(*devices: Device) -> Agent:
    return Agent("a1", "default", "x86_64", devices)


def _share(name: str, free: float, capacity: float = 1.0, numa: int | None = None) -> Device:
    return Device("cuda.shares", name, int(capacity * MICRO), int(free * MICRO), numa)


def _asks(wants: dict[str, object], rules: DeviceRules, kernels: int = 1) -> SessionRequest:
    return replace(session(wants=wants, kernels=kernels), devices=rules)


def _cut(node: Agent, asked: SessionRequest) -> dict[str, int]:
    (placement,) = planned(snapshot([node], [asked])).placements
    return {s.device_id: s.amount for kernel in placement.kernels for s in kernel.shares}


def test_a_share_up_to_one_device_is_not_scattered() -> None:
    node = _node(_share("g0", 0.5), _share("g1", 0.5))
    whole = DeviceRules(unfragmented=True)
    assert sum(_cut(node, _asks({"cuda.shares": "0.8"}, DeviceRules())).values()) == 800_000
    answer = told(snapshot([node], [_asks({"cuda.shares": "0.8"}, whole)]), "s1")
    assert reasons(answer) == {"fragmentation": 1}
    assert answer.message.endswith("waiting for devices that are free together")


def test_more_than_one_device_comes_in_equal_shares() -> None:
    node = _node(*(_share(f"g{n}", 1.0) for n in range(4)))
    rules = DeviceRules(unfragmented=True)
    assert _cut(node, _asks({"cuda.shares": "1.5"}, rules)) == {"g0": 750_000, "g1": 750_000}


def test_evenly_takes_from_all() -> None:
    node = _node(_share("g0", 1.0), _share("g1", 1.0))
    rules = DeviceRules(fill="evenly")
    assert _cut(node, _asks({"cuda.shares": "0.5"}, rules)) == {"g0": 250_000, "g1": 250_000}


def test_one_numa_node_for_all_devices_of_a_kernel() -> None:
    gpus = [Device("cuda.device", f"g{n}", MICRO, MICRO, n % 2) for n in range(4)]
    require = DeviceRules(numa="require")
    assert _cut(_node(*gpus), _asks({"cuda.device": 2}, require)) == {"g0": MICRO, "g2": MICRO}
    busy = [replace(gpus[0], free=0), replace(gpus[1], free=0), *gpus[2:]]
    answer = told(snapshot([_node(*busy)], [_asks({"cuda.device": 2}, require)]), "s1")
    assert reasons(answer) == {"numa": 1}
    never = told(snapshot([_node(*gpus)], [_asks({"cuda.device": 3}, require)]), "s1")
    assert never.message == "cannot ever start: no node has 3 GPUs on one NUMA node"
    prefer = DeviceRules(numa="prefer")
    assert len(_cut(_node(*busy), _asks({"cuda.device": 2}, prefer))) == 2


def test_masked_devices_and_reserved_parts_are_not_given() -> None:
    node = _node(
        replace(_share("g0", 1.0), masked=True),
        Device("cpu", "cpu", 4 * MICRO, 4 * MICRO, reserved=MICRO),
    )
    assert told(snapshot([node], [session(wants={"cuda.shares": 1})]), "s1").unsatisfiable
    assert told(snapshot([node], [session(wants={"cpu": 4})]), "s1").unsatisfiable
    assert _cut(node, session(wants={"cpu": 3})) == {"cpu": 3 * MICRO}


def test_linked_devices_go_together() -> None:
    links = {"g0": {"g3"}, "g3": {"g0"}, "g1": set(), "g2": set()}
    gpus = [
        Device("cuda.device", n, MICRO, MICRO, links=frozenset(to))
        for n, to in sorted(links.items())
    ]
    assert set(_cut(_node(*gpus), session(wants={"cuda.device": 2}))) == {"g0", "g3"}
    assert set(_cut(_node(*gpus), session(wants={"cuda.device": 1}))) == {"g1"}


@pytest.mark.parametrize("other", ["cuda.device", "cuda.shares"])
def test_a_partition_excludes_other_ways_of_its_family(other: str) -> None:
    node = _node(Device("cuda.1g.10gb-mig", "m0", MICRO, MICRO), Device(other, "g1", MICRO, MICRO))
    asked = session(wants={"cuda.1g.10gb-mig": 1, other: 1})
    assert reasons(told(snapshot([node], [asked]), "s1")) == {"exclusive-family": 0}
    assert _cut(node, session(wants={"cuda.1g.10gb-mig": 1})) == {"m0": MICRO}


def test_an_agent_may_cut_in_larger_steps() -> None:
    node = _node(replace(_share("g0", 1.0), quantum=MICRO // 2))
    never = told(snapshot([node], [session(wants={"cuda.shares": "0.3"})]), "s1")
    assert reasons(never) == {"quantum": 1}
    assert never.unsatisfiable
    assert _cut(node, session(wants={"cuda.shares": "0.5"})) == {"g0": MICRO // 2}


def test_exactly_packable_clusters_are_not_called_impossible() -> None:
    nodes = [
        replace(_node(Device("cpu", "cpu", 10 * MICRO, 10 * MICRO)), agent_id=f"a{n}")
        for n in range(4)
    ]
    asked = session(kernels=8, cluster_mode="multi-node")
    sizes = (7, 3, 6, 4, 5, 5, 8, 2)
    kernels = tuple(
        replace(k, slots={"cpu": n * MICRO}) for k, n in zip(asked.kernels, sizes, strict=True)
    )
    assert len(planned_only(nodes, replace(asked, kernels=kernels))) == 8


def planned_only(nodes: list[Agent], asked: SessionRequest) -> list[str]:
    """Kernels that start; without ``validate``, which would try every way of seating them."""
    return [k.kernel_id for p in plan(snapshot(nodes, [asked])).placements for k in p.kernels]
