"""From submit to the end, on an obedient agent and on ones that are not."""

import pytest

from authenticator.principals import Role
from authenticator.problems import NotFound
from spawner.agent.protocol import KernelReport
from spawner.sessions.states import Status
from tests.harness.agent import CrashingAgent, FakeAgent, FakeKernel, RefusingAgent, SlowAgent
from tests.harness.plane import FINISHED, REQUEST, Rig, until


async def test_a_session_runs_and_ends(plane: Rig) -> None:
    agent = await plane.agent()
    ada = await plane.user()
    detail = await plane.run(ada, cpu="2", mem="2g")
    assert detail.main.url == "http://127.0.0.1:40000"
    assert detail.occupied == {"cpu": 2_000_000, "mem": 2 * 1024**3}
    spec = next(iter(agent.kernels.values())).spec
    assert (spec.epoch, spec.owner, spec.command) == (1, "ada", ())
    assert spec.mounts[0].target == "/home/work"
    assert spec.environ["PERIJOVE_SESSION_NAME"] == detail.session.name
    ended = await plane.destroy(ada, detail)
    assert ended.status in {Status.TERMINATING, Status.TERMINATED}
    ended = await plane.wait(detail, *FINISHED)
    assert ended.status is Status.TERMINATED
    assert ended.occupied == {}
    assert agent.kernels == {}
    assert len(agent.starts) == 1
    with pytest.raises(NotFound):
        await plane.destroy(ada, detail)


async def test_a_waiting_session_says_why_and_can_be_cancelled(plane: Rig) -> None:
    agent = await plane.agent()
    ada = await plane.user()
    first = await plane.run(ada, cpu="3")
    second = await plane.create(ada, cpu="2")

    async def told() -> str:
        return (await plane.plane.sessions.get(ada, str(second.session.id))).session.status_info

    assert await until(told, lambda text: "waiting for 1 CPU" in text)
    found = await plane.plane.sessions.get(ada, str(second.session.id))
    assert found.session.status_data["scheduler"]["position"] == 1
    assert "agent_id" not in str(found.session.status_data)
    third = await plane.create(ada, cpu="100")
    plane_get = plane.plane.sessions.get

    async def flagged() -> bool:
        data = (await plane_get(ada, str(third.session.id))).session.status_data
        return bool(data.get("scheduler", {}).get("unsatisfiable"))

    await until(flagged, bool)
    assert (await plane.destroy(ada, third)).status is Status.CANCELLED
    await plane.destroy(ada, first)
    assert (await plane.wait(second)).status is Status.RUNNING
    assert len(agent.starts) == 2


async def test_a_kernel_that_cannot_be_created_is_tried_again_and_then_given_up(plane: Rig) -> None:
    agent = await plane.agent(RefusingAgent())
    ada = await plane.user()
    detail = await plane.wait(await plane.create(ada), *FINISHED)
    assert detail.status is Status.ERROR
    assert "no space left on device" in detail.session.status_info
    assert "last line" in detail.session.status_info
    assert [epoch for _, epoch in agent.starts] == [1, 2, 3, 4]
    assert detail.main.last_log.endswith("last line")


async def test_a_refused_session_goes_to_another_node(plane: Rig) -> None:
    refusing = await plane.agent(RefusingAgent("node-a", {"cpu": "8", "mem": "16g"}))
    good = await plane.agent(FakeAgent("node-b"))
    ada = await plane.user()
    await plane.run(ada)
    assert len(good.starts) == 1
    assert len(refusing.starts) <= 1


@pytest.mark.parametrize(
    ("failure", "code", "words"),
    [
        ("exited", 0, "its main process ended (exit code 0)"),
        ("oom-killed", 137, "used more than its 1 GiB of memory (exit code 137)"),
        ("removed", None, "removed by somebody else"),
    ],
)
async def test_a_session_that_ends_by_itself_says_why(
    plane: Rig, failure: str, code: int | None, words: str
) -> None:
    agent = await plane.agent()
    ada = await plane.user()
    detail = await plane.run(ada)
    kernel = next(iter(agent.kernels.values()))
    agent.move(kernel, "TERMINATED", failure=failure, exit_code=code, log="bye")
    ended = await plane.wait(detail, *FINISHED)
    assert ended.status is Status.TERMINATED
    assert words in ended.session.status_info
    assert ended.main.exit_code == code
    assert await plane.plane.sessions.logs(ada, str(detail.session.id)) == "bye"


async def test_a_process_that_dies_at_once_is_an_error_with_its_last_words(plane: Rig) -> None:
    agent = await plane.agent(CrashingAgent())
    ada = await plane.user()
    detail = await plane.wait(await plane.create(ada), *FINISHED)
    assert detail.status is Status.ERROR
    assert "exit code 3" in detail.session.status_info
    assert "boom" in detail.session.status_info
    assert len(agent.starts) == 1


@pytest.mark.parametrize(("code", "result"), [(0, "success"), (7, "failure")])
async def test_a_batch_session_ends_with_its_command(plane: Rig, code: int, result: str) -> None:
    agent = await plane.agent()
    ada = await plane.user()
    heard: list[str] = []
    with plane.plane.bus.subscribe(lambda event: event.name.startswith("session_")) as events:
        detail = await plane.run(ada, type="batch", startup_command="make all")
        spec = next(iter(agent.kernels.values())).spec
        assert spec.command == ("sh", "-c", "make all")
        assert spec.ports == ()
        agent.end(spec.kernel_id, code)
        ended = await plane.wait(detail, *FINISHED)
        while not heard or heard[-1] != "session_terminated":
            event = await events.get(5)
            assert event is not None
            heard.append(event.name)
            if event.name == f"session_{result}":
                assert event.data()["exitCode"] == code
    assert ended.session.result == result
    assert heard == [
        "session_enqueued",
        "session_scheduled",
        "session_started",
        f"session_{result}",
        "session_terminated",
    ]


async def test_a_batch_that_is_over_before_anybody_looked(plane: Rig) -> None:
    await plane.agent(CrashingAgent())
    ada = await plane.user()
    detail = await plane.create(ada, type="batch", startup_command="exit 3")
    ended = await plane.wait(detail, *FINISHED)
    assert (ended.status, ended.session.result) == (Status.TERMINATED, "failure")


async def test_destroy_reaches_a_session_in_every_status(plane: Rig) -> None:
    agent = await plane.agent(SlowAgent())
    ada = await plane.user()
    for status in ("PREPARING", "CREATING", "RUNNING"):
        detail = await plane.create(ada)
        await plane.wait(detail, Status.PREPARING)

        async def there() -> bool:
            return bool(agent.kernels)

        await until(there, bool)
        kernel = next(iter(agent.kernels.values()))
        if status != "PREPARING":
            agent.move(kernel, status)
            await plane.wait(detail, Status(status))
        assert (await plane.destroy(ada, detail)).status is Status.TERMINATING
        again = await plane.destroy(ada, detail, forced=True)
        assert again.session.forced

        await _became(kernel, "TERMINATING")
        await plane.validate()
        agent.finish()
        assert (await plane.wait(detail, *FINISHED)).status is Status.TERMINATED


async def test_reports_of_another_run_or_agent_change_nothing(plane: Rig) -> None:
    agent = await plane.agent()
    other = await plane.agent(FakeAgent("node-2", {"cpu": "1", "mem": "1g"}))
    ada = await plane.user()
    detail = await plane.run(ada, cpu="2")
    kernel = next(iter(agent.kernels.values()))
    report = agent.seen(kernel)
    for epoch in (0, 2):
        fields = (report.kernel_id, report.session_id, epoch, "TERMINATED")
        await _acked(agent, agent.report(KernelReport(*fields)))
    await _acked(
        other,
        other.report(KernelReport(report.kernel_id, report.session_id, 1, "TERMINATED")),
    )
    found = await plane.plane.sessions.get(ada, str(detail.session.id))
    assert found.status is Status.RUNNING


async def test_strays_are_drained_and_strangers_ended(plane: Rig) -> None:
    agent = await plane.agent()
    ada = await plane.user()
    detail = await plane.run(ada)
    kernel = next(iter(agent.kernels.values()))
    stray = agent.seen(kernel)
    unknown = "7f7d1b6e-5c1c-4a8c-9a44-8d7c9d4a9f11"
    sequence = agent.report(
        KernelReport(unknown, unknown, 4, "RUNNING"),
        KernelReport(stray.kernel_id, stray.session_id, 0, "RUNNING"),
    )
    await _acked(agent, sequence)

    async def drained() -> set[tuple[str, int]]:
        assert agent.wanted is not None
        return set(agent.wanted.drain)

    await until(drained, lambda runs: runs == set())  # told to drain, drained, forgotten
    assert (await plane.plane.sessions.get(ada, str(detail.session.id))).status is Status.RUNNING
    assert len(agent.starts) == 1


async def test_logs_are_asked_of_the_node(plane: Rig) -> None:
    await plane.agent()
    ada = await plane.user()
    detail = await plane.run(ada)
    text = await plane.plane.sessions.logs(ada, detail.session.name, tail=3)
    assert text.count(str(detail.main.id)) == 3


async def test_progress_is_replayed_and_goes_on(plane: Rig) -> None:
    agent = await plane.agent(SlowAgent())
    ada = await plane.user()
    detail = await plane.create(ada)
    messages: list[str] = []
    last = 0
    async for event in plane.plane.sessions.progress(detail.session.id):
        messages.append(event.message)
        last = max(last, event.id)
        if event.message == "pulling the image: 10%":
            agent.finish()
        if event.end:
            assert event.url == "http://127.0.0.1:40000"
            assert (event.status, event.progress) == ("RUNNING", 100)
    assert messages[0] == "submitted"
    assert "creating the container" in messages
    again = [event async for event in plane.plane.sessions.progress(detail.session.id, last)]
    assert [event.end for event in again] == [True]
    full = [event.message async for event in plane.plane.sessions.progress(detail.session.id)]
    assert full == messages
    nobody = [event async for event in plane.plane.sessions.progress(ada.user_id)]
    assert nobody == []


async def test_history_tells_the_story_without_names_of_nodes(plane: Rig) -> None:
    await plane.agent()
    ada = await plane.user()
    detail = await plane.run(ada)
    rows = await plane.plane.sessions.history(ada, str(detail.session.id))
    assert [row.to_status for row in rows if row.kind == "session"] == [
        "PENDING",
        "SCHEDULED",
        "PREPARING",
        "CREATING",
        "RUNNING",
    ]
    assert rows[0].request_id == REQUEST
    assert "node-1" not in str([(row.cause, row.data) for row in rows])


async def _became(kernel: FakeKernel, status: str) -> None:
    async def now() -> str:
        return kernel.status

    await until(now, lambda found: found == status)


async def _acked(agent: FakeAgent, sequence: int) -> None:
    async def acked() -> int:
        return agent.acked

    await until(acked, lambda number: number >= sequence)


async def test_a_bootstrap_script_goes_to_a_kernel_that_starts_and_no_further(plane: Rig) -> None:
    agent = SlowAgent()
    await plane.agent(agent)
    ada = await plane.user()
    options = {"options": {"seccomp": "strict"}}
    root = await plane.user("root", Role.SUPERADMIN)
    await plane.plane.administration.update(root, "resource-groups", "default", options, REQUEST)
    detail = await plane.create(ada, bootstrap_script="echo begun")

    async def handed() -> int:
        return len(agent.kernels)

    await until(handed, bool)
    (kernel,) = agent.kernels.values()
    assert [(file.path, file.content) for file in kernel.spec.files] == [
        ("bootstrap", "echo begun")
    ]
    assert (kernel.spec.bootstrap, kernel.spec.seccomp) == ("bootstrap", "strict")
    agent.finish()
    await plane.wait(detail)
    plane.plane.agents.wake_all()

    async def told() -> tuple[int, ...]:
        return tuple(len(spec.files) for spec in agent.wanted.kernels) if agent.wanted else ()

    await until(told, lambda files: files == (0,))
