"""The dry run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from spawner.scheduler.dryrun import fit, fit_all, why
from spawner.scheduler.model import Dependency, SessionRequest
from tests.harness.snapshots import NOW, agent, quota, running, session, slots, snapshot

from .answers import told


def test_now_wait_and_never() -> None:
    case = snapshot([agent(used={"cpu": 6})])
    now, wait, never = fit_all(
        case, [session(wants={"cpu": 2}), session(wants={"cpu": 4}), session(wants={"cpu": 9})]
    )
    assert (now.verdict, now.message, now.agent_id, now.explanation) == (
        "now",
        "can start now",
        "a1",
        None,
    )
    assert (wait.verdict, wait.message) == ("wait", "queued, first in line: waiting for 2 CPUs")
    assert never.verdict == "never"
    assert never.message == "cannot ever start: no node has more than 8 CPUs (asked for 9 CPUs)"


def test_it_comes_after_everyone_who_waits() -> None:
    pending = [session("a", {"cpu": 8}, at=100), session("low", {"cpu": 8}, priority=0)]
    verdict = fit(snapshot([agent()], pending), session("new", at=0))
    assert verdict.verdict == "wait"
    assert verdict.message == "queued, first in line: waiting for 1 CPU"


def test_it_does_not_wait_for_lower_bands() -> None:
    assert (
        fit(snapshot([agent()], [session("low", {"cpu": 8}, priority=0)]), session()).verdict
        == "now"
    )


def test_several_requests_do_not_see_each_other() -> None:
    asked = [session("same", {"cpu": 8}), session("same", {"cpu": 8})]
    assert [verdict.verdict for verdict in fit_all(snapshot([agent()]), asked)] == ["now", "now"]


def test_limits_no_group_and_no_node() -> None:
    quotas = [quota(sessions=2, running=2)]
    assert fit(snapshot([agent()], quotas=quotas), session()).verdict == "wait"
    assert fit(snapshot([agent()], quotas=[quota(sessions=0)]), session()).verdict == "never"
    assert fit(snapshot([agent()]), session(group="gone")).verdict == "wait"
    assert (
        fit(snapshot(), session()).message
        == "queued, first in line: no node of its resource group is connected yet"
    )


def test_the_explanation_carries_the_callers_session_id() -> None:
    explanation = fit(snapshot(), session("mine")).explanation
    assert explanation is not None
    assert explanation.session_id == "mine"


def test_it_says_when_and_what_would_fit() -> None:
    runs = [running("r", holds={"cpu": 6}, ends=120)]
    case = snapshot([agent(used={"cpu": 6})], runs=runs)
    verdict = fit(case, session(wants={"cpu": 4, "mem": "1g"}))
    assert verdict.explanation is not None
    assert verdict.explanation.starts_at == NOW + 120
    assert verdict.explanation.waits_for == ("r",)
    assert verdict.would_fit == slots({"cpu": 2, "mem": "1g"})


def test_why_answers_for_one_that_waits_without_a_reservation() -> None:
    runs = [running("r", holds={"cpu": 8}, ends=120)]
    pending = [session("a", {"cpu": 8}, run_time=60), session("b", {"cpu": 8}, at=1)]
    case = snapshot([agent(used={"cpu": 8})], pending, runs=runs)
    answer = why(case, "b")
    assert (answer.verdict, answer.message) == (
        "wait",
        "queued, second in line: waiting for 8 CPUs",
    )
    assert answer.explanation is not None
    assert answer.explanation.starts_at == NOW + 180
    assert why(case, "a").explanation == told(case, "a")


@pytest.mark.parametrize(
    ("asked", "verdict"),
    [
        (session(), "now"),
        (session(wants={"cpu": 9}), "never"),
        (session(group="gone"), "wait"),
        (session(starts_at=60), "wait"),
        (
            replace(session(), dependencies=(Dependency("p", "failed"),), failed_parents="cancel"),
            "never",
        ),
    ],
)
def test_why_in_one_call(asked: SessionRequest, verdict: str) -> None:
    assert why(snapshot([agent()], [asked]), "s1").verdict == verdict


def test_why_knows_only_those_who_wait() -> None:
    with pytest.raises(KeyError):
        why(snapshot(), "gone")
