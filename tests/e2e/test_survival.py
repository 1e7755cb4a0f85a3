"""``kill -9`` of hub, manager, agent, proxy or all of them: no session is lost, none is started twice.

On both engines. How long each recovery took is written to ``artifacts/recovery.csv``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
import pytest

from tests.e2e.platform import Platform, until
from tests.harness.audit import audit
from tests.harness.recovery import timed
from tests.integration.docker_engine import ensure_session_image, running_engine

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

TOKEN = "0123456789abcdef" * 2
CONFIG = f"""
c.JupyterHub.services.append({{"name": "probe", "api_token": "{TOKEN}"}})
c.JupyterHub.load_roles.append({{
    "name": "probe", "services": ["probe"],
    "scopes": ["admin:users", "admin:servers", "access:servers", "list:users", "proxy", "tokens"],
}})
"""
WITHIN = 10.0
"""Seconds in which everything must have been adopted, on a machine that does nothing else."""
ALL = ("hub", "manager", "agent", "proxy")
POINTS = {"queued": "queued|submitted|waiting", "creating": "creating the", "starting": "starting "}
"""Moments of a start, by what its progress says."""
COUNTER = (
    "import threading, time, pathlib, os\n"
    "def count():\n"
    "    n = 0\n"
    "    while True:\n"
    "        n += 1\n"
    "        pathlib.Path('count.new').write_text(f'{os.getpid()} {n}')\n"
    "        os.replace('count.new', 'count.txt'); time.sleep(.05)\n"
    "threading.Thread(target=count, daemon=True).start()\n"
)


class Rest:
    """The hub's REST API and servers behind it, through the proxy."""

    def __init__(self, url: str, token: str = TOKEN) -> None:
        self.url, self.token = url, token

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"token {self.token}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                text = answer.read()
                return answer.status, json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            return error.code, None
        except (OSError, ValueError):
            return 0, None

    def server(self, user: str) -> dict[str, Any]:
        _, model = self.call("GET", f"/hub/api/users/{user}")
        servers = (model or {}).get("servers") or {}
        return dict(servers.get("") or {})


def patience() -> float:
    """``WITHIN``, longer where more processes want a CPU than there are."""
    return WITHIN * max(1.0, 1.5 * os.getloadavg()[0] / (os.cpu_count() or 1))


@contextmanager
def started(folder: Path, engine: str) -> Iterator[Platform]:
    if engine == "docker":
        with running_engine():
            ensure_session_image()
    platform = Platform(folder / "state", engine, config=CONFIG)
    platform.start()
    try:
        yield platform
    finally:
        print(platform.logs())  # shown when a test failed
        if platform.process is not None and platform.process.poll() is None:
            platform.end()


@pytest.fixture(scope="module", params=["process", "docker"])
def shared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Platform]:
    """One platform that is hurt again and again."""
    with started(tmp_path_factory.mktemp("shared"), request.param) as platform:
        yield platform


@pytest.fixture
def hurt(shared: Platform) -> Iterator[Platform]:
    """The shared platform without sessions, and empty again for the next test; nothing differs in the end."""
    assert session_runs(shared) == []
    yield shared
    end_all(shared)
    audit(shared.state)


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    with started(tmp_path, "process") as platform:
        yield platform


def session_runs(platform: Platform) -> list[str]:
    """All runs that the engine has: ``KERNEL-EPOCH`` and the process or container that it is."""
    if platform.engine == "docker":
        home = hashlib.sha256(str((platform.state / "agent").resolve()).encode()).hexdigest()[:16]
        labels = {"label": f"ai.perijove.home={home}"}
        client = docker.from_env()
        found = client.api.containers(all=True, filters=labels)
        client.close()
        return sorted(
            f"{each['Names'][0]} {each['Id']}".removeprefix("/perijove-") for each in found
        )
    return sorted(
        f"{process.parent.name} {process.read_text().split(chr(10), 1)[1].split()[0]}"
        for process in (platform.state / "agent" / "scratch").glob("*/process")
    )


def started_once(platform: Platform) -> bool:
    """There is one run, and it is the first one of its kernel."""
    runs = session_runs(platform)
    return len(runs) == 1 and runs[0].split()[0].endswith("-1")


def add(rest: Rest, platform: Platform, user: str) -> None:
    """Add a person to the platform."""
    platform.add_user(user)
    status, _ = rest.call("POST", f"/hub/api/users/{user}")
    assert status == 201


def ask_for_server(rest: Rest, user: str) -> int:
    """Start a person's server; the hub answers when it runs, or after ten seconds."""
    options = {"user_options": {"slots": {"cpu": "0.5", "mem": "512m"}}}
    return rest.call("POST", f"/hub/api/users/{user}/server", options)[0]


def spawn(rest: Rest, platform: Platform, user: str) -> None:
    """Add a person to the platform and start their server."""
    add(rest, platform, user)
    assert ask_for_server(rest, user) in (201, 202)


def end_all(platform: Platform) -> None:
    """Stop every server; nothing of them is left."""
    rest = Rest(platform.url)

    def none_left() -> bool:
        status, users = rest.call("GET", "/hub/api/users?state=active")
        for user in users or ():
            rest.call("DELETE", f"/hub/api/users/{user['name']}/server")
        return status == 200 and not users

    until(none_left, "a server cannot be stopped")
    until(lambda: not session_runs(platform), "a session's processes are left")


def ready(rest: Rest, user: str) -> bool:
    return bool(rest.server(user).get("ready"))


def count(rest: Rest, user: str) -> tuple[str, int]:
    """Process id and value of the counter, read through the proxy."""
    status, file = rest.call("GET", f"/user/{user}/api/contents/count.txt?content=1")
    if status != 200:
        return "", 0
    pid, _, value = str(file["content"]).partition(" ")
    return pid, int(value or 0)


def start_counting(rest: Rest, user: str) -> str:
    """A kernel of the user's server runs the counter at its start; returns the counter's process."""
    startup = {"type": "file", "format": "text", "content": COUNTER}
    folder = f"/user/{user}/api/contents/"
    for path in (".ipython", ".ipython/profile_default", ".ipython/profile_default/startup"):
        status, _ = rest.call("PUT", folder + path, {"type": "directory"})
        assert status in (200, 201), path
    status, _ = rest.call("PUT", folder + ".ipython/profile_default/startup/count.py", startup)
    assert status == 201
    status, _ = rest.call("POST", f"/user/{user}/api/kernels", {})
    assert status == 201
    return str(until(lambda: count(rest, user)[0], "the counter never began"))


def goes_on(rest: Rest, user: str, pid: str) -> None:
    """The same counter, in the same process, moves on as seen through the proxy."""
    seconds = patience()
    before = until(lambda: count(rest, user)[1], "the server is not reached", seconds)
    until(lambda: count(rest, user)[1] > before, "the counter stands still", seconds)
    assert count(rest, user)[0] == pid


@pytest.mark.parametrize(
    "victims", [["hub"], ["manager"], ["agent"], ["proxy"], [*ALL]], ids=lambda each: "+".join(each)
)
def test_a_running_session_survives(hurt: Platform, victims: list[str]) -> None:
    platform, user = hurt, f"ada-{victims[-1]}-{len(victims)}"
    rest = Rest(platform.url)
    spawn(rest, platform, user)
    until(lambda: ready(rest, user), "the server never started")
    counter = start_counting(rest, user)
    runs = session_runs(platform)
    with timed(f"{platform.engine},running,{'+'.join(victims)}"):
        old = {name: platform.kill(name) for name in victims}

        def replaced() -> bool:
            return all(platform.pid_of(name) != pid for name, pid in old.items())

        until(replaced, f"{victims} were not started again", patience())
        until(lambda: ready(rest, user), "the hub does not know the server", patience())
        goes_on(rest, user, counter)
    assert session_runs(platform) == runs
    audit(platform.state)
    status, _ = rest.call("DELETE", f"/hub/api/users/{user}/server")
    assert status in (202, 204)
    until(lambda: not rest.server(user), "the server cannot be stopped any more", 30)
    until(lambda: not session_runs(platform), "the session's processes are left", 30)


def wait_for_point(rest: Rest, user: str, point: str) -> None:
    """Follow the start's progress until it says what ``POINTS`` has for ``point``."""
    request = urllib.request.Request(
        f"{rest.url}/hub/api/users/{user}/server/progress",
        headers={"Authorization": f"token {TOKEN}", "Accept": "text/event-stream"},
    )
    heard: list[str] = []

    def reached() -> bool:
        try:
            with urllib.request.urlopen(request, timeout=60) as stream:
                for line in stream:
                    heard.append(line.decode())
                    assert '"ready": true' not in heard[-1], heard
                    if re.search(POINTS[point], heard[-1], re.IGNORECASE):
                        return True
        except urllib.error.HTTPError:  # the hub has not begun yet
            pass
        return False

    until(reached, f"the start never was {point}: {heard}", 60)


@pytest.mark.parametrize("victim", [*ALL, "all"])
@pytest.mark.parametrize("point", POINTS)
def test_a_start_survives(hurt: Platform, victim: str, point: str) -> None:
    platform, user = hurt, f"bob-{victim}-{point}"
    rest = Rest(platform.url)
    add(rest, platform, user)
    asked = threading.Thread(target=ask_for_server, args=(rest, user))
    asked.start()  # it is answered with an error where the hub or the proxy is the victim
    wait_for_point(rest, user, point)
    with timed(f"{platform.engine},{point},{victim}"):
        for name in ALL if victim == "all" else [victim]:
            platform.kill(name)
        until(lambda: ready(rest, user), "the start was lost", 90)
    asked.join()
    assert started_once(platform)
    audit(platform.state)


def test_a_killed_supervisor_is_taken_over(platform: Platform) -> None:
    rest = Rest(platform.url)
    spawn(rest, platform, "eve")
    until(lambda: ready(rest, "eve"), "the server never started")
    counter = start_counting(rest, "eve")
    four = {name: platform.pid_of(name) for name in ("proxy", "hub", "manager", "agent")}
    assert platform.process is not None
    os.kill(platform.process.pid, signal.SIGKILL)
    platform.process.wait(10)
    goes_on(rest, "eve", counter)
    platform.start()
    assert {name: platform.pid_of(name) for name in four} == four
    goes_on(rest, "eve", counter)


def test_a_stopped_service_leaves_sessions_and_finds_them_again(platform: Platform) -> None:
    rest = Rest(platform.url)
    spawn(rest, platform, "fay")
    until(lambda: ready(rest, "fay"), "the server never started")
    counter = start_counting(rest, "fay")
    runs = session_runs(platform)
    assert platform.end(signal.SIGTERM) == 0
    assert session_runs(platform) == runs
    platform.start()
    until(lambda: ready(rest, "fay"), "the hub does not know the server any more", patience())
    goes_on(rest, "fay", counter)
    assert session_runs(platform) == runs
