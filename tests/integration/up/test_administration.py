"""Administrators' records through the API and through the command, on one deployment."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.ports import free_port
from tests.integration.up.deployments import Up, running_up

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running_up(tmp_path_factory.mktemp("up") / "state", free_port()) as made:
        yield made


def call(up: Up, method: str, path: str, body: object = None, user: str = "admin") -> Any:
    """The answer of the session API to ``user``, vouched for by the hub."""
    secret = json.loads((up.state / "secrets.json").read_text())["hub_secret"]
    request = urllib.request.Request(
        f"http://127.0.0.1:{up.port}/services/perijove{path}",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={
            "Authorization": f"Bearer {secret}",
            "X-Perijove-User": user,
            "Content-Type": "application/json",
        },
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.loads(response.read())


def refused(up: Up, method: str, path: str, body: object = None, user: str = "admin") -> Any:
    """Status and problem of a call that is refused."""
    with pytest.raises(urllib.error.HTTPError) as error:
        call(up, method, path, body, user)
    with error.value:
        return error.value.code, json.loads(error.value.read())


def perijove(state: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hub.app", *words, "--state-dir", str(state)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=state.parent)


def test_a_resource_group_by_api_and_command(up: Up) -> None:
    made = call(up, "POST", "/admin/resource-groups", {"name": "gpu"})
    assert made["options"] == {}
    words = ("resource-group", "set", "gpu", "options.sequencer=fifo", "options.half_life=1d")
    done = perijove(up.state, *words)
    assert (done.returncode, done.stdout) == (0, "Changed gpu\n"), done.stderr
    done = perijove(up.state, "resource-group", "set", "gpu", "options.half_life=2d")
    assert done.returncode == 0, done.stderr
    options = call(up, "GET", "/admin/resource-groups/gpu")["options"]
    assert options == {"sequencer": "fifo", "half_life": "2d"}
    done = perijove(up.state, "resource-group", "set", "gpu", "options.sequencer=lottery")
    assert done.returncode == 2
    assert "options.sequencer: 'lottery': one of" in done.stderr
    status, problem = refused(
        up, "PATCH", "/admin/resource-groups/gpu", {"options": {"ageing": "x"}, "size": 3}
    )
    assert status == 400
    assert set(problem["data"]) == {"options.ageing", "size"}
    assert call(up, "DELETE", "/admin/resource-groups/gpu") == {}
    assert refused(up, "GET", "/admin/resource-groups/gpu")[0] == 404


def test_projects_members_and_limits(up: Up) -> None:
    done = perijove(up.state, "project", "add", "lhc", "total_resource_slots.cpu=8")
    assert (done.returncode, done.stdout) == (0, "Added lhc\n"), done.stderr
    record = call(up, "PUT", "/admin/projects/default%2Flhc/members/admin")
    assert record["members"] == ["admin"]
    done = perijove(up.state, "project", "show", "lhc")
    assert '{"cpu": "8"}' in done.stdout
    assert perijove(up.state, "project", "leave", "lhc", "admin").stdout.endswith("nobody\n")
    done = perijove(up.state, "user", "set", "admin", "max_concurrent_sessions=5")
    assert done.returncode == 0, done.stderr
    assert call(up, "GET", "/admin/users/admin")["max_concurrent_sessions"] == 5
    assert "default" in perijove(up.state, "policy", "list").stdout


def test_resource_policies_by_api_and_command(up: Up) -> None:
    done = perijove(up.state, "user-policy", "add", "few", "total_resource_slots.cpu=4")
    assert (done.returncode, done.stdout) == (0, "Added few\n"), done.stderr
    assert call(up, "GET", "/admin/user-policies/few")["total_resource_slots"] == {"cpu": "4"}
    assert perijove(up.state, "user", "set", "admin", "resource_policy=few").returncode == 0
    status, problem = refused(up, "DELETE", "/admin/user-policies/few")
    assert (status, problem["msg"]) == (
        400,
        "the user policy 'few' is in use: it is the one of admin",
    )
    call(up, "PATCH", "/admin/users/admin", {"resource_policy": "default"})
    assert perijove(up.state, "user-policy", "remove", "few").returncode == 0
    call(up, "POST", "/admin/project-policies", {"name": "small", "max_pending_sessions": 2})
    done = perijove(up.state, "project", "set", "default", "resource_policy=small")
    assert done.returncode == 0, done.stderr
    done = perijove(up.state, "project-policy", "set", "small", "max_pending_sessions=-1")
    assert (done.returncode, "max_pending_sessions: '-1': a whole" in done.stderr) == (2, True)


def test_the_story_of_a_session_and_why_it_waits(up: Up) -> None:
    asked = {"image": "process", "name": "too-large", "enqueueOnly": True}
    config = {"resources": {"cpu": "9000", "mem": "1g"}}
    made = call(up, "POST", "/session", {**asked, "config": config}, user="somebody")
    told = f"/session/{made['sessionId']}/progress"
    secret = json.loads((up.state / "secrets.json").read_text())["hub_secret"]
    request = urllib.request.Request(
        f"http://127.0.0.1:{up.port}/services/perijove{told}",
        headers={"Authorization": f"Bearer {secret}", "X-Perijove-User": "somebody"},
    )
    with urllib.request.urlopen(request, timeout=30) as events:
        next(line for line in events if b"cannot ever start" in line)
    done = perijove(up.state, "session", "why", "too-large")
    assert f"Session too-large ({made['sessionId']}): PENDING; cannot ever start:" in done.stdout
    assert "filters: 1 node, total-capacity -1" in done.stdout
    done = perijove(up.state, "session", "history", made["sessionId"])
    assert "submitted" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("Since 2")
    done = perijove(up.state, "session", "why", "nobody")
    assert (done.returncode, done.stderr) == (1, "perijove: there is no session 'nobody'\n")
    call(up, "DELETE", f"/session/{made['sessionId']}", user="somebody")


def test_repair_by_api_and_command(up: Up) -> None:
    assert call(up, "POST", "/resource/recalculate-usage") == {
        "drifts": [],
        "freed": 0,
        "restored": 0,
    }
    assert perijove(up.state, "db", "repair").stdout == "All is well; nothing was changed\n"


def test_others_may_not(up: Up) -> None:
    for method, path, body in (
        ("GET", "/admin/domains", None),
        ("POST", "/admin/domains", {"name": "mine"}),
        ("PATCH", "/admin/users/somebody", {"max_concurrent_sessions": None}),
        ("POST", "/resource/recalculate-usage", None),
    ):
        assert refused(up, method, path, body, user="somebody")[0] == 403
