"""Waiting counts from when a session could have started, and bounds every wait, across bands too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.simulator import Job, Simulation
from spawner.scheduler.dryrun import fit, why
from spawner.scheduler.model import GroupPolicy, SessionGroup
from spawner.scheduler.plan import plan
from tests.harness.snapshots import GROUP, NOW, agent, session, snapshot

from .answers import planned, started

DAY = 86400.0


def test_ageing_counts_from_when_nothing_of_its_own_held_it_back() -> None:
    """Sessions that waited for a parent for days are no older than those that waited for nothing."""
    late = [
        replace(session(f"ada{n}", at=-4 * DAY + n, owner="ada"), eligible_since=NOW - 10)
        for n in range(6)
    ]
    fresh = [session(f"bob{n}", at=-20, owner="bob") for n in range(6)]
    case = snapshot(
        [agent(has={"cpu": 4, "mem": "8g"})], [*late, *fresh], groups=[GroupPolicy(GROUP, "drf")]
    )
    begun = set(started(case))
    assert len([name for name in begun if name.startswith("ada")]) == 2
    assert len([name for name in begun if name.startswith("bob")]) == 2


def test_those_who_aged_go_by_the_time_they_wait() -> None:
    pending = [
        replace(session("released", at=-9 * DAY), eligible_since=NOW - 4 * DAY),
        session("patient", at=-5 * DAY),
    ]
    case = snapshot([agent()], pending, groups=[GroupPolicy(GROUP, "lifo", rise=None)])
    assert planned(case).order == ("patient", "released")


def test_who_waits_very_long_comes_before_all_bands() -> None:
    pending = [
        session("boss", {"cpu": 8}, priority=100),
        session("old", {"cpu": 8}, at=-8 * DAY, priority=0),
    ]
    case = snapshot([agent(used={"cpu": 1})], pending)
    assert planned(case).order == ("old", "boss")
    assert "old" in {each.session_id for each in planned(case).reservations}
    strict = snapshot([agent(used={"cpu": 1})], pending, groups=[GroupPolicy(GROUP, rise=None)])
    assert planned(strict).order == ("boss", "old")


def test_a_session_never_rises_before_it_has_aged() -> None:
    pending = [session("boss", priority=100), session("old", at=-100, priority=0)]
    case = snapshot([agent()], pending, groups=[GroupPolicy(GROUP, ageing=200.0, rise=50.0)])
    assert planned(case).order == ("boss", "old")


def test_dry_runs_see_those_who_rose() -> None:
    """Whoever rose goes before the request, and before a waiting session, though its priority is lower."""
    old = session("old", {"cpu": 8}, at=-8 * DAY, priority=0)
    boss = session("boss", {"cpu": 8}, priority=100)
    free = [agent()]
    assert fit(snapshot(free, [old]), boss).verdict == "wait"
    assert why(snapshot(free, [old, boss]), "boss").verdict == "wait"
    assert why(snapshot(free, [old, boss]), "old").verdict == "now"


def test_members_of_a_session_group_are_the_same_whatever_rule_each_asks_for() -> None:
    first = replace(session("first"), session_group=SessionGroup("g", "pack"))
    second = replace(session("second", at=1), session_group=SessionGroup("g", "spread", True))
    case = snapshot([agent("a1"), agent("a2")], [first, second])
    answer = planned(case)
    agents = {each.session_id: each.kernels[0].agent_id for each in answer.placements}
    assert agents["first"] != agents["second"]


RUN_TIME = 100.0


def stream(rise: float, ahead: int) -> Iterator[Job]:
    """Sessions of high priority without end, and some of the lowest that came first."""
    for number in range(ahead + 1):
        asked = session(f"low{number}", {"cpu": 8}, at=-NOW + number, priority=0)
        yield Job(replace(asked, run_time=RUN_TIME), RUN_TIME)
    for number in range(int((rise + (ahead + 3) * RUN_TIME) / 40)):
        asked = session(f"high{number}", {"cpu": 4}, at=-NOW + 40.0 * number, priority=50)
        yield Job(replace(asked, run_time=RUN_TIME), RUN_TIME)


@given(
    st.sampled_from((60.0, 300.0, 900.0)),
    st.integers(0, 3),
    st.sampled_from(("fifo", "lifo", "drf", "fair-share")),
)
def test_no_stream_of_higher_bands_starves_a_lower_one(
    rise: float, ahead: int, sequencer: str
) -> None:
    """It starts within ``rise`` and the run times of those that rose before it, plus what runs."""
    group = GroupPolicy(GROUP, sequencer, ageing=rise / 2, rise=rise)
    until = rise + (ahead + 4) * RUN_TIME
    result = Simulation(
        [agent()],
        list(stream(rise, ahead)),
        plan,
        group,
        until,
        pause=0.0,
        tick=20.0,
    ).run()
    lives = {life.job.request.session_id: life for life in result.lives}
    for number in range(ahead + 1):
        assert lives[f"low{number}"].waited(until) <= rise + (number + 1) * RUN_TIME + 20.0
