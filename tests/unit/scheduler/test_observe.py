"""Who watches a pass learns of every phase, and a watched pass decides the same."""

from __future__ import annotations

import itertools

from hypothesis import given

from spawner.scheduler.model import GroupPolicy, PreemptionRules, Snapshot
from spawner.scheduler.observe import Phase
from spawner.scheduler.plan import plan
from spawner.sessions.stopwatch import Stopwatch
from tests.harness.snapshots import GROUP, agent, running, session, snapshot

from .strategies import snapshots


def test_the_phases_of_a_session_that_starts_and_of_one_that_preempts() -> None:
    seen: list[tuple[str, Phase]] = []
    rules = GroupPolicy(GROUP, preemption=PreemptionRules())
    runs = [running("r", holds={"cpu": 4}, priority=0)]
    pending = [session("a", {"cpu": 4}), session("b", {"cpu": 4}, at=1)]
    case = snapshot([agent(used={"cpu": 4})], pending, groups=[rules], runs=runs)
    plan(case, observer=lambda group, phase: seen.append((group, phase)))
    assert [phase for _, phase in seen] == [
        "prepare",
        *("order", "check", "place"),
        *("order", "check", "place", "explain", "preempt", "reserve"),
        "order",
        "",
    ]
    assert {group for group, _ in seen} == {GROUP}


@given(snapshots())
def test_a_watched_pass_decides_the_same_and_every_phase_ends(case: Snapshot) -> None:
    seen: list[tuple[str, Phase]] = []
    answer = plan(case, observer=lambda group, phase: seen.append((group, phase)))
    assert answer == plan(case)
    assert [group for group, phase in seen if not phase] == sorted(g.name for g in case.groups)
    assert all(before[1] or after[1] == "prepare" for before, after in itertools.pairwise(seen))


def test_a_stopwatch_adds_up_what_each_phase_of_each_group_took() -> None:
    moments = iter((0.0, 1.0, 3.0, 6.0, 10.0, 15.0, 21.0))
    watch = Stopwatch(lambda: next(moments))
    watch("east", "order")
    watch("east", "place")
    watch("east", "order")
    watch("east", "")
    watch("west", "order")
    watch("", "")
    assert watch.seconds == {
        ("east", "order"): 2.0 + 4.0,
        ("east", "place"): 3.0,
        ("west", "order"): 6.0,
    }
