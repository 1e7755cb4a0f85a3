"""Idle sessions are warned of, extended and ended."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from authenticator.principals import Principal, Scope
from authenticator.problems import (
    BadRequest,
    Forbidden,
    InvalidParameters,
    NotFound,
    QuotaExceeded,
)
from hub.api.views import ends_in, extended, session_info
from spawner.agent.protocol import Measures
from spawner.sessions.events import Event, Subscription
from spawner.sessions.idle_watch import WARNING, _percent
from spawner.sessions.requests import SessionDetail
from spawner.sessions.states import Status
from spawner.sessions.tables import SessionRow
from tests.harness.agent import FakeAgent
from tests.harness.plane import REQUEST, Rig, until

USE = {"thresholds": {"cpu_util": 10}, "window": 600, "initial_grace": 60}


def shapes(quiet: float, cpu: float) -> dict[str, Any]:
    return {
        "connections": {"current": "0", "quiet": quiet, "watched": quiet},
        "cpu_util": {
            "current": str(cpu),
            "capacity": "100",
            "pct": str(cpu),
            "unit_hint": "percent",
        },
    }


async def measured(
    plane: Rig, agent: FakeAgent, detail: SessionDetail, quiet: float = 0, cpu: float = 0
) -> None:
    """The agent tells something new, and the manager has heard it."""
    before = plane.clock()
    kernel = str(detail.main.id)
    agent.say(Measures(at=0.0, node={}, devices={}, kernels={kernel: shapes(quiet, cpu)}))

    async def heard() -> bool:
        view = plane.plane.agents.statistics.node(agent.agent_id)
        return view is not None and view.at >= before

    await until(heard, bool)


async def look(
    plane: Rig, agent: FakeAgent, detail: SessionDetail, seconds: float, **told: float
) -> None:
    """``seconds`` pass, the agent measures, the manager looks."""
    plane.clock.forward(seconds)
    await measured(plane, agent, detail, **told)
    await plane.plane.reconciler.idle.look()


async def settled(plane: Rig) -> None:
    """The manager has led for a while."""
    await plane.plane.reconciler.idle.look()
    plane.clock.forward(40)
    await plane.plane.reconciler.idle.look()


async def checks(plane: Rig, owner: Principal, detail: SessionDetail) -> Any:
    now = await plane.plane.sessions.get(owner, str(detail.session.id))
    return session_info(now, plane.clock())["idleChecks"]


async def facts(plane: Rig, owner: Principal, detail: SessionDetail) -> Any:
    now = await plane.plane.sessions.get(owner, str(detail.session.id))
    return session_info(now, plane.clock())["perijove"]


async def warnings(events: Subscription) -> list[Event]:
    """The warnings so far."""
    events.close()
    return [event async for event in events]


def listen(plane: Rig) -> Subscription:
    return plane.plane.bus.subscribe(lambda event: event.name == WARNING)


async def test_who_is_away_is_warned_and_ended(plane: Rig) -> None:
    agent, ada = await plane.agent(), await plane.user()
    await plane.policy(idle_timeout=600, idle_checks={"warn_before": 100})
    detail = await plane.run(ada)
    await settled(plane)
    events = listen(plane)
    for second in range(50, 500, 50):
        await look(plane, agent, detail, 50, quiet=second)
    assert not await warnings(events)
    events = listen(plane)
    await look(plane, agent, detail, 50, quiet=500)
    told = await checks(plane, ada, detail)
    assert told["network_timeout"]["remaining"] == pytest.approx(100, abs=2)
    assert told["network_timeout"]["remaining_time_type"] == "expire_after"
    await look(plane, agent, detail, 50, quiet=550)
    assert (await plane.wait(detail)).status is Status.RUNNING
    await look(plane, agent, detail, 55, quiet=605)
    ended = await plane.wait(detail, Status.TERMINATED)
    assert ended.session.status_data["end"] == {
        "reason": "idle-timeout",
        "message": "nobody was connected to it for 10 minutes",
    }
    (warning,) = await warnings(events)
    assert warning.reason.startswith("nobody is connected to it: it ends in 100 seconds, at ")
    history = await plane.plane.sessions.history(ada, str(detail.session.id))
    assert warning.reason in [row.cause for row in history if row.kind == "progress"]


async def test_who_stays_connected_is_never_told_of_an_end_that_is_near(plane: Rig) -> None:
    """However short the limit is, and however seldom verdicts are kept."""
    agent, ada = await plane.agent(), await plane.user()
    await plane.policy(idle_timeout=30, idle_checks={"warn_before": 10})
    detail = await plane.run(ada)
    await settled(plane)
    for _ in range(8):
        await look(plane, agent, detail, 8, quiet=0)
        told = (await checks(plane, ada, detail)).get("network_timeout")
        assert told is None or 10 - 8 < told["remaining"] <= 30


async def test_a_short_limit_is_not_written_down_at_every_look(plane: Rig) -> None:
    """One that is no longer than the time in which owners are warned, which is halved then."""
    agent, ada = await plane.agent(), await plane.user()
    await plane.policy(idle_timeout=300)
    detail = await plane.run(ada)
    await settled(plane)
    written = set()
    for _ in range(6):
        await look(plane, agent, detail, 10, quiet=0)
        row = (await plane.plane.sessions.get(ada, str(detail.session.id))).session
        written.add(0.0 if row.idle is None else row.idle["at"])
    assert len(written) <= 2


async def test_who_comes_back_stays(plane: Rig) -> None:
    agent, ada = await plane.agent(), await plane.user()
    await plane.policy(idle_timeout=600, idle_checks={"warn_before": 100})
    detail = await plane.run(ada)
    await settled(plane)
    for second in range(50, 600, 50):
        await look(plane, agent, detail, 50, quiet=second)
    await look(plane, agent, detail, 50, quiet=0)
    told = await checks(plane, ada, detail)
    assert told["network_timeout"]["remaining"] == pytest.approx(600, abs=2)
    for second in range(50, 500, 50):
        await look(plane, agent, detail, 50, quiet=second)
    assert (await plane.wait(detail)).status is Status.RUNNING


async def test_a_manager_that_slept_ends_nobody_at_once(plane: Rig) -> None:
    agent, ada = await plane.agent(), await plane.user()
    await plane.policy(idle_timeout=600, idle_checks={"warn_before": 100})
    detail = await plane.run(ada)
    await settled(plane)
    events = listen(plane)
    await look(plane, agent, detail, 5000, quiet=5000)
    await look(plane, agent, detail, 20, quiet=5020)
    assert not await checks(plane, ada, detail), "nothing is decided yet"
    assert not await warnings(events)
    await look(plane, agent, detail, 20, quiet=5040)
    assert (await plane.wait(detail)).status is Status.RUNNING, "it was not warned yet"
    await look(plane, agent, detail, 20, quiet=20)
    told = await checks(plane, ada, detail)
    assert told["network_timeout"]["remaining"] == pytest.approx(580, abs=2)


async def test_without_measures_nothing_is_decided(plane: Rig) -> None:
    await plane.agent()
    ada = await plane.user()
    await plane.policy(idle_timeout=60, idle_checks={"utilization": USE})
    detail = await plane.run(ada)
    for _ in range(30):
        plane.clock.forward(50)
        await plane.plane.reconciler.idle.look()
    assert (await plane.wait(detail)).status is Status.RUNNING
    assert not await checks(plane, ada, detail)


async def test_who_uses_little_is_ended_and_a_restart_loses_nothing(plane: Rig) -> None:
    agent, ada = await plane.agent(), await plane.user()
    await plane.policy(idle_checks={"warn_before": 100, "utilization": USE})
    detail = await plane.run(ada)
    await settled(plane)
    told = await checks(plane, ada, detail)
    assert told["utilization"]["remaining_time_type"] == "grace_period"
    for _ in range(60):
        await look(plane, agent, detail, 10, cpu=1)
    told = await checks(plane, ada, detail)
    assert told["utilization"]["extra"] == {"resources": {"cpu_util": [1.0, 10.0]}}
    await plane.crash()
    await plane.restart()
    events = listen(plane)
    for _ in range(6):
        await look(plane, agent, detail, 10, cpu=1)
    ended = await plane.wait(detail, Status.TERMINATED)
    assert ended.session.status_data["end"]["reason"] == "idle-utilization"
    assert "cpu_util 1 of 10 percent" in ended.session.status_data["end"]["message"]
    assert not await warnings(events), "the warning was given before the restart"


@pytest.mark.parametrize(
    ("shape", "percent"),
    [
        ({"current": "1", "capacity": "4", "pct": "25", "unit_hint": "bytes"}, 25.0),
        ({"current": "7", "capacity": None, "pct": "0", "unit_hint": "pct"}, 7.0),
        ({"current": "7", "capacity": None, "pct": "0", "unit_hint": "bytes"}, None),
        ({"current": "7", "capacity": "8", "pct": "x", "unit_hint": "bytes"}, None),
        ({}, None),
        (None, None),
    ],
)
def test_use_of_what_has_no_capacity_is_not_nought(
    shape: dict[str, Any] | None, percent: float | None
) -> None:
    assert _percent(shape) == percent


async def test_who_works_stays(plane: Rig) -> None:
    agent, ada = await plane.agent(), await plane.user()
    await plane.policy(idle_checks={"warn_before": 100, "utilization": USE})
    detail = await plane.run(ada)
    await settled(plane)
    for _ in range(90):
        await look(plane, agent, detail, 10, cpu=50)
    assert (await plane.wait(detail)).status is Status.RUNNING
    told = await checks(plane, ada, detail)
    assert told["utilization"]["remaining"] == pytest.approx(600, abs=61)


async def test_a_life_time_is_warned_of_and_extended(plane: Rig) -> None:
    await plane.agent()
    ada = await plane.user()
    await plane.policy(max_session_lifetime=7200, idle_checks={"warn_before": 600})
    detail = await plane.run(ada, run_time=3600)
    events = listen(plane)
    plane.clock.forward(3100)
    await plane.plane.reconciler.idle.look()
    (warning,) = await warnings(events)
    assert warning.reason.startswith("its run time is nearly over: it ends in 8 minutes")
    assert (await facts(plane, ada, detail))["warning"] == {
        "check": "session_lifetime",
        "message": "its run time is nearly over",
        "ends_in": pytest.approx(500, abs=2),
    }
    row = await extend(plane, ada, detail, "30m")
    assert extended(row, plane.clock())["ends_in"] == pytest.approx(2300, abs=2)
    assert (await facts(plane, ada, detail))["warning"] is None
    plane.clock.forward(600)
    await plane.plane.reconciler.end_overdue()
    await plane.plane.reconciler.idle.look()
    told = await checks(plane, ada, detail)
    assert told["session_lifetime"]["remaining"] == pytest.approx(1700, abs=2)
    (listed,) = await plane.plane.sessions.list(ada)
    assert ends_in(listed.session, plane.clock()) == pytest.approx(1700, abs=2)
    await extend(plane, ada, detail, "5h")
    with pytest.raises(QuotaExceeded, match="as late as your policy allows"):
        await extend(plane, ada, detail, "5h")
    plane.clock.forward(3501)
    await plane.plane.reconciler.end_overdue()
    ended = await plane.wait(detail, Status.TERMINATED)
    assert ended.session.status_data["end"]["reason"] == "idle-session-lifetime"
    with pytest.raises(BadRequest, match="only running sessions"):
        await extend(plane, ada, detail)


async def extend(
    plane: Rig, who: Principal, detail: SessionDetail, by: str | None = None
) -> SessionRow:
    return await plane.plane.extensions.extend(who, str(detail.session.id), by, REQUEST)


async def test_who_extends_counts_anew_as_often_as_allowed(plane: Rig) -> None:
    agent, ada, bob = await plane.agent(), await plane.user(), await plane.user("bob")
    await plane.policy(idle_timeout=600, idle_checks={"warn_before": 100, "extensions": 1})
    detail = await plane.run(ada)
    await settled(plane)
    for second in range(50, 600, 50):
        await look(plane, agent, detail, 50, quiet=second)
    with pytest.raises(NotFound):
        await extend(plane, bob, detail)
    with pytest.raises(InvalidParameters) as refused:
        await extend(plane, ada, detail, "soon")
    assert "by" in refused.value.fields
    row = await extend(plane, replace(ada, scopes=frozenset({Scope.SESSIONS_EXTEND})), detail)
    assert extended(row, plane.clock())["ends_in"] == pytest.approx(600, abs=2)
    with pytest.raises(Forbidden):
        await extend(plane, replace(ada, scopes=frozenset({Scope.SESSIONS_READ})), detail)
    await look(plane, agent, detail, 50, quiet=600)
    told = await checks(plane, ada, detail)
    assert told["network_timeout"]["remaining"] == pytest.approx(550, abs=2)
    assert (await plane.wait(detail)).status is Status.RUNNING
    with pytest.raises(QuotaExceeded, match="extended 1 times, and your policy allows 1"):
        await extend(plane, ada, detail)


async def test_nothing_counts_as_idleness_of_who_is_new_here(plane: Rig) -> None:
    agent = await plane.agent()
    begun = plane.clock()
    ada = await plane.user()
    await plane.policy(
        idle_timeout=300,
        idle_checks={"warn_before": 100, "new_user_grace": "20m", "utilization": USE},
    )
    detail = await plane.run(ada)
    await settled(plane)
    events = listen(plane)
    for second in range(50, 1000, 50):
        await look(plane, agent, detail, 50, quiet=second, cpu=1)
    told = await checks(plane, ada, detail)
    assert {each["remaining_time_type"] for each in told.values()} == {"grace_period"}
    assert told["network_timeout"]["remaining"] == pytest.approx(1200 - 990 + 300, abs=61)
    assert told["utilization"]["remaining"] == pytest.approx(1200 - 990 + 600, abs=61)
    assert not await warnings(events)
    row = await extend(plane, ada, detail)
    left = 1200 + 300 - (plane.clock() - begun).total_seconds()
    assert extended(row, plane.clock())["ends_in"] == pytest.approx(left, abs=2)
    for second in range(1000, 1550, 50):
        await look(plane, agent, detail, 50, quiet=second, cpu=1)
    ended = await plane.wait(detail, Status.TERMINATED)
    assert ended.session.status_data["end"]["reason"] == "idle-timeout"
