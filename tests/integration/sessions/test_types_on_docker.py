"""Types of sessions on real parts: a manager, an agent process that can be killed, containers."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import AsyncIterator, Iterator
from functools import partial

import pytest
import pytest_asyncio
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from spawner.sessions import losses
from spawner.sessions.states import Status
from spawner.sessions.tables import ResourceGroupRow
from tests.integration.docker_engine import ensure_test_image, running_engine
from tests.integration.sessions.docker_node import OWNER, Site, epoch, site

pytestmark = [
    pytest.mark.integration,
    pytest.mark.docker,
    pytest.mark.asyncio(loop_scope="module"),
]
SERVE = """
import http.server, pathlib
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(500 if pathlib.Path('/tmp/ill').exists() else 204)
        self.end_headers()
http.server.ThreadingHTTPServer(('', 8000), Handler).serve_forever()
"""
CHECK = {"interval": "0.5s", "timeout": "5s", "max_failures": 2, "expected_status": 204}
GO = "until [ -e /tmp/go ]; do sleep 0.05; done"


@pytest.fixture(scope="module")
def _engine() -> Iterator[None]:
    with running_engine():
        ensure_test_image()
        yield


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def _site(_engine: None, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    async with site(tmp_path_factory.mktemp("types")) as made:
        yield made


def batch(command: str, **fields: object) -> dict[str, object]:
    return {"type": "batch", "startupCommand": command, **fields}


def service(**fields: object) -> dict[str, object]:
    command = f"exec python3 -c {shlex.quote(SERVE)}"
    serves = {"port": 8000, "health_check": CHECK}
    return {"type": "inference", "startupCommand": command, "service": serves, **fields}


async def test_results_and_causes_of_batch_sessions(node: Site) -> None:
    eat = "python3 -c \"b = b'x' * (512 * 2**20)\""
    jobs = {
        "good": batch("echo all is well"),
        "wrong": batch("echo no good >&2; exit 3"),
        "hungry": batch(f"exec {eat}", resources={"mem": "64m"}),
        "forgiving": batch(f"{eat}; echo and now smaller", resources={"mem": "64m"}),
        "late": batch("echo begun; sleep 600", batchTimeout="2s"),
    }
    sessions = {name: await node.submit(name, **job) for name, job in jobs.items()}
    ended = {name: await node.reach(session) for name, session in sessions.items()}
    assert {name: row.result for name, row in ended.items()} == {
        "good": "success",
        "wrong": "failure",
        "hungry": "failure",
        "forgiving": "success",
        "late": "failure",
    }
    assert (await node.attempts(sessions["good"])) == [(1, "success", 0)]
    assert (await node.attempts(sessions["wrong"])) == [(1, "failure", 3)]
    assert (await node.attempts(sessions["hungry"])) == [(1, "oom", 137)]
    assert "used more than its 64" in ended["hungry"].status_info
    assert (await node.attempts(sessions["forgiving"])) == [(1, "success", 0)]
    assert "run-time limit" in ended["late"].status_info
    assert (await node.attempts(sessions["late"]))[0][:2] == (1, "timeout")
    assert await node.logs(sessions["good"]) == "all is well"
    assert await node.logs(sessions["wrong"]) == "no good"
    assert "and now smaller" in await node.logs(sessions["forgiving"])
    assert await node.logs(sessions["late"]) == "begun"
    for session in sessions.values():
        await node.until(lambda s=session: node.containers(s, every=True), lambda left: not left)


async def test_attempts_have_their_causes_and_their_output(node: Site) -> None:
    program = (
        "echo attempt $PERIJOVE_ATTEMPT; case $PERIJOVE_ATTEMPT in 1) exit 4;;"
        " 2) exec python3 -c \"b'x' * (512 * 2**20)\";; 3) sleep 600;; esac"
    )
    policy = {"max_retries": 5, "backoff": "0s", "causes": ["failure", "oom", "timeout", "removed"]}
    session = await node.submit(
        "again", **batch(program, retryPolicy=policy, batchTimeout="3s", resources={"mem": "64m"})
    )
    ended = await node.reach(session)
    assert ended.result == "success", ended.status_info
    told = await node.attempts(session)
    assert [(number, cause) for number, cause, _ in told] == [
        (1, "failure"),
        (2, "oom"),
        (3, "timeout"),
        (4, "success"),
    ]
    assert (told[0][2], told[1][2], told[3][2]) == (4, 137, 0)
    for number, _, _ in told:
        assert (await node.logs(session, number)).splitlines()[0] == f"attempt {number}"


async def test_a_container_that_somebody_removed_is_another_attempt(node: Site) -> None:
    policy = {"max_retries": 1, "backoff": "0s", "causes": ["removed"]}
    session = await node.submit("taken", **batch("sleep 600", retryPolicy=policy))
    first = await node.container(session)
    await asyncio.to_thread(first.remove, force=True)
    second = await node.container(session, 2)
    await asyncio.to_thread(second.remove, force=True)
    ended = await node.reach(session)
    assert [cause for _, cause, _ in await node.attempts(session)] == ["removed", "removed"]
    assert ended.status_info.endswith("it was the last of 2 attempts")


async def test_commands_that_end_while_the_agent_is_dead_have_their_results(node: Site) -> None:
    codes = {"done": 0, "undone": 7}
    sessions = {name: await node.submit(name, **batch(f"{GO}; echo {name}; exit {code}"))
                for name, code in codes.items()}  # fmt: skip
    for session in sessions.values():
        await node.reach(session, Status.RUNNING)
    running = [await node.container(session) for session in sessions.values()]
    await node.kill_agent()
    for each in running:
        await node.inside(each, "touch /tmp/go")
        await asyncio.to_thread(each.wait)
    await node.start_agent()
    for name, session in sessions.items():
        ended = await node.reach(session)
        assert ended.result == ("failure" if codes[name] else "success")
        cause = "failure" if codes[name] else "success"
        assert await node.attempts(session) == [(1, cause, codes[name])]
        assert await node.logs(session) == name


async def test_a_service_is_watched_and_told_of(node: Site) -> None:
    session = await node.submit("watched", **service())
    await node.reach(session, Status.RUNNING)
    container = await node.container(session)
    await node.inside(container, "touch /tmp/ill")
    degraded = await node.reach(session, Status.RUNNING_DEGRADED)
    assert degraded.status_info.endswith("2 times in a row: GET / is answered with 500")
    # An agent that is started again goes on watching.
    await node.kill_agent()
    await node.inside(container, "rm /tmp/ill")
    await node.start_agent()
    assert (
        await node.reach(session, Status.RUNNING)
    ).status_info == "its health check passes again"
    assert await node.attempts(session) == []
    await node.end(session)


async def test_an_unhealthy_service_starts_again(node: Site) -> None:
    policy = {"max_retries": 1, "backoff": "0s"}
    session = await node.submit("revived", **service(retryPolicy=policy))
    await node.reach(session, Status.RUNNING)
    await node.inside(await node.container(session), "touch /tmp/ill")
    second = await node.container(session, 2)
    await node.reach(session, Status.RUNNING)
    assert [cause for _, cause, _ in await node.attempts(session)] == ["unhealthy"]
    await node.inside(second, "touch /tmp/ill")
    degraded = await node.reach(session, Status.RUNNING_DEGRADED)
    assert degraded.status_info.endswith("it was the last of 2 attempts")
    await node.end(session)


async def test_a_service_that_never_gets_well_did_not_start(node: Site) -> None:
    check = {**CHECK, "expected_status": 200}
    given = {"port": 8000, "health_check": check, "start_timeout": "2s"}
    session = await node.submit("sick", **service(service=given))
    ended = await node.reach(session)
    assert ended.status == Status.ERROR
    assert "did not answer on its port in time" in ended.status_info


async def test_a_restart_keeps_the_folders_and_makes_a_new_container(node: Site) -> None:
    session = await node.submit("again-and-again")
    await node.reach(session, Status.RUNNING)
    first = await node.container(session)
    await node.inside(first, "echo kept > /home/work/kept; touch /tmp/gone")
    await node.inside(first, "echo first words > /proc/1/fd/1")
    for round_ in (2, 3):
        restarted = await node.api.hub("POST", f"/session/{session}/restart", user=OWNER)
        assert restarted.status == 204, restarted.body
        if round_ == 3:  # while the agent is at it
            await node.kill_agent()
            await node.start_agent()
        second = await node.container(session, round_)
        await node.reach(session, Status.RUNNING)
        assert (second.id != first.id, epoch(second)) == (True, epoch(first) + 1)
        await node.inside(second, "grep kept /home/work/kept && [ ! -e /tmp/gone ]")
        first = second
    assert len(await node.containers(session, every=True)) == 1
    assert (await node.logs(session, attempt=1)).endswith("first words")
    causes = [(number, cause) for number, cause, _ in await node.attempts(session)]
    assert causes == [(1, "restarted"), (2, "restarted")]
    await node.end(session)


async def _options(options: dict[str, object], db: AsyncSession) -> None:
    (await db.scalars(select(ResourceGroupRow))).one().options = options


@pytest_asyncio.fixture(loop_scope="module")
async def _short_leases(node: Site, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Leases of 5 seconds, which no administrator can have."""
    monkeypatch.setattr(losses, "SHORTEST_LEASED", 1.0)
    await node.api.plane.store.write(partial(_options, {"lost_after": {"batch": "10s"}}))
    yield
    await node.api.plane.store.write(partial(_options, {}))


@pytest.mark.usefixtures("_short_leases")
async def test_a_node_that_is_cut_off_ends_what_goes_on_elsewhere(node: Site) -> None:
    session = await node.submit("leased", **batch(f"echo $PERIJOVE_ATTEMPT; {GO}"))
    staying = await node.submit("staying")
    for each in (session, staying):
        await node.reach(each, Status.RUNNING)
    await node.container(session)
    await node.cable.cut()
    await node.until(lambda: node.containers(session), lambda left: not left)
    assert len(await node.containers(staying)) == 1
    # The agent forgets nothing when it is started again while it is cut off.
    await node.kill_agent()
    await node.start_agent()
    await node.cable.join()
    second = await node.container(session, 2)
    await node.reach(session, Status.RUNNING)
    assert [cause for _, cause, _ in await node.attempts(session)] == ["node-lost"]
    await node.inside(second, "touch /tmp/go")
    assert (await node.reach(session)).result == "success"
    assert [await node.logs(session, number) for number in (1, 2)] == ["1", "2"]
    await node.reach(staying, Status.RUNNING)
    await node.end(staying)
