"""Every filter by name, with the number of agents it removed."""

from __future__ import annotations

import pytest

from tests.harness.snapshots import agent, session, snapshot

from .answers import reasons, started, told

FULL = {"cpu": 8}
CASES = [
    (agent(architecture="aarch64"), session(), "architecture"),
    (agent(), session(designated=["a9"]), "designated"),
    (agent(has={"cpu": 1, "mem": "1g"}), session(wants={"cpu": 2}), "total-capacity"),
    (agent(max_containers=1), session(kernels=2), "total-capacity"),
    (agent(alive=False), session(), "alive"),
    (agent(schedulable=False), session(), "schedulable"),
    (agent(containers=2, max_containers=2), session(), "container-limit"),
    (agent(used=FULL), session(), "capacity"),
]


@pytest.mark.parametrize(("node", "asked", "name"), CASES, ids=lambda value: str(value)[:20])
def test_each_filter_counts_what_it_removed(node, asked, name: str) -> None:  # type: ignore[no-untyped-def]
    answer = told(snapshot([node], [asked]), "s1")
    assert reasons(answer) == {name: 1}
    assert answer.agents_total == 1


def test_counts_are_taken_one_filter_after_another() -> None:
    nodes = [
        agent("a1", architecture="aarch64", used=FULL),
        agent("a2", used=FULL),
        agent("a3", used=FULL, alive=False),
        agent("a4", has={"cpu": 1, "mem": "1g"}),
        agent("other", group="west"),
    ]
    answer = told(snapshot(nodes, [session(wants={"cpu": 2})]), "s1")
    assert reasons(answer) == {"architecture": 1, "total-capacity": 1, "alive": 1, "capacity": 1}
    assert answer.agents_total == 4


def test_a_session_goes_where_all_filters_let_it() -> None:
    nodes = [
        agent("a1", used=FULL),
        agent("a2", schedulable=False),
        agent("a3", containers=1, max_containers=1),
        agent("a4"),
        agent("a5"),
    ]
    assert started(snapshot(nodes, [session(designated=["a1", "a2", "a3", "a5"])])) == {"s1": "a5"}


def test_containers_started_in_the_same_pass_count() -> None:
    pending = [session("pair", kernels=2, at=1), session("one", at=2), session("more", at=3)]
    case = snapshot([agent(containers=1, max_containers=4)], pending)
    assert set(started(case)) == {"pair", "one"}
    assert reasons(told(case, "more")) == {"container-limit": 1}


def test_whole_devices_are_not_pieced_together() -> None:
    """Two GPUs that are half held (a shrunk report) are not one GPU."""
    from dataclasses import replace

    node = agent(has={"cpu": 8, "cuda.device": 2})
    half = tuple(
        replace(device, free=500_000) if device.slot == "cuda.device" else device
        for device in node.devices
    )
    answer = told(
        snapshot([replace(node, devices=half)], [session(wants={"cuda.device": 1})]), "s1"
    )
    assert answer.message == "queued, first in line: waiting for 1 GPU"


@pytest.mark.parametrize("lost", [{"alive": False}, {"schedulable": False}])
def test_a_node_that_may_come_back_is_waited_for(lost: dict[str, bool]) -> None:
    nodes = [agent("small", has={"cpu": 1, "mem": "1g"}), agent("big", **lost)]
    case = snapshot(nodes, [session("big", {"cpu": 4}), session("small", at=1)])
    assert started(case) == {"small": "small"}
    answer = told(case, "big")
    assert not answer.unsatisfiable
    assert answer.message.startswith("queued, first in line: waiting for a suitable node (1 ")
