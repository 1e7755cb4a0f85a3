"""Dry runs pass over those who surely wait; what they answer is the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spawner.scheduler.dryrun import fit_all, why
from spawner.scheduler.model import (
    DeviceRules,
    GroupPolicy,
    PreemptionRules,
    SessionRequest,
    Snapshot,
    Verdict,
)
from spawner.scheduler.plan import plan
from spawner.scheduler.sieve import FRONT, Sieve
from tests.harness.snapshots import GROUP, agent, quota, running, session, snapshot

from .strategies import session as any_session
from .strategies import snapshots


def unsieved(case: Snapshot, asked: list[SessionRequest]) -> tuple[Verdict, ...]:
    """The same by working everybody out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sieve, "lane", lambda sieve, session: None)
        return fit_all(case, asked)


@given(snapshots(crowd=True), st.lists(any_session(9), min_size=1, max_size=2))
def test_it_changes_no_answer(case: Snapshot, asked: list[SessionRequest]) -> None:
    assert fit_all(case, asked) == unsieved(case, asked)


@given(snapshots(plain=True, crowd=True))
def test_why_says_of_everybody_what_the_plan_says(case: Snapshot) -> None:
    """What is missing may differ: a plan says it as it was for the first of equal requests."""
    known = {each.name for each in case.groups}
    waiting = {each.session_id: each for each in plan(case).waiting}
    for asked in case.pending:
        told = waiting.get(asked.session_id)
        if told is None or asked.resource_group not in known:
            continue
        verdict = why(case, asked.session_id)
        assert verdict.verdict == ("never" if told.unsatisfiable else "wait")
        assert verdict.explanation is not None
        assert verdict.explanation.position == told.position


def queue(count: int, **wants: object) -> list[SessionRequest]:
    return [session(f"q{n:03}", {"cpu": n % 7 + 2, **wants}, at=n) for n in range(count)]


def position(case: Snapshot) -> int:
    asked = session("new", {"cpu": 8})
    (verdict,) = fit_all(case, [asked])
    assert verdict == unsieved(case, [asked])[0]
    assert verdict.explanation is not None
    return verdict.explanation.position


FULL = agent(used={"cpu": 7})


def test_everybody_who_stands_in_line_counts() -> None:
    assert position(snapshot([FULL], queue(20))) == 21


def test_who_is_held_back_by_a_limit_does_not_count() -> None:
    limits = [quota(limit={"cpu": 4})]
    able = sum(each.kernels[0].slots["cpu"] <= 4_000_000 for each in queue(20))
    asked = [replace(each, access_key="key-ada") for each in queue(20)]
    mine = replace(session("new", {"cpu": 8}), access_key="key-bob")
    (verdict,) = fit_all(snapshot([FULL], asked, quotas=limits), [mine])
    assert verdict.explanation is not None
    assert verdict.explanation.position == able + 1


def test_who_can_never_start_does_not_count() -> None:
    never = [session(f"n{n}", {"cpu": 9}, at=n) for n in range(5)]
    assert position(snapshot([FULL], [*never, *queue(5)])) == 6


@pytest.mark.parametrize(
    "group",
    [
        GroupPolicy(GROUP, required_slots=frozenset({"mem"})),
        GroupPolicy(GROUP, served_slots=frozenset({"mem"})),
    ],
)
def test_what_is_wrong_in_itself_does_not_count(group: GroupPolicy) -> None:
    assert fit_all(snapshot([FULL], queue(5), groups=[group]), queue(1))[0].verdict == "never"
    asked = session("new", {"mem": "33g"})
    (verdict,) = fit_all(snapshot([FULL], queue(5), groups=[group]), [asked])
    assert verdict == unsieved(snapshot([FULL], queue(5), groups=[group]), [asked])[0]


def test_those_who_preempt_are_worked_out() -> None:
    group = GroupPolicy(GROUP, preemption=PreemptionRules())
    runs = [running("r", holds={"cpu": 7}, priority=5)]
    assert position(snapshot([FULL], queue(4), groups=[group], runs=runs)) == 5


def test_many_different_nodes_count_as_one_that_has_the_most_of_everything() -> None:
    nodes = [
        agent(
            f"a{n:02}",
            {"cpu": FRONT + 9, "mem": f"{FRONT + 9}g"},
            {"cpu": n, "mem": f"{FRONT + 8 - n}g"},
        )
        for n in range(FRONT + 8)
    ]
    big = [session(f"b{n}", {"cpu": 30, "mem": "30g"}, at=n) for n in range(3)]
    huge = [session(f"h{n}", {"cpu": FRONT + 9, "mem": f"{FRONT + 9}g"}, at=n) for n in range(3)]
    case = snapshot(nodes, [*big, *huge])
    asked = session("new", {"cpu": FRONT + 9})
    assert fit_all(case, [asked]) == unsieved(case, [asked])


def test_rules_that_ask_for_certain_devices_are_worked_out() -> None:
    group = GroupPolicy(GROUP, devices=DeviceRules(numa="require"))
    assert position(snapshot([FULL], queue(4), groups=[group])) == 5
