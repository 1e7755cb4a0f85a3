"""Bands, first come first served, and policies by name."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from spawner.scheduler.model import GroupPolicy, SessionRequest
from spawner.scheduler.order import OrderContext, SequencerError
from spawner.scheduler.plan import plan
from spawner.scheduler.policies import BUILT_IN, Policies, PolicyError
from tests.harness.snapshots import agent, session, snapshot

from .answers import planned, started


def test_bands_go_first_then_time_then_id() -> None:
    pending = [
        session("late", at=9),
        session("b", at=1),
        session("a", at=1),
        session("low", at=0, priority=0),
        session("high", at=10, priority=100),
    ]
    assert planned(snapshot([agent()], pending)).order == ("high", "a", "b", "late", "low")


def test_the_first_ones_get_what_there_is() -> None:
    pending = [session("second", at=2), session("third", at=3), session("first", at=1)]
    assert set(started(snapshot([agent(has={"cpu": 2, "mem": "1g"})], pending))) == {
        "first",
        "second",
    }


@pytest.mark.parametrize("kind", ["sequencer", "selector"])
def test_an_unknown_policy_is_an_error_that_lists_the_known_ones(kind: str) -> None:
    group = GroupPolicy("default", **{kind: "magic"})
    known = (
        "drf, fair-share, fifo, lifo"
        if kind == "sequencer"
        else "concentrated, dispersed, legacy, round-robin"
    )
    with pytest.raises(PolicyError) as caught:
        plan(snapshot(groups=[group]))
    assert str(caught.value) == f"{kind} of resource group 'default' is 'magic': known are {known}"


def test_a_foreign_sequencer_sees_what_the_pass_did_before_it_chooses_again() -> None:
    """Policies such as progressive filling need it: the generator runs as sessions are decided."""
    seen: list[str] = []

    def lifo(sessions: Sequence[SessionRequest], context: OrderContext):  # type: ignore[no-untyped-def]
        for each in sorted(sessions, key=lambda each: -each.submitted_at):
            seen.append(each.session_id)
            yield each

    policies = Policies({"lifo": lifo}, BUILT_IN.selectors)
    case = snapshot([agent()], [session("a", at=1), session("b", at=2)], sequencer="lifo")
    assert plan(case, policies).order == ("b", "a")
    assert seen == ["b", "a"]


@pytest.mark.parametrize(
    ("sequencer", "says"),
    [
        (lambda sessions, context: sessions[:1], "left out 1 of 2 sessions of band 10"),
        (lambda sessions, context: [*sessions, sessions[0]], "gave session a in band 10"),
    ],
)
def test_a_sequencer_that_loses_or_repeats_sessions_is_refused(sequencer, says) -> None:  # type: ignore[no-untyped-def]
    policies = Policies({"odd": sequencer}, BUILT_IN.selectors)
    case = snapshot([agent()], [session("a"), session("b")], sequencer="odd")
    with pytest.raises(SequencerError, match=says):
        plan(case, policies)
