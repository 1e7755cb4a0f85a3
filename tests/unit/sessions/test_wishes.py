"""What sessions ask of the scheduler: checked at submit, kept, shown to the scheduler, carried out."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncSession

from authenticator.problems import InvalidParameters, QuotaExceeded
from authenticator.tables import DomainRow, ProjectRow, UserRow
from spawner.scheduler.model import (
    Dependency,
    DeviceRules,
    Plan,
    Preemption,
    Reason,
    SessionGroup,
    SessionRequest,
    Snapshot,
    Usage,
)
from spawner.scheduler.policies import PolicyError
from spawner.sessions import runtimes, usage
from spawner.sessions.scheduling import PassResult, apply
from spawner.sessions.snapshot import read_snapshot
from spawner.sessions.states import Status
from spawner.sessions.tables import ResourceGroupRow, RunTimeRow, SessionRow
from tests.harness.agent import SlowAgent
from tests.harness.plane import REQUEST, Rig, until

CPU = 1_000_000


async def snapshot(plane: Rig) -> Snapshot:
    return (await plane.store.read(lambda db: read_snapshot(db, plane.clock()))).snapshot


async def pending(plane: Rig) -> SessionRequest:
    return (await snapshot(plane)).pending[0]


async def carry_out(plane: Rig, **parts: Any) -> PassResult:
    made = Plan((), (), **parts)
    return await plane.plane.journal.write(REQUEST, lambda change: apply(change, made, []))


async def options(plane: Rig, **given: object) -> None:
    await plane.store.write(
        lambda db: db.execute(update(ResourceGroupRow).values(options=dict(given)))
    )


async def come_up(plane: Rig, agent: SlowAgent) -> None:
    """Let the one kernel that the agent is handed come up."""

    async def handed() -> int:
        return len(agent.kernels)

    await until(handed, bool)
    agent.finish()


LATER = {"type": "batch", "startup_command": "x", "starts_at": "9d"}


async def test_wishes_reach_the_scheduler(plane: Rig) -> None:
    await plane.agent()
    ada = await plane.user()
    parent = await plane.create(ada, name="parent", **LATER)
    await plane.destroy(ada, parent)
    await plane.create(
        ada,
        **LATER,
        dependencies=["parent", str(parent.session.id)],
        failed_parents="ignore",
        run_time="90m",
        preemptible=False,
        designation="preferred",
        session_group={"name": "nodes", "rule": "pack", "strict": True},
        resource_opts={"allow_fractional_resource_fragmentation": False},
    )
    found = await pending(plane)
    assert found.dependencies == (Dependency(str(parent.session.id), "failed", "parent"),)
    assert found.failed_parents == "ignore"
    assert found.run_time == 5400.0
    assert found.preemptible is False
    assert found.designation == "preferred"
    assert found.session_group == SessionGroup(f"{ada.user_id}/nodes", "pack", True)
    assert found.devices == DeviceRules(unfragmented=True)
    assert found.kernels[0].shared_memory == 64 * 2**20


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"dependencies": ["nobody"]}, "dependencies.nobody", "no session of this name or id"),
    ({"failed_parents": "panic"}, "failedDependencies", "one of wait, cancel, ignore"),
    ({"run_time": "soon"}, "runTime", "a duration"),
    ({"run_time": 0}, "runTime", "1 second or more"),
    ({"designation": "maybe"}, "config.agentSelectionPolicy", "one of strict, preferred"),
    ({"session_group": {"rule": "pack"}}, "config.sessionGroup.name", "4 to 64 letters"),
    (
        {"session_group": {"name": "mine", "rule": "mix"}},
        "config.sessionGroup.rule",
        "one of spread, pack",
    ),
]


@pytest.mark.parametrize(("fields", "where", "sentence"), WRONG)
async def test_a_sentence_for_a_wrong_wish(
    standing: Rig, fields: dict[str, Any], where: str, sentence: str
) -> None:
    await standing.refuses(where, sentence, **fields)


async def test_only_ones_own_batch_sessions_can_be_parents(plane: Rig) -> None:
    await plane.agent()
    ada, bob = await plane.user(), await plane.user("bob")
    await plane.create(bob, name="of-bob", **LATER)
    await plane.run(ada, name="notebook")
    with pytest.raises(InvalidParameters) as refused:
        await plane.create(ada, dependencies=["of-bob", "notebook"])
    assert refused.value.fields == {
        "dependencies.of-bob": "you have no session of this name or id",
        "dependencies.notebook": "only a batch session can succeed, and this one is interactive",
    }


@pytest.mark.parametrize(
    ("code", "state"), [(0, "succeeded"), (1, "failed")], ids=["success", "failure"]
)
async def test_a_parent_counts_by_how_it_ended(plane: Rig, code: int, state: str) -> None:
    agent = await plane.agent()
    ada = await plane.user()
    parent = await plane.run(ada, type="batch", startup_command="x")
    await plane.create(ada, **LATER, dependencies=[parent.session.name])
    assert (await pending(plane)).dependencies[0].state == "waiting"
    agent.end(str(parent.main.id), code)
    await plane.wait(parent, Status.TERMINATED)
    assert (await pending(plane)).dependencies[0].state == state


async def test_the_life_time_of_the_policy_is_a_limit_for_all(plane: Rig) -> None:
    await plane.agent()
    ada = await plane.user()
    await plane.policy(max_session_lifetime=3600)
    await plane.create(ada, **LATER)
    assert (await pending(plane)).run_time == 3600.0
    with pytest.raises(InvalidParameters) as refused:
        await plane.create(ada, run_time="2h")
    assert refused.value.fields == {"runTime": "2h: you may run at most 3600 seconds"}


async def test_a_session_ends_at_its_limit(plane: Rig) -> None:
    await plane.agent()
    ada = await plane.user()
    detail = await plane.run(ada, type="batch", startup_command="x", run_time=20)
    (running,) = (await _reading_for(plane, ada.access_key)).running
    assert running.ends_at == pytest.approx(running.started_at + 20, abs=1)
    await plane.plane.reconciler.end_overdue()
    assert (await plane.wait(detail)).status is Status.RUNNING
    plane.clock.forward(21)
    await plane.plane.reconciler.end_overdue()
    ended = await plane.wait(detail, Status.TERMINATED)
    assert ended.session.status_data["end"]["reason"] == "task-timeout"
    assert ended.session.result == "failure"


async def test_a_group_can_bound_the_wait(plane: Rig) -> None:
    await plane.agent()
    ada = await plane.user()
    await options(plane, pending_timeout="1h")
    late = await plane.create(ada, cpu="4", name="late")
    stuck = await plane.create(ada, cpu="4", name="stuck")
    await plane.wait(late, Status.RUNNING)
    plane.clock.forward(3601)
    await plane.plane.reconciler.end_overdue()
    ended = await plane.wait(stuck, Status.CANCELLED)
    assert "waited longer than the 3600 seconds" in ended.session.status_info
    assert (await plane.wait(late)).status is Status.RUNNING


async def test_the_queue_of_one_person_is_bounded_by_amounts(plane: Rig) -> None:
    await plane.agent()
    ada = await plane.user()
    await plane.policy(max_pending_resource_slots={"cpu": 3 * CPU})
    await plane.create(ada, cpu="2", **LATER)
    with pytest.raises(QuotaExceeded, match="2 CPUs wait, and this one asks for 2 CPUs"):
        await plane.create(ada, cpu="2", **LATER)
    await plane.create(ada, cpu="1", **LATER)


async def _reading_for(plane: Rig, key: str) -> Snapshot:
    """A snapshot with one waiting session, so that everything is read."""
    ada = await plane.user()
    assert ada.access_key == key
    await plane.create(ada, **LATER)
    return await snapshot(plane)


async def test_limits_of_people_projects_and_domains(plane: Rig) -> None:
    await plane.agent()
    ada = await plane.user()
    await plane.run(ada, cpu="2")

    async def limit(db: AsyncSession) -> None:
        for table in (UserRow, ProjectRow, DomainRow):
            await db.execute(
                update(table).values(
                    max_concurrent_sessions=1, total_resource_slots={"cpu": 3 * CPU}
                )
            )

    await plane.store.write(limit)
    found = {each.scope: each for each in (await _reading_for(plane, ada.access_key)).quotas}
    assert set(found) >= {"user", "project", "domain"}
    for scope in ("user", "project", "domain"):
        assert found[scope].max_sessions == 1
        assert found[scope].held_sessions == 1
        assert found[scope].held_slots["cpu"] == 2 * CPU
    assert found["user"].scope_id == str(ada.user_id)


async def test_what_runs_is_shown_with_its_devices(plane: Rig) -> None:
    await plane.agent()
    ada = await plane.user()
    detail = await plane.run(ada, cpu="2", preemptible=False)
    (running,) = (await _reading_for(plane, ada.access_key)).running
    assert running.session_id == str(detail.session.id)
    assert running.owner_id == str(ada.user_id)
    assert not running.preemptible
    assert not running.ending
    assert running.ends_at is None
    held = {share.slot: share.amount for share in running.kernels[0].shares}
    assert held == {"cpu": 2 * CPU, "mem": 2**30}


async def test_a_victim_is_put_back_and_keeps_its_place(plane: Rig) -> None:
    agent = SlowAgent()
    await plane.agent(agent)
    ada = await plane.user()
    victim = await plane.create(ada, cpu="4", name="victim", run_time="1h")
    await come_up(plane, agent)
    await plane.wait(victim, Status.RUNNING)
    urgent = await plane.create(ada, cpu="4", name="urgent")
    preemption = Preemption(str(victim.session.id), str(urgent.session.id), "requeue")
    result = await carry_out(plane, preemptions=(preemption,))
    assert result.preempted == [str(victim.session.id)]
    assert (await carry_out(plane, preemptions=(preemption,))).preempted == [], "once is enough"
    assert (await plane.wait(victim, Status.PREEMPTED)).session.started_at is not None
    (running,) = (await snapshot(plane)).running
    assert running.ending
    assert running.claimed_by == str(urgent.session.id)
    await plane.validate()
    agent.finish()
    back = await plane.wait(victim, Status.PENDING, Status.SCHEDULED, Status.PREPARING)
    assert "preempted_for" not in back.session.status_data
    assert back.session.started_at is None
    assert back.session.ends_at is None
    assert back.session.created_at == victim.session.created_at


async def test_a_victim_that_is_ended_says_why(plane: Rig) -> None:
    await plane.agent()
    ada = await plane.user()
    victim = await plane.run(ada, cpu="4")
    urgent = await plane.create(ada, cpu="4")
    preemption = Preemption(str(victim.session.id), str(urgent.session.id), "terminate")
    await carry_out(plane, preemptions=(preemption,))
    ended = await plane.wait(victim, Status.TERMINATED)
    assert "make room" in ended.session.status_info
    assert (await plane.wait(urgent)).status is Status.RUNNING
    assert (await carry_out(plane, preemptions=(preemption,))).preempted == []


async def test_nobody_is_ended_for_one_who_does_not_wait_any_more(plane: Rig) -> None:
    await plane.agent()
    ada = await plane.user()
    victim = await plane.run(ada, cpu="4")
    urgent = await plane.create(ada, cpu="4")
    await plane.destroy(ada, urgent)
    preemption = Preemption(str(victim.session.id), str(urgent.session.id), "terminate")
    assert (await carry_out(plane, preemptions=(preemption,))).preempted == []
    assert (await plane.wait(victim)).status is Status.RUNNING


async def test_a_session_whose_parent_failed_is_cancelled(plane: Rig) -> None:
    await plane.agent()
    ada = await plane.user()
    child = await plane.create(ada, **LATER)
    reason = Reason("dependencies", "parent failed", data={"session_id": str(child.session.id)})
    assert (await carry_out(plane, cancelled=(reason,))).cancelled == [str(child.session.id)]
    ended = await plane.wait(child, Status.CANCELLED)
    assert ended.session.status_info == "parent failed"
    assert (await carry_out(plane, cancelled=(reason,))).cancelled == []


async def settle(plane: Rig) -> int:
    return await plane.store.write(lambda db: usage.settle(db, plane.clock(), {"default": 3600.0}))


async def read_usage(plane: Rig) -> dict[str, Usage]:
    found = await plane.store.read(
        lambda db: usage.read_usage(db, plane.clock(), {"default": 3600.0})
    )
    return {each.scope: each for each in found}


async def test_usage_is_charged_once_to_everybody_and_fades(plane: Rig) -> None:
    await plane.agent()
    ada = await plane.user()
    detail = await plane.run(ada, cpu="2")
    assert await settle(plane) == 2, "CPU and memory"
    plane.clock.forward(600)
    await settle(plane)
    found = await read_usage(plane)
    for scope in ("domain", "project", "user"):
        assert found[scope].slot_seconds["cpu"] == pytest.approx(2 * CPU * 600, rel=0.02)
    assert found["user"].scope_id.endswith(f"/{ada.user_id}")
    assert found["domain"].scope_id == "default"
    await plane.destroy(ada, detail)
    await plane.wait(detail, Status.TERMINATED)
    await settle(plane)
    assert await settle(plane) == 0, "what is freed is charged once"
    before = (await read_usage(plane))["user"].slot_seconds["cpu"]
    plane.clock.forward(3600)
    after = (await read_usage(plane))["user"].slot_seconds["cpu"]
    assert after == pytest.approx(before / 2, rel=0.01)


async def test_the_slow_tick_accounts(plane: Rig) -> None:
    await plane.agent()
    ada = await plane.user()
    await plane.run(ada, cpu="2")
    plane.clock.forward(100)
    await plane.plane.reconciler.sweep()
    assert (await read_usage(plane))["user"].slot_seconds["cpu"] > 190 * CPU


async def test_run_times_of_batch_sessions_are_learned(plane: Rig) -> None:
    agent = await plane.agent()
    ada = await plane.user()
    for _ in range(runtimes.ENOUGH):
        detail = await plane.run(ada, type="batch", startup_command="x")
        plane.clock.forward(10)
        agent.end(str(detail.main.id), 0)
        await plane.wait(detail, Status.TERMINATED)
    await plane.create(ada, **LATER)
    expected = (await pending(plane)).run_time
    assert expected is not None
    assert 10 < expected < 35
    await plane.run(ada, type="batch", startup_command="x")
    (running,) = (await snapshot(plane)).running
    assert running.ends_at == pytest.approx(running.started_at + expected, abs=1)
    plane.clock.forward(expected + 1)
    (running,) = (await snapshot(plane)).running
    assert running.ends_at is None, "it runs longer than was probable, nobody knows how long"


def test_steady_runs_are_trusted_more_than_erratic_ones() -> None:
    steady = RunTimeRow(samples=9, mean=100.0, deviation=1.0)
    assert runtimes.estimate(steady) < runtimes.estimate(
        RunTimeRow(samples=9, mean=100.0, deviation=40.0)
    )


async def test_a_group_that_names_an_unknown_policy_is_an_error_at_load_time(plane: Rig) -> None:
    await options(plane, sequencer="lottery")
    with pytest.raises(PolicyError, match="'lottery': one of"):
        await plane.plane.start()
    await options(plane)


async def test_one_who_only_looks_sees_the_queue_but_not_others_sessions(plane: Rig) -> None:
    from spawner.sessions.queries import without_agents

    told = {"msg": "x", "waits_for": ["someone"], "missing": [{"slot": "cpu", "agent_id": "n"}]}
    assert without_agents(told) == {"msg": "x", "missing": [{"slot": "cpu"}]}


async def test_an_agent_that_is_lost_with_a_victim_ends_it(plane: Rig) -> None:
    agent = SlowAgent()
    await plane.agent(agent)
    ada = await plane.user()
    victim = await plane.create(ada, cpu="4", name="victim")
    await come_up(plane, agent)
    await plane.wait(victim, Status.RUNNING)
    urgent = await plane.create(ada, cpu="4", name="urgent")
    preemption = Preemption(str(victim.session.id), str(urgent.session.id), "requeue")
    await carry_out(plane, preemptions=(preemption,))
    await plane.destroy(ada, victim)
    assert (await plane.wait(victim, Status.TERMINATING)).session.target == "TERMINATED"
    agent.finish()
    await plane.wait(victim, Status.TERMINATED)


def test_the_clock_of_a_usage_never_runs_back() -> None:
    assert usage.decayed(8.0, -5.0, 10.0) == 8.0
    assert usage.decayed(8.0, 10.0, 10.0) == 4.0


async def test_wishes_are_kept_only_where_they_differ(plane: Rig) -> None:
    await plane.agent()
    ada = await plane.user()
    plain = await plane.create(ada, **LATER)
    wished = await plane.create(ada, **LATER, run_time=60, preemptible=False)

    async def rows(db: AsyncSession) -> list[dict[str, Any] | None]:
        return [
            (await db.get_one(SessionRow, each.session.id)).scheduling for each in (plain, wished)
        ]

    assert await plane.store.read(rows) == [None, {"run_time": 60.0, "preemptible": False}]


async def test_a_group_takes_the_types_it_says(plane: Rig) -> None:
    await plane.agent()
    ada = await plane.user()
    await options(plane, allowed_session_types=["batch"])
    with pytest.raises(InvalidParameters) as refused:
        await plane.create(ada)
    assert refused.value.fields == {"type": "'interactive': default takes batch sessions"}
    await plane.create(ada, **LATER)


async def test_every_phase_of_a_pass_is_measured(plane: Rig) -> None:
    await plane.agent()
    ada = await plane.user()
    await plane.run(ada)
    told = (await plane.plane.render_metrics()).decode()
    for phase in ("read", "plan", "apply"):
        line = f'perijove_scheduling_phase_seconds_count{{phase="{phase}"}} '
        (count,) = [each for each in told.splitlines() if each.startswith(line)]
        assert float(count.removeprefix(line)) >= 1
    for phase in ("prepare", "order", "check", "place", "commit"):
        name = "perijove_scheduling_group_phase_seconds"
        assert f'{name}_count{{group="default",phase="{phase}"}} ' in told
    assert 'perijove_scheduler_ended_total{why="preempted"} 0.0' in told


async def test_a_waiting_session_learns_when_it_could_start(plane: Rig) -> None:
    await plane.agent()
    ada = await plane.user()
    await plane.run(ada, cpu="3", run_time="1h")
    waiting = await plane.create(ada, cpu="2")
    found = await plane.plane.offers.why(waiting.session.id)
    assert found is not None
    assert found.verdict == "wait"
    assert found.explanation is not None
    hour = plane.clock().timestamp() + 3600
    assert found.explanation.starts_at == pytest.approx(hour, abs=10)
    assert found.would_fit is not None
    assert found.would_fit["cpu"] == CPU
    asked = await plane.plane.offers.dry_run(
        ada, image=None, resource_group=None, slots={"cpu": "4", "mem": "1g"}
    )
    assert asked.verdict == "wait"
    running = await plane.run(ada, cpu="1", run_time=60)
    assert await plane.plane.offers.why(running.session.id) is None


async def test_a_recursive_end_takes_along_whoever_waits_for_it(plane: Rig) -> None:
    await plane.agent()
    ada = await plane.user()
    parent = await plane.create(ada, **LATER)
    child = await plane.create(ada, **LATER, dependencies=[parent.session.name])
    grandchild = await plane.create(ada, **LATER, dependencies=[child.session.name])
    other = await plane.create(ada, **LATER)
    ended = await plane.plane.sessions.destroy(
        ada, str(parent.session.id), forced=False, recursive=True, request_id=REQUEST
    )
    assert [each.session.id for each in ended] == [
        parent.session.id,
        child.session.id,
        grandchild.session.id,
    ]
    assert {each.status for each in ended} == {Status.CANCELLED}
    assert (await plane.wait(other, Status.PENDING)).status is Status.PENDING
