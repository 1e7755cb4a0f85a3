"""Who ends for whom, and that what they leave goes to the one for whom they ended."""

from __future__ import annotations

from dataclasses import replace

import pytest

from spawner.scheduler.model import GroupPolicy, PreemptionRules, RunningSession, Snapshot
from tests.harness.snapshots import GROUP, agent, running, session, snapshot

from .answers import planned, started, told


def case(
    runs: list[RunningSession], *, priority: int = 50, cpus: int = 2, more=(), **rules: object
) -> Snapshot:  # type: ignore[no-untyped-def]
    """A full agent of eight CPUs and a session that wants some of them."""
    group = GroupPolicy(GROUP, preemption=PreemptionRules(**rules))  # type: ignore[arg-type]
    asked = session("high", {"cpu": cpus}, priority=priority)
    return snapshot([agent(used={"cpu": 8})], [asked, *more], groups=[group], runs=runs)


def ended(snap: Snapshot) -> list[str]:
    return sorted(each.victim_id for each in planned(snap).preemptions)


PAIR = [
    running("old", holds={"cpu": 2}, started=-900, owner="ada"),
    running("new", holds={"cpu": 6}, started=-30, owner="bob"),
]


def test_it_is_off_by_default() -> None:
    full = snapshot([agent(used={"cpu": 8})], [session("high", priority=90)], runs=PAIR)
    assert planned(full).preemptions == ()


@pytest.mark.parametrize(
    ("rules", "victims"),
    [
        ({"order": "oldest"}, ["old"]),
        ({"order": "newest"}, ["new"]),
        ({"order": "smallest-resources"}, ["old"]),
        ({"order": "fewest-sessions"}, ["new"]),
        ({"minimum_run_time": 60.0}, ["old"]),
        ({"scope": "user"}, ["old"]),
        ({"minimum_run_time": 60.0, "order": "newest", "scope": "project"}, ["old"]),
        ({"minimum_run_time": 1e6}, []),
    ],
)
def test_who_ends(rules: dict[str, object], victims: list[str]) -> None:
    assert ended(case(PAIR, **rules)) == victims


@pytest.mark.parametrize(("priority", "victims"), [(10, []), (11, ["new"]), (9, [])])
def test_only_strictly_lower_priorities_end(priority: int, victims: list[str]) -> None:
    assert ended(case(PAIR, priority=priority)) == victims


def test_the_lowest_priority_ends_first() -> None:
    assert ended(case([replace(PAIR[0], priority=0), PAIR[1]], order="newest")) == ["old"]


def test_some_do_not_end_for_anybody() -> None:
    assert ended(case([replace(each, preemptible=False) for each in PAIR])) == []


def test_nobody_ends_who_is_not_needed() -> None:
    runs = [running(f"r{n}", holds={"cpu": n + 1}, started=-n - 1) for n in range(3)]
    assert ended(case(runs, cpus=2, order="newest")) == ["r1"]


def test_nobody_ends_when_all_together_would_not_do() -> None:
    assert ended(case(PAIR[:1], cpus=4)) == []


def test_nobody_ends_while_enough_is_ending_already() -> None:
    assert ended(case([replace(PAIR[0], ending=True), PAIR[1]])) == []


def test_one_does_not_end_for_two() -> None:
    snap = case(PAIR, cpus=6, more=[session("high2", {"cpu": 6}, priority=50, at=1)])
    assert [e.for_session_id for e in planned(snap).preemptions] == ["high"]
    assert planned(snap).preemptions[0].action == "requeue"
    assert told(snap, "high").waits_for == ("new",)


def test_the_place_of_victims_is_kept_until_they_are_gone() -> None:
    """One of two victims has gone; even a session of higher priority does not get its place."""
    runs = [
        running("gone soon", holds={"cpu": 4}, ending=True, claimed_by="high"),
        running("other", holds={"cpu": 2}, priority=90),
    ]
    group = GroupPolicy(GROUP, preemption=PreemptionRules())
    pending = [session("high", {"cpu": 6}, priority=50), session("top", {"cpu": 2}, priority=90)]
    waits = snapshot([agent(used={"cpu": 6})], pending, groups=[group], runs=runs)
    assert started(waits) == {}
    there = {each.session_id: each.agent_ids for each in planned(waits).reservations}
    assert there["high"] == ("a1",)


def test_what_is_kept_is_for_the_session_itself() -> None:
    runs = [running("slow", holds={"cpu": 2}, ending=True, claimed_by="high")]
    group = GroupPolicy(GROUP, preemption=PreemptionRules())
    asked = session("high", {"cpu": 4}, priority=50)
    snap = snapshot([agent(used={"cpu": 2})], [asked], groups=[group], runs=runs)
    assert started(snap) == {"high": "a1"}


def test_nothing_is_kept_where_the_session_cannot_go_any_more() -> None:
    """Found by the properties: the victim's agent is closed by now."""
    runs = [running("slow", holds={"cpu": 8}, ending=True, claimed_by="high")]
    nodes = [agent(used={"cpu": 8}, schedulable=False), agent("a2", used={"cpu": 8})]
    group = GroupPolicy(GROUP, preemption=PreemptionRules())
    snap = snapshot(nodes, [session("high", priority=50)], groups=[group], runs=runs)
    assert [each.agent_ids for each in planned(snap).reservations] == [("a2",)]
