"""Which of the fitting agents is taken."""

from __future__ import annotations

import pytest

from tests.harness.snapshots import agent, session, snapshot

from .answers import started

GPU = {"cpu": 8, "mem": "32g", "cuda.device": 2}
SHARES = {"cpu": 16, "mem": "32g", "cuda.shares": 4}


@pytest.mark.parametrize(("selector", "chosen"), [("concentrated", "a2"), ("dispersed", "a1")])
def test_strategies_compare_what_is_left(selector: str, chosen: str) -> None:
    nodes = [
        agent("a1", used={"cpu": 1}),
        agent("a2", used={"cpu": 5}),
        agent("a3", used={"cpu": 8}),
    ]
    assert started(snapshot(nodes, [session()], selector=selector)) == {"s1": chosen}


@pytest.mark.parametrize(
    ("selector", "chosen"),
    [("concentrated", ["a1"] * 8 + ["a2"]), ("dispersed", ["a1", "a2", "a3"] * 3)],
)
def test_strategies_over_a_pass(selector: str, chosen: list[str]) -> None:
    pending = [session(f"s{number}", at=number) for number in range(9)]
    nodes = [agent("a3"), agent("a1"), agent("a2")]
    assert list(started(snapshot(nodes, pending, selector=selector)).values()) == chosen


@pytest.mark.parametrize(("selector", "chosen"), [("concentrated", "few"), ("dispersed", "many")])
def test_a_family_in_the_slot_priority_covers_its_slots(selector: str, chosen: str) -> None:
    """``cuda`` stands before ``cpu`` and means ``cuda.shares``, so free shares decide, not free CPUs."""
    nodes = [
        agent("few", SHARES, {"cuda.shares": 3, "cpu": 2}),
        agent("many", SHARES, {"cuda.shares": 1, "cpu": 14}),
    ]
    pending = [session(wants={"cpu": 1, "cuda.shares": "0.5"})]
    assert started(snapshot(nodes, pending, selector=selector)) == {"s1": chosen}


@pytest.mark.parametrize("selector", ["concentrated", "dispersed"])
@pytest.mark.parametrize("wants", [{"cpu": 1}, {"cpu": 1, "cuda.device": 0}])
def test_accelerator_hosts_are_kept_for_accelerator_work(
    selector: str, wants: dict[str, int]
) -> None:
    nodes = [
        agent("gpu", GPU, {"cpu": 4}),
        agent("plain", used={"cpu": 4}),
        agent("used", GPU, {"cuda.device": 2}),
    ]
    assert started(snapshot(nodes, [session(wants=wants)], selector=selector)) == {"s1": "plain"}


def test_accelerator_hosts_are_used_when_nothing_else_is_left() -> None:
    nodes = [agent("gpu", GPU), agent("plain", used={"cpu": 8})]
    assert started(snapshot(nodes, [session()])) == {"s1": "gpu"}


@pytest.mark.parametrize("selector", ["concentrated", "dispersed"])
def test_equal_agents_go_by_id(selector: str) -> None:
    nodes = [agent("b"), agent("a"), agent("c")]
    assert started(snapshot(nodes, [session()], selector=selector)) == {"s1": "a"}


def test_an_agent_that_has_the_image_starts_sooner() -> None:
    nodes = [agent("a"), agent("b", used={"cpu": 4}, images=["perijove/base"])]
    assert started(snapshot(nodes, [session(), session("s2", image="other", at=1)])) == {
        "s1": "b",
        "s2": "a",
    }


def test_an_agent_where_it_just_failed_is_avoided_not_forbidden() -> None:
    nodes = [agent("a"), agent("b", used={"cpu": 7})]
    pending = [
        session("x", failed=["a"], at=1),
        session("y", failed=["a"], at=2),
        session("z", failed=["b"], at=3),
    ]
    assert started(snapshot(nodes, pending)) == {"x": "b", "y": "a", "z": "a"}
