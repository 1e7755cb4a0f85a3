"""Types of sessions on the process engine: a manager, an agent process that can be killed, processes."""

from __future__ import annotations

import shlex
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from spawner.sessions.states import Status
from tests.harness.ports import free_port
from tests.integration.sessions.docker_node import Site, site
from tests.integration.sessions.test_types_on_docker import CHECK, batch

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]
SERVE = """
import http.server, pathlib, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(500 if pathlib.Path(sys.argv[2]).exists() else 204)
        self.end_headers()
http.server.ThreadingHTTPServer(('127.0.0.1', int(sys.argv[1])), Handler).serve_forever()
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def _site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    async with site(tmp_path_factory.mktemp("types"), "process") as made:
        yield made


def service(port: object, ill: Path, **fields: object) -> dict[str, object]:
    """A service that is ill while a file is there."""
    command = f"exec python3 -c {shlex.quote(SERVE)} {port} {ill}"
    serves = {"port": port if isinstance(port, int) else 8000, "health_check": CHECK}
    return {"type": "inference", "startupCommand": command, "service": serves, **fields}


async def test_batches_have_their_results_causes_and_attempts(node: Site) -> None:
    program = (
        "echo attempt $PERIJOVE_ATTEMPT; case $PERIJOVE_ATTEMPT in 1) exit 4;;"
        " 2) exec python3 -c \"b'x' * (512 * 2**20)\";; 3) sleep 600;; esac"
    )
    causes = ["failure", "oom", "timeout"]
    policy = {"max_retries": 5, "backoff": "0s", "causes": causes}
    given = batch(program, retryPolicy=policy, batchTimeout="3s", resources={"mem": "64m"})
    again = await node.submit("again", **given)
    late = await node.submit("late", **batch("echo begun; sleep 600", batchTimeout="2s"))
    soon = await node.submit("soon", **batch("echo at last", starts_at="2s"))
    assert (await node.reach(again)).result == "success"
    told = [(number, cause) for number, cause, _ in await node.attempts(again)]
    assert told == [(1, "failure"), (2, "oom"), (3, "timeout"), (4, "success")]
    for number, _ in told:
        assert (await node.logs(again, number)).splitlines()[0] == f"attempt {number}"
    assert "run-time limit" in (await node.reach(late)).status_info
    assert (await node.attempts(late))[0][:2] == (1, "timeout")
    assert (await node.reach(soon)).result == "success"
    assert await node.logs(soon) == "at last"


async def test_commands_that_end_while_the_agent_is_dead_have_their_results(
    node: Site, tmp_path: Path
) -> None:
    codes = {"done": 0, "undone": 7}
    go = f"until [ -e {tmp_path}/go ]; do sleep 0.05; done"
    sessions = {
        name: await node.submit(
            name, **batch(f"{go}; echo {name}; touch {tmp_path}/{name}; exit {code}")
        )
        for name, code in codes.items()
    }
    for session in sessions.values():
        await node.reach(session, Status.RUNNING)
    await node.kill_agent()
    (tmp_path / "go").touch()

    async def ended() -> bool:
        return all((tmp_path / name).exists() for name in codes)

    await node.until(ended, bool)
    await node.start_agent()
    for name, session in sessions.items():
        cause = "failure" if codes[name] else "success"
        assert (await node.reach(session)).result == cause
        assert await node.attempts(session) == [(1, cause, codes[name])]
        assert await node.logs(session) == name


async def test_a_service_is_watched_and_starts_again(node: Site, tmp_path: Path) -> None:
    ill = tmp_path / "ill"
    port = free_port()
    policy = {"max_retries": 1, "backoff": "0s"}
    session = await node.submit("knows", **service(port, ill, retryPolicy=policy))
    asking = await node.submit("asks", **service("{bind_port}", tmp_path / "never"))
    for each in (session, asking):
        await node.reach(each, Status.RUNNING)
    ill.touch()
    await node.until(
        lambda: node.attempts(session), lambda told: [t[1] for t in told] == ["unhealthy"]
    )
    ill.unlink()
    await node.reach(session, Status.RUNNING)
    ill.touch()
    degraded = await node.reach(session, Status.RUNNING_DEGRADED)
    assert degraded.status_info.endswith("it was the last of 2 attempts")
    await node.kill_agent()
    ill.unlink()
    await node.start_agent()
    await node.reach(session, Status.RUNNING)
    for each in (session, asking):
        await node.api.hub("DELETE", f"/session/{each}", user="ada")
        await node.reach(each)
