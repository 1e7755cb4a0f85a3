"""The pure checkers of idle sessions."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spawner.sessions.idleness import (
    EXPIRES,
    GRACE,
    Activity,
    Checks,
    Step,
    Utilization,
    Verdict,
    Window,
    deadline,
    decide,
    network_timeout,
    read_checks,
    session_lifetime,
    utilization,
)

NOW = 1_000_000.0
RULES = Utilization({"cpu_util": 10.0, "cuda_util": 20.0}, window=600.0, initial_grace=60.0)


@pytest.mark.parametrize(
    ("ends_at", "verdict"),
    [
        (None, None),
        (NOW + 30, Verdict(30.0, 130.0, hard=True)),
        (NOW - 5, Verdict(-5.0, 95.0, hard=True)),
    ],
)
def test_lifetime(ends_at: float | None, verdict: Verdict | None) -> None:
    assert session_lifetime(NOW - 100, ends_at, NOW) == verdict


@pytest.mark.parametrize(
    ("changes", "remaining"),
    [
        ({}, 500.0),
        ({"activity": Activity(NOW, 0.0)}, 600.0),
        ({"activity": Activity(NOW, 700.0)}, -100.0),
        ({"activity": Activity(NOW - 20, 100.0)}, 480.0),
        ({"since": NOW - 40}, 560.0),
        ({"since": NOW + 1}, 601.0),
        ({"since": NOW + 1, "activity": None}, None),
        ({"activity": None}, None),
        ({"timeout": None}, None),
        ({"timeout": 0}, None),
        ({"session_type": "batch"}, None),
        ({"activity": Activity(NOW - 121, 900.0)}, None),
        ({"resumed_at": NOW - 29}, None),
    ],
)
def test_network(changes: dict[str, Any], remaining: float | None) -> None:
    values: dict[str, Any] = {
        "timeout": 600.0,
        "session_type": "interactive",
        "activity": Activity(NOW, 100.0),
        "since": NOW - 5000,
        "resumed_at": NOW - 5000,
        "now": NOW,
    }
    verdict = network_timeout(**(values | changes))
    assert (None if verdict is None else verdict.remaining) == remaining


@given(
    st.floats(1, 1e6), st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1e6)
)
def test_the_network_never_ends_a_session_too_early(
    timeout: float, quiet: float, age: float, extended: float, resumed: float
) -> None:
    verdict = network_timeout(
        timeout,
        "interactive",
        Activity(NOW - age, quiet),
        since=NOW - extended,
        resumed_at=NOW - resumed,
        now=NOW,
    )
    if verdict is None:
        return
    assert verdict.remaining <= timeout
    assert age <= resumed, "what was measured before the pause decides nothing"
    if verdict.remaining <= 0:
        assert quiet + age >= timeout - 1e-3
        assert extended >= timeout - 1e-3


def filled(cpu: float, gpu: float, seconds: float = 600.0, step: float = 10.0) -> Window:
    window = Window(600.0)
    at = NOW - seconds
    while at <= NOW:
        window.add(at, {"cpu_util": cpu, "cuda_util": gpu})
        at += step
    return window


@pytest.mark.parametrize(
    ("cpu", "gpu", "slots", "operator", "remaining"),
    [
        (5, 5, ("cpu", "cuda.device"), "and", 0.0),
        (5, 50, ("cpu", "cuda.device"), "and", 600.0),
        (5, 50, ("cpu", "cuda.shares"), "or", 0.0),
        (50, 50, ("cpu", "cuda.device"), "or", 600.0),
        (5, 50, ("cpu", "mem"), "and", 0.0),
        (5, 5, ("mem",), "and", None),
    ],
)
def test_utilization(
    cpu: float, gpu: float, slots: tuple[str, ...], operator: str, remaining: float | None
) -> None:
    rules = Utilization(RULES.thresholds, operator, 600.0, 60.0)
    verdict = utilization(rules, filled(cpu, gpu), slots, since=NOW - 5000, now=NOW)
    assert (None if verdict is None else verdict.remaining) == remaining


def test_utilization_tells_what_it_saw() -> None:
    verdict = utilization(RULES, filled(5, 6), ("cpu", "cuda.device"), since=0, now=NOW)
    assert verdict is not None
    assert verdict.extra == {"resources": {"cpu_util": [5.0, 10.0], "cuda_util": [6.0, 20.0]}}


@pytest.mark.parametrize(
    ("window", "since", "verdict"),
    [
        (Window(600.0), NOW - 5000, None),
        (filled(5, 5, seconds=300), NOW - 5000, None),
        (filled(5, 5, step=30), NOW - 5000, None),
        (filled(5, 5, seconds=300), NOW - 300, (300.0, EXPIRES)),
        (Window(600.0), NOW + 40, (640.0, GRACE)),
    ],
    ids=["nothing", "half", "gaps", "not yet", "grace"],
)
def test_utilization_needs_a_whole_window(
    window: Window, since: float, verdict: tuple[float, str] | None
) -> None:
    found = utilization(RULES, window, ("cpu", "cuda.device"), since=since, now=NOW)
    assert (None if found is None else (found.remaining, found.kind)) == verdict


def test_old_measures_decide_nothing() -> None:
    window = filled(5, 5)
    assert utilization(RULES, window, ("cpu",), since=0, now=NOW + 100) is not None
    assert utilization(RULES, window, ("cpu",), since=0, now=NOW + 140) is None


def test_a_window_stays_small() -> None:
    assert len(filled(5, 5, seconds=6000, step=1).parts) == 60


@pytest.mark.parametrize(
    ("remaining", "warned_at", "step"),
    [
        (301, None, Step.NOTHING),
        (300, None, Step.WARN),
        (-50, None, Step.WARN),
        (100, NOW - 200, Step.NOTHING),
        (0, NOW - 299, Step.NOTHING),
        (0, NOW - 300, Step.END),
        (3600, NOW - 300, Step.CLEAR),
    ],
)
def test_nobody_ends_unwarned(remaining: float, warned_at: float | None, step: Step) -> None:
    assert decide(Verdict(remaining, 3600.0), warned_at, 300.0, NOW) is step


def test_a_short_limit_warns_later() -> None:
    assert decide(Verdict(31.0, 60.0), None, 300.0, NOW) is Step.NOTHING
    assert decide(Verdict(30.0, 60.0), None, 300.0, NOW) is Step.WARN


def test_a_late_warning_moves_the_end() -> None:
    assert deadline(Verdict(-50.0, 3600.0), NOW - 100, 300.0, NOW) == NOW + 200
    assert deadline(Verdict(200.0, 3600.0, hard=True), NOW, 300.0, NOW) == NOW + 200
    assert deadline(Verdict(50.0, 3600.0), None, 300.0, NOW) == NOW + 50


def test_a_policy_is_read() -> None:
    assert read_checks(None) == Checks()
    assert read_checks({"new_user_grace": "2d"}) == Checks(new_user_grace=172_800.0)
    use = {"thresholds": {"cpu_util": 5}, "operator": "or", "window": "2h", "initial_grace": "1m"}
    assert read_checks({"warn_before": "10m", "extensions": None, "utilization": use}) == Checks(
        600.0, None, Utilization({"cpu_util": 5.0}, "or", 7200.0, 60.0)
    )


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"x": 1}, "x: one of warn_before, extensions, utilization, new_user_grace"),
        ({"warn_before": "soon"}, "warn_before: 'soon': a duration"),
        ({"new_user_grace": "long"}, "new_user_grace: 'long': a duration"),
        ({"extensions": -1}, "extensions: '-1': a whole number from 0 to 1000, or null"),
        ({"extensions": True}, "extensions: 'True'"),
        ({"utilization": 5}, "utilization: '5': an object"),
        ({"utilization": {}}, "utilization.thresholds: 'None': percents by metric"),
        ({"utilization": {"thresholds": {"net_rx": 5}}}, "thresholds: 'net_rx': cpu_util, mem"),
        ({"utilization": {"thresholds": {"mem": 0}}}, "thresholds.mem: '0': a percentage above 0"),
        (
            {"utilization": {"thresholds": {"mem": 5}, "operator": "xor"}},
            "operator: 'xor': one of and, or",
        ),
        (
            {"utilization": {"thresholds": {"mem": 5}, "window": 10}},
            "window: 10 seconds: at least 60",
        ),
        ({"utilization": {"thresholds": {"mem": 5}, "grace": 1}}, "utilization.grace: one of"),
    ],
)
def test_wrong_policies_are_named(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=r".") as refused:
        read_checks(given)
    assert sentence in str(refused.value)
