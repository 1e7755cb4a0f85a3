"""Attempts of batch sessions: causes, caps, pauses, what is kept of each; inference, system and restarts."""

from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from authenticator.principals import Principal, Role
from authenticator.problems import BadRequest, Forbidden, InvalidParameters, NotFound
from spawner.sessions.requests import SessionDetail
from spawner.sessions.retries import RetryPolicy
from spawner.sessions.states import Status
from spawner.sessions.tables import LostRunRow, ResourceGroupRow
from tests.harness.agent import FakeAgent, FakeKernel
from tests.harness.plane import FINISHED, REQUEST, Rig, hub_launch, until

BATCH = {"type": "batch", "startup_command": "make"}
SERVICE = {"type": "inference", "startup_command": "serve", "service": {"port": 8000}}


async def options(plane: Rig, **given: Any) -> None:
    async def work(db: AsyncSession) -> None:
        (await db.scalars(select(ResourceGroupRow))).one().options = given

    await plane.store.write(work)


def policy(most: int = 2, **more: Any) -> dict[str, Any]:
    return {"retry_policy": {"max_retries": most, "backoff": 0, **more}}


async def alive(agent: FakeAgent, epoch: int) -> FakeKernel:
    async def look() -> FakeKernel | None:
        return next((k for run, k in agent.kernels.items() if run[1] == epoch), None)

    found = await until(look, lambda kernel: kernel is not None and kernel.status == "RUNNING")
    assert found is not None
    return found


async def now(plane: Rig, who: Principal, detail: SessionDetail) -> SessionDetail:
    return await plane.plane.sessions.get(who, str(detail.session.id))


async def test_a_failed_attempt_is_followed_by_another_until_one_succeeds(plane: Rig) -> None:
    agent = await plane.agent()
    ada = await plane.user()
    detail = await plane.create(ada, **BATCH, **policy())
    for epoch, code in ((1, 1), (2, 9), (3, 0)):
        kernel = await alive(agent, epoch)
        assert kernel.spec.environ["PERIJOVE_ATTEMPT"] == str(epoch)
        agent.end(kernel.spec.kernel_id, code, log=f"attempt {epoch}")
    ended = await plane.wait(detail, *FINISHED)
    assert (ended.status, ended.session.result) == (Status.TERMINATED, "success")
    sessions, ref = plane.plane.sessions, str(detail.session.id)
    told = [
        (each.attempt, each.cause, each.exit_code) for each in await sessions.attempts(ada, ref)
    ]
    assert told == [(1, "failure", 1), (2, "failure", 9), (3, "success", 0)]
    assert await sessions.logs(ada, ref, attempt=2) == "attempt 2"
    assert await sessions.logs(ada, ref) == "attempt 3"
    with pytest.raises(NotFound, match="no attempt 4"):
        await sessions.logs(ada, ref, attempt=4)
    story = [row.data for row in await sessions.history(ada, ref) if "attempt" in row.data]
    assert [(row["attempt"], row["exit_code"]) for row in story[:2]] == [(1, 1), (2, 9)]


KEPT = "(this output is not kept any more)"


async def test_the_oldest_output_is_given_up_first(
    plane: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spawner.sessions.runs.KEPT_BYTES", 40)
    agent, ada = await plane.agent(), await plane.user()
    detail = await plane.create(ada, **BATCH, **policy(2))
    for epoch in (1, 2, 3):
        agent.end((await alive(agent, epoch)).spec.kernel_id, 1, log=f"attempt {epoch}")
    await plane.wait(detail, *FINISHED)
    ref = str(detail.session.id)
    told = [await plane.plane.sessions.logs(ada, ref, attempt=each) for each in (1, 2, 3)]
    assert told == [KEPT, "attempt 2", "attempt 3"]


async def test_the_last_attempt_tells_how_many_there_were(plane: Rig) -> None:
    agent = await plane.agent()
    ada = await plane.user()
    detail = await plane.create(ada, **BATCH, **policy(1, causes=["oom"]))
    agent.end((await alive(agent, 1)).spec.kernel_id, 137, "oom-killed")
    agent.end((await alive(agent, 2)).spec.kernel_id, 137, "oom-killed")
    ended = await plane.wait(detail, *FINISHED)
    assert ended.session.result == "failure"
    assert ended.session.status_info.endswith("(exit code 137); it was the last of 2 attempts")


async def test_a_new_attempt_does_not_carry_the_exit_code_of_the_last(plane: Rig) -> None:
    agent = await plane.agent()
    ada = await plane.user()
    detail = await plane.create(ada, **BATCH, **policy(1, causes=["failure"]))
    agent.end((await alive(agent, 1)).spec.kernel_id, 3)
    await alive(agent, 2)
    assert (await plane.wait(detail, Status.RUNNING)).main.exit_code is None
    await options(plane, lost_after="5m")
    await lose(plane, agent)
    ended = await now(plane, ada, detail)
    assert (ended.status, ended.main.exit_code) == (Status.TERMINATED, None)


async def test_other_causes_are_not_tried_again(plane: Rig) -> None:
    agent = await plane.agent()
    ada = await plane.user()
    detail = await plane.create(ada, **BATCH, **policy(3, causes=["oom"]))
    agent.end((await alive(agent, 1)).spec.kernel_id, 1)
    ended = await plane.wait(detail, *FINISHED)
    assert (ended.session.result, len(agent.starts)) == ("failure", 1)


async def test_an_attempt_waits_for_its_pause(plane: Rig) -> None:
    agent = await plane.agent()
    ada = await plane.user()
    detail = await plane.create(ada, **BATCH, **policy(3, backoff="1h", backoff_limit="90m"))
    agent.end((await alive(agent, 1)).spec.kernel_id, 1)
    await plane.wait(detail, Status.PENDING)
    found = await now(plane, ada, detail)
    assert found.session.starts_at is not None
    assert 3500 < (found.session.starts_at - plane.clock()).total_seconds() <= 3600
    assert found.occupied == {}
    plane.clock.forward(3601)
    agent.beat()  # it was there all the time
    plane.plane.scheduler.wake()
    await alive(agent, 2)


def test_pauses_double_up_to_their_limit() -> None:
    asked = RetryPolicy(9, backoff=10, backoff_limit=60)
    assert [asked.pause(used) for used in range(5)] == [10, 20, 40, 60, 60]
    assert RetryPolicy(100, backoff=1, backoff_limit=1e6).pause(99) == 1e6


async def test_a_timeout_counts_the_time_of_one_attempt(plane: Rig) -> None:
    agent = await plane.agent()
    ada = await plane.user()
    detail = await plane.create(ada, **BATCH, **policy(1, causes=["timeout"]), run_time=60)
    for epoch in (1, 2):
        await alive(agent, epoch)
        await plane.wait(detail, Status.RUNNING)
        plane.clock.forward(61)
        await plane.plane.reconciler.end_overdue()
    ended = await plane.wait(detail, *FINISHED)
    assert ended.session.result == "failure"
    assert "run-time limit was reached; it was the last of 2" in ended.session.status_info
    runs = await plane.plane.sessions.attempts(ada, str(detail.session.id))
    assert [run.cause for run in runs] == ["timeout", "timeout"]


async def test_an_attempt_that_its_owner_ended_says_so_whatever_was_before(plane: Rig) -> None:
    agent = await plane.agent()
    ada = await plane.user()
    detail = await plane.create(ada, **BATCH, **policy())
    agent.end((await alive(agent, 1)).spec.kernel_id, 3)
    await alive(agent, 2)
    await plane.destroy(ada, await plane.wait(detail, Status.RUNNING))
    await plane.wait(detail, *FINISHED)
    runs = await plane.plane.sessions.attempts(ada, str(detail.session.id))
    assert [run.cause for run in runs] == ["failure", "ended"]


async def test_work_that_was_done_before_it_was_recalled_is_not_done_again(plane: Rig) -> None:
    agent = await plane.agent()
    ada = await plane.user()
    detail = await plane.run(ada, **BATCH, **policy(1, causes=["timeout"]), run_time=60)
    agent.deaf = True
    plane.clock.forward(61)
    await plane.plane.reconciler.end_overdue()
    agent.deaf = False
    agent.end(str(detail.main.id), 0)
    ended = await plane.wait(detail, *FINISHED)
    assert (ended.session.result, len(agent.starts)) == ("success", 1)


async def test_an_exit_while_the_agent_was_away_is_reported(plane: Rig) -> None:
    agent = await plane.agent()
    ada = await plane.user()
    detail = await plane.run(ada, **BATCH, **policy(1))
    await agent.disconnect()
    agent.end(str(detail.main.id), 4)
    await plane.crash()
    await plane.restart()
    agent.end((await alive(agent, 2)).spec.kernel_id, 0)
    ended = await plane.wait(detail, *FINISHED)
    assert (ended.session.result, len(agent.starts)) == ("success", 2)


@pytest.mark.parametrize("late", [600.0, -600.0, 86400.0])
async def test_a_run_ended_when_its_node_says_though_nobody_heard(plane: Rig, late: float) -> None:
    agent = await plane.agent()
    ada = await plane.user()
    detail = await plane.run(ada, **BATCH)
    (kernel,) = agent.kernels.values()
    started = (await plane.kernel(detail)).started_at
    await agent.disconnect()
    plane.clock.forward(3600)
    kernel.ended_at = plane.clock().timestamp() - late
    agent.end(str(detail.main.id), 0)
    await plane.connect(agent)
    await plane.wait(detail, *FINISHED)
    (run,) = await plane.plane.sessions.attempts(ada, str(detail.session.id))
    assert started is not None
    ran = (run.ended_at - started).total_seconds()
    assert ran == pytest.approx({600.0: 3000, -600.0: 3600, 86400.0: 0}[late], abs=60)


async def lose(plane: Rig, agent: FakeAgent, seconds: float = 700) -> None:
    await agent.disconnect()
    plane.clock.forward(60)
    await plane.plane.reconciler.watch_agents()
    plane.clock.forward(seconds)
    await plane.plane.reconciler.watch_agents()


async def test_a_batch_goes_on_elsewhere_and_its_old_run_stays_accounted(plane: Rig) -> None:
    await options(plane, lost_after={"batch": "10m"})
    agent = await plane.agent()
    ada = await plane.user()
    detail = await plane.run(ada, **BATCH, cpu="3")
    assert (await alive(agent, 1)).spec.lease == 300
    await plane.policy(total_resource_slots={"cpu": 3_000_000})
    await lose(plane, agent)
    other = await plane.agent(FakeAgent("node-2"))
    kernel = await alive(other, 2)
    assert kernel.spec.environ["PERIJOVE_ATTEMPT"] == "2"
    assert (await now(plane, ada, detail)).occupied["cpu"] == 3_000_000
    await plane.validate()
    await plane.plane.reconciler.sweep()
    await plane.validate()
    assert len(await lost(plane)) == 1
    await plane.connect(agent)

    async def gone() -> list[LostRunRow]:
        return await lost(plane)

    await until(gone, lambda rows: not rows)
    assert agent.kernels == {}
    assert agent.starts == [(kernel.spec.kernel_id, 1)]
    other.end(kernel.spec.kernel_id, 0)
    assert (await plane.wait(detail, *FINISHED)).session.result == "success"


async def lost(plane: Rig) -> list[LostRunRow]:
    async def work(db: AsyncSession) -> list[LostRunRow]:
        return list(await db.scalars(select(LostRunRow)))

    return await plane.store.read(work)


async def test_a_session_can_come_back_to_the_node_that_was_lost(plane: Rig) -> None:
    await options(plane, lost_after={"batch": "10m"})
    agent = await plane.agent()
    ada = await plane.user()
    detail = await plane.run(ada, **BATCH, cpu="3")
    await lose(plane, agent)
    assert (await now(plane, ada, detail)).status is Status.PENDING
    await plane.connect(agent)
    kernel = await alive(agent, 2)
    assert [run[1] for run in agent.kernels] == [2]
    assert kernel.spec.kernel_id == str(detail.main.id)


async def test_a_fenced_run_starts_again_when_its_node_is_back(plane: Rig) -> None:
    await options(plane, lost_after={"batch": "10m"})
    agent = await plane.agent()
    ada = await plane.user()
    await plane.run(ada, **BATCH)
    await agent.disconnect()
    plane.clock.forward(301)
    agent.fence()
    assert agent.kernels == {}
    await plane.connect(agent)
    await alive(agent, 2)


@pytest.mark.parametrize(
    ("given", "fields", "status"),
    [
        ({"batch": {"then": "wait"}}, BATCH, Status.RUNNING),
        ({"batch": {"after": "5m", "then": "terminate"}}, BATCH, Status.TERMINATED),
        ({"batch": "5m"}, {}, Status.RUNNING),
        ({"interactive": "5m"}, {}, Status.TERMINATED),
        ("5m", {**BATCH, **policy(1)}, Status.PENDING),
        ("5m", {**BATCH, **policy(0)}, Status.TERMINATED),
        ({"batch": "5m"}, {**BATCH, **policy(1, causes=["oom"])}, Status.TERMINATED),
        ("5m", BATCH, Status.TERMINATED),
    ],
)
async def test_what_becomes_of_a_session_of_a_lost_node(
    plane: Rig, given: Any, fields: dict[str, Any], status: Status
) -> None:
    await options(plane, lost_after=given)
    agent = await plane.agent()
    ada = await plane.user()
    detail = await plane.run(ada, **fields)
    await lose(plane, agent)
    assert (await now(plane, ada, detail)).status is status


async def test_a_run_without_a_lease_waits_for_its_node(plane: Rig) -> None:
    agent = await plane.agent()
    ada = await plane.user()
    detail = await plane.run(ada, **BATCH)
    await options(plane, lost_after={"batch": "5m"})
    await lose(plane, agent)
    assert (await now(plane, ada, detail)).status is Status.RUNNING


async def test_an_unhealthy_service_says_so_and_recovers(plane: Rig) -> None:
    agent = await plane.agent()
    ada = await plane.user()
    check = {"path": "/health", "interval": "5s", "max_retries": 2, "expected_status_code": 204}
    service = {"port": 8000, "health_check": check, "start_timeout": "10m"}
    detail = await plane.run(ada, **{**SERVICE, "service": service})
    kernel = await alive(agent, 1)
    assert kernel.spec.health is not None
    assert (kernel.spec.health.max_failures, kernel.spec.health.expected_status) == (2, 204)
    assert (kernel.spec.ports[0].container_port, kernel.spec.start_timeout) == (8000, 600)
    agent.move(kernel, "RUNNING", healthy=False, progress="GET /health fails")
    found = await plane.wait(detail, Status.RUNNING_DEGRADED)
    assert found.session.status_info == "GET /health fails"
    await plane.validate()
    agent.move(kernel, "RUNNING", healthy=True, progress="")
    await plane.wait(detail, Status.RUNNING)
    agent.move(kernel, "RUNNING", healthy=False)
    await plane.wait(detail, Status.RUNNING_DEGRADED)
    await plane.destroy(ada, detail)
    assert (await plane.wait(detail, *FINISHED)).status is Status.TERMINATED


async def test_health_checks_as_a_model_definition_has_them(plane: Rig) -> None:
    agent = await plane.agent()
    ada = await plane.user()
    check = {"enable": True, "initial_delay": 90.0, "max_retries": 4, "max_wait_time": 2.0}
    for name, enable in (("with", True), ("without", False)):
        service = {"port": 8000, "health_check": {**check, "enable": enable}}
        await plane.run(ada, **{**SERVICE, "name": name, "service": service})
    by_name = {kernel.spec.session_name: kernel.spec for kernel in agent.kernels.values()}
    assert by_name["without"].health is None
    asked = by_name["with"]
    assert asked.health is not None
    assert (asked.start_timeout, asked.health.max_failures, asked.health.timeout) == (90, 4, 2)


async def test_a_program_of_people_that_ends_without_an_error_is_no_failure(plane: Rig) -> None:
    agent = await plane.agent()
    ada = await plane.user()
    for code, cause in ((0, "ended"), (1, "failure")):
        detail = await plane.run(ada)
        agent.end(str(detail.main.id), code)
        await plane.wait(detail, *FINISHED)
        (run,) = await plane.plane.sessions.attempts(ada, str(detail.session.id))
        assert run.cause == cause


async def test_an_unhealthy_service_starts_again_where_its_policy_says_so(plane: Rig) -> None:
    agent = await plane.agent()
    ada = await plane.user()
    detail = await plane.run(ada, **SERVICE, **policy(1))
    agent.move(await alive(agent, 1), "RUNNING", healthy=False, progress="no answer")
    again = await alive(agent, 2)
    await plane.wait(detail, Status.RUNNING)
    agent.move(again, "RUNNING", healthy=False, progress="no answer")
    found = await plane.wait(detail, Status.RUNNING_DEGRADED)
    assert found.session.status_info == "no answer; it was the last of 2 attempts"


async def test_system_sessions_are_for_administrators_and_count_nowhere(plane: Rig) -> None:
    await plane.agent()
    root, ada = await plane.user("root", Role.SUPERADMIN), await plane.user()
    await plane.policy(max_concurrent_sessions=1)
    with pytest.raises(Forbidden, match="only administrators"):
        await plane.create(ada, type="system")
    with pytest.raises(InvalidParameters) as refused:
        await plane.create(root, type="system")
    assert refused.value.fields["type"].endswith("takes interactive, batch, inference sessions")
    await options(plane, allowed_session_types=["system", "interactive"])
    tool = await plane.run(root, type="system")
    await plane.run(root)
    other = await plane.run(root, type="system")
    assert {tool.session.type, other.session.type} == {"system"}
    with pytest.raises(NotFound):
        await plane.plane.sessions.get(ada, str(tool.session.id))


async def test_a_restart_keeps_node_and_devices(plane: Rig) -> None:
    agent = await plane.agent()
    ada = await plane.user()
    detail = await plane.run(ada, cpu="4")
    before = (await alive(agent, 1)).spec
    sessions, ref = plane.plane.sessions, str(detail.session.id)
    assert (await sessions.restart(ada, ref, REQUEST)).status is Status.RESTARTING
    await plane.validate()
    after = (await alive(agent, 2)).spec
    assert (after.shares, after.mounts) == (before.shares, before.mounts)
    found = await plane.wait(detail, Status.RUNNING)
    assert found.occupied["cpu"] == 4_000_000
    assert [run[1] for run in agent.starts] == [1, 2]


async def test_the_output_of_a_run_before_a_restart_is_kept(plane: Rig) -> None:
    agent = await plane.agent()
    ada = await plane.user()
    detail = await plane.run(ada)
    sessions, ref = plane.plane.sessions, str(detail.session.id)
    for number in (1, 2):
        (await alive(agent, number)).log = f"output {number}"
        await sessions.restart(ada, ref, REQUEST)
        await alive(agent, number + 1)
        await plane.wait(detail, Status.RUNNING)

    async def kept() -> list[str]:
        return [await sessions.logs(ada, ref, attempt=number) for number in (1, 2)]

    assert await until(kept, lambda logs: logs == ["output 1", "output 2"])
    attempts = await sessions.attempts(ada, ref)
    assert [(each.attempt, each.cause) for each in attempts] == [(1, "restarted"), (2, "restarted")]
    assert "line of" in await sessions.logs(ada, ref, tail=1), "of the run that goes on"
    assert await sessions.logs(ada, ref, tail=1, attempt=3) == await sessions.logs(ada, ref, tail=1)
    with pytest.raises(NotFound):
        await sessions.logs(ada, ref, attempt=4)


async def test_what_cannot_be_restarted_says_why(plane: Rig) -> None:
    agent = await plane.agent()
    ada = await plane.user()
    sessions = plane.plane.sessions
    batch = await plane.run(ada, **BATCH)
    with pytest.raises(BadRequest, match="only interactive sessions"):
        await sessions.restart(ada, str(batch.session.id), REQUEST)
    waiting = await plane.create(ada, cpu="100")
    with pytest.raises(BadRequest, match="only running sessions"):
        await sessions.restart(ada, str(waiting.session.id), REQUEST)
    assert len(agent.starts) == 1
    assert hub_launch().hub == "hub-1"


WRONG = [
    (policy(-1), BATCH, "retryPolicy.max_retries", "from 0 to 100"),
    (policy(1, causes=["rain"]), BATCH, "retryPolicy.causes", "a list of failure, oom"),
    (policy(1, backoff="soon"), BATCH, "retryPolicy.backoff", "a duration"),
    (policy(1, colour=1), BATCH, "retryPolicy.colour", "unknown: one of max_retries"),
    (policy(1), {}, "retryPolicy", "only batch and inference"),
    ({"service": {"port": 1}}, BATCH, "service", "only inference"),
    ({"service": {"port": 0}}, SERVICE, "service.port", "from 1 to 65535"),
    ({"service": {"port": 1, "protocol": "x"}}, SERVICE, "service.protocol", "one of http, tcp"),
    ({"service": {"port": 1, "host": 1}}, SERVICE, "service.host", "unknown: one of port"),
    (
        {"service": {"health_check": {"path": "x y"}}},
        SERVICE,
        "service.health_check.path",
        "/health",
    ),
    (
        {"service": {"health_check": {"interval": 0}}},
        SERVICE,
        "service.health_check.interval",
        "from",
    ),
    ({"service": {"health_check": {"a": 0}}}, SERVICE, "service.health_check.a", "unknown"),
    ({"service": {"health_check": 1}}, SERVICE, "service.health_check", "an object"),
    (
        {"service": {"health_check": {"enable": 1}}},
        SERVICE,
        "service.health_check.enable",
        "true or false",
    ),
    (
        {"service": {"health_check": {"initial_delay": 0}}},
        SERVICE,
        "service.health_check.initial_delay",
        "from 1",
    ),
]


@pytest.mark.parametrize(("given", "kind", "where", "sentence"), WRONG)
async def test_a_sentence_for_each_wrong_field(
    standing: Rig, given: dict[str, Any], kind: dict[str, Any], where: str, sentence: str
) -> None:
    await standing.refuses(where, sentence, **{**kind, **given})
