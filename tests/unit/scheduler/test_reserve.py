"""Reservations and what may run before them; sessions that waited too long; clusters over nodes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from spawner.scheduler.model import GroupPolicy, Reservation, SessionGroup, Snapshot
from spawner.scheduler.slots import MICRO
from tests.harness.snapshots import GROUP, NOW, agent, running, session, snapshot

from .answers import planned, started, told

DAY = 86400.0
FULL = agent(used={"cpu": 8})


def reserved(case: Snapshot) -> dict[str, Reservation]:
    return {each.session_id: each for each in planned(case).reservations}


def test_the_earliest_start_comes_from_known_ends() -> None:
    nodes = [agent("a1", used={"cpu": 8}), agent("a2", used={"cpu": 8})]
    runs = [
        running("r1", "a1", {"cpu": 4}, ends=50),
        running("r2", "a1", {"cpu": 4}, ends=900),
        running("r3", "a2", {"cpu": 8}, ends=300),
    ]
    case = snapshot(nodes, [session("head", {"cpu": 6})], runs=runs)
    there = reserved(case)["head"]
    assert (there.starts_at, there.agent_ids) == (NOW + 300, ("a2",))
    assert told(case, "head").starts_at == NOW + 300
    assert told(case, "head").waits_for == ("r3",)


@pytest.mark.parametrize(("run_time", "starts"), [(100, True), (101, False), (None, False)])
def test_what_ends_in_time_runs_before_the_head(run_time: float | None, starts: bool) -> None:
    runs = [running("r", holds={"cpu": 4}, ends=100)]
    later = session("later", {"cpu": 4}, at=2, run_time=run_time)
    case = snapshot([agent(used={"cpu": 4})], [session("head", {"cpu": 8}), later], runs=runs)
    assert ("later" in started(case)) == starts


def test_what_the_head_leaves_over_is_free_for_any_time() -> None:
    runs = [running("r", holds={"cpu": 4}, ends=100)]
    pending = [session("head", {"cpu": 6}), *(session(f"s{n}", at=1 + n) for n in range(3))]
    case = snapshot([agent(used={"cpu": 4})], pending, runs=runs)
    assert set(started(case)) == {"s0", "s1"}


def test_two_that_end_in_time_do_not_add_up_to_a_delay() -> None:
    """Short ones use the gap, long ones the rest; the head starts on time in any case."""
    runs = [running("r", holds={"cpu": 4}, ends=100)]
    pending = [
        session("head", {"cpu": 7}),
        session("long", at=1),
        session("short", {"cpu": 3}, at=2, run_time=90),
        session("long2", at=3),
    ]
    case = snapshot([agent(used={"cpu": 4})], pending, runs=runs)
    assert set(started(case)) == {"long", "short"}


@pytest.mark.parametrize(
    ("ends", "known"), [(-10.0, True), (-4000.0, False), (None, False), (60.0, True)]
)
def test_an_end_long_past_is_not_known_any_more(ends: float | None, known: bool) -> None:
    case = snapshot([FULL], [session("head")], runs=[running("r", holds={"cpu": 8}, ends=ends)])
    at = reserved(case)["head"].starts_at
    assert (at is not None) == known
    assert at in (None, NOW + max(0.0, ends or 0.0))


def test_one_that_is_ending_is_expected_at_any_moment() -> None:
    runs = [running("r", holds={"cpu": 8}, ending=True)]
    assert reserved(snapshot([FULL], [session("head")], runs=runs))["head"].starts_at == NOW


def test_a_gpu_head_does_not_keep_the_first_cpu_session_from_its_reservation() -> None:
    node = agent(has={"cpu": 8, "mem": "8g", "cuda.device": 1}, used={"cpu": 6, "cuda.device": 1})
    pending = [
        session("gpu", {"cpu": 2, "cuda.device": 1}),
        session("gpu2", {"cuda.device": 1}, at=1),
        session("cpu", {"cpu": 4}, at=2),
        session("cpu2", {"cpu": 4}, at=3),
    ]
    assert set(reserved(snapshot([node], pending))) == {"gpu", "cpu"}


def test_every_band_has_its_own_first() -> None:
    pending = [
        session("high", {"cpu": 8}, priority=50),
        session("high2", {"cpu": 8}, priority=50, at=1),
        session("low", {"cpu": 8}),
    ]
    assert set(reserved(snapshot([FULL], pending))) == {"high", "low"}


def test_the_second_reservation_begins_after_the_first() -> None:
    runs = [running("r", holds={"cpu": 8}, ends=100)]
    pending = [session("high", {"cpu": 8}, priority=50, run_time=30), session("low", {"cpu": 8})]
    there = reserved(snapshot([FULL], pending, runs=runs))
    assert there["high"].starts_at == NOW + 100
    assert there["low"].starts_at == NOW + 130


def test_those_who_waited_too_long_have_their_own_reservations_in_front() -> None:
    pending = [
        session("head", {"cpu": 6}),
        *(session(f"old{n}", {"cpu": 7}, at=-4 * DAY + n) for n in range(2)),
    ]
    nodes = [agent(f"a{n}", used={"cpu": 2}) for n in range(3)]
    assert set(reserved(snapshot(nodes, pending))) == {"old0", "old1"}
    assert planned(snapshot(nodes, pending)).order == ("old0", "old1", "head")


def test_ageing_is_the_groups_own() -> None:
    group = GroupPolicy(GROUP, "lifo", ageing=60.0)
    pending = [session("old", {"cpu": 8}, at=-61), session("new", {"cpu": 8})]
    case = snapshot([agent(used={"cpu": 1})], pending, groups=[group])
    assert planned(case).order == ("old", "new")
    assert set(reserved(case)) == {"old"}


# Clusters.


def test_a_cluster_over_nodes_starts_whole() -> None:
    nodes = [agent("a1"), agent("a2"), agent("a3", used={"cpu": 8})]
    asked = session("c", {"cpu": 5}, kernels=2, cluster_mode="multi-node")
    placed = planned(snapshot(nodes, [asked])).placements[0]
    assert {each.agent_id for each in placed.kernels} == {"a1", "a2"}
    assert [each.kernel_id for each in placed.kernels] == ["c-k0", "c-k1"]


def test_or_not_at_all_and_leaves_nothing_behind() -> None:
    nodes = [agent("a1"), agent("a2", used={"cpu": 4})]
    asked = session("c", {"cpu": 5}, kernels=2, cluster_mode="multi-node")
    case = snapshot(nodes, [asked, session("next", {"cpu": 3}, at=1, run_time=5)])
    assert started(case) == {"next": "a1"}
    assert (
        told(case, "c").message
        == "queued, first in line: waiting for nodes for all 2 containers at once"
    )


def test_a_cluster_packs_when_the_group_concentrates() -> None:
    asked = session("c", {"cpu": 2}, kernels=3, cluster_mode="multi-node")
    for selector, count in (("concentrated", 1), ("dispersed", 3)):
        case = snapshot([agent(f"a{n}") for n in range(3)], [asked], selector=selector)
        placed = planned(case).placements[0]
        assert len({each.agent_id for each in placed.kernels}) == count


def test_unequal_parts_find_the_one_way_they_fit() -> None:
    nodes = [
        agent("a1", has={"cpu": 4, "mem": "8g"}),
        agent("a2", has={"cpu": 8, "mem": "2g"}),
    ]
    asked = session("c", kernels=2, cluster_mode="multi-node")
    one, two = asked.kernels
    parts = (
        replace(one, slots={"cpu": 4 * MICRO, "mem": 2**30}),
        replace(two, slots={"cpu": 3 * MICRO, "mem": 4 * 2**30}),
    )
    case = snapshot(nodes, [replace(asked, kernels=parts)])
    where = {each.kernel_id: each.agent_id for each in planned(case).placements[0].kernels}
    assert where == {"c-k0": "a2", "c-k1": "a1"}


def test_a_cluster_that_no_nodes_can_hold_waits_for_nothing() -> None:
    asked = session("c", {"cpu": 5}, kernels=3, cluster_mode="multi-node")
    answer = told(snapshot([agent("a1"), agent("a2")], [asked]), "c")
    assert answer.unsatisfiable
    assert answer.message == "cannot ever start: the nodes cannot hold all 3 containers at once"


def test_a_cluster_reserves_all_of_its_nodes_for_one_moment() -> None:
    nodes = [agent("a1", used={"cpu": 8}), agent("a2", used={"cpu": 8})]
    runs = [running("r1", "a1", {"cpu": 8}, ends=50), running("r2", "a2", {"cpu": 8}, ends=90)]
    asked = session("c", {"cpu": 5}, kernels=2, cluster_mode="multi-node")
    there = reserved(snapshot(nodes, [asked], runs=runs))["c"]
    assert (there.starts_at, there.agent_ids) == (NOW + 90, ("a1", "a2"))


# Session groups and preferred agents.


def grouped(name: str, rule: str, *, strict: bool, at: float = 0):  # type: ignore[no-untyped-def]
    return replace(session(name, at=at), session_group=SessionGroup("g", rule, strict))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rule", "strict", "places"),
    [
        ("spread", True, ["a1", "a2", None]),
        ("spread", False, ["a1", "a2", "a1"]),
        ("pack", True, ["a1", "a1", "a1"]),
        ("pack", False, ["a1", "a1", "a1"]),
    ],
)
def test_session_groups(rule: str, strict: bool, places: list[str | None]) -> None:
    pending = [grouped(f"s{n}", rule, strict=strict, at=n) for n in range(3)]
    where = started(snapshot([agent("a1"), agent("a2")], pending))
    assert [where.get(each.session_id) for each in pending] == places


def test_members_that_run_count_and_strict_groups_reserve_nothing_elsewhere() -> None:
    circle = SessionGroup("g", "pack", True)
    runs = [running("r", "a1", {"cpu": 8}, circle=circle)]
    nodes = [agent("a1", used={"cpu": 8}), agent("a2")]
    case = snapshot(nodes, [grouped("s", "pack", strict=True), session("t", at=1)], runs=runs)
    assert started(case) == {"t": "a2"}
    assert reserved(case)["s"].agent_ids == ("a1",)
    circle = SessionGroup("g", "spread", True)
    apart = snapshot(
        nodes[:1], [grouped("s", "spread", strict=True)], runs=[running("r", circle=circle)]
    )
    assert "1 ruled out by its session group" in told(apart, "s").message


def test_preferred_agents_are_a_wish() -> None:
    wish = replace(session("s", designated=["a2"]), designation="preferred")
    assert started(snapshot([agent("a1"), agent("a2", used={"cpu": 4})], [wish])) == {"s": "a2"}
    assert started(snapshot([agent("a1"), agent("a2", used={"cpu": 8})], [wish])) == {"s": "a1"}


def test_round_robin_goes_on_after_the_last_start() -> None:
    nodes = [agent(f"a{n}") for n in range(1, 5)]
    pending = [session(f"s{n}", at=n) for n in range(5)]
    runs = [running("r1", "a2", started=-5), running("r2", "a4", started=-90)]
    where = started(snapshot(nodes, pending, selector="round-robin", runs=runs))
    assert [where[f"s{n}"] for n in range(5)] == ["a3", "a4", "a1", "a2", "a3"]


def test_legacy_counts_kinds_of_slots_and_compares_them_one_by_one() -> None:
    nodes = [
        agent("a1", has={"cpu": 8, "mem": "8g"}),
        agent("a2", has={"cpu": 16, "mem": "8g", "cuda.device": 1}),
        agent("a3", has={"cpu": 9, "mem": "8g"}),
    ]
    asked = session("s", {"cpu": 1, "mem": "1g"})
    assert started(snapshot(nodes, [asked], selector="legacy")) == {"s": "a3"}


def test_containers_beyond_a_lowered_limit_have_to_end_first() -> None:
    """Three containers run where two may: the first end makes no room, the second does."""
    runs = [running(f"r{n}", holds={"cpu": 1}, ends=10 * n) for n in (1, 2, 3)]
    node = agent(used={"cpu": 3}, containers=3, max_containers=2)
    assert told(snapshot([node], [session()], runs=runs), "s1").starts_at == NOW + 20


def test_a_cluster_that_open_nodes_cannot_hold_keeps_none_of_them_idle() -> None:
    """One of its two nodes is closed: it waits for that one, and others run meanwhile."""
    asked = session("big", {"cpu": 8}, kernels=2, cluster_mode="multi-node")
    nodes = [agent("a1", used={"cpu": 4}), agent("a2", schedulable=False)]
    case = snapshot(nodes, [asked, session("small", {"cpu": 4}, at=1)])
    assert planned(case).reservations == ()
    assert started(case) == {"small": "a1"}


def test_what_ends_at_this_moment_makes_room_beside_a_claim() -> None:
    """Found by the properties: half of what is ending is claimed, the other half is for the next."""
    runs = [running("r", holds={"cpu": 8}, ending=True)]
    pending = [session("a", {"cpu": 4}), session("b", {"cpu": 4, "mem": "1g"}, at=1, priority=0)]
    there = {
        each.session_id: each.starts_at
        for each in planned(snapshot([agent(used={"cpu": 8})], pending, runs=runs)).reservations
    }
    assert there == {"a": NOW, "b": NOW}
