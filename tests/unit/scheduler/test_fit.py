"""The dry run."""

from __future__ import annotations

from spawner.scheduler.plan import fit, fit_all
from tests.harness.snapshots import agent, quota, session, snapshot


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
    assert fit(snapshot(), session()).message == "queued, first in line: no node is connected yet"


def test_the_explanation_carries_the_callers_session_id() -> None:
    explanation = fit(snapshot(), session("mine")).explanation
    assert explanation is not None
    assert explanation.session_id == "mine"
