"""``kill -9`` of hub, manager, agent, proxy or all of them: no session is lost, none is started twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.platform import Platform

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

TOKEN = "0123456789abcdef" * 2
CONFIG = f"""
c.JupyterHub.services.append({{"name": "probe", "api_token": "{TOKEN}"}})
c.JupyterHub.load_roles.append({{
    "name": "probe", "services": ["probe"],
    "scopes": ["admin:users", "admin:servers", "access:servers", "list:users", "proxy"],
}})
"""
WITHIN = 30.0
"""Seconds in which everything must have been adopted: it takes under 10 where nothing else runs."""
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

    def __init__(self, url: str) -> None:
        self.url = url

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"token {TOKEN}", "Content-Type": "application/json"},
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


def until(condition: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        answer = condition()
        if answer:
            return answer
        time.sleep(0.1)
    raise AssertionError(what)


@contextmanager
def started(folder: Path) -> Iterator[Platform]:
    platform = Platform(folder / "state", "process", config=CONFIG)
    platform.start()
    try:
        yield platform
    finally:
        print(platform.logs())  # shown when a test failed
        if platform.process is not None and platform.process.poll() is None:
            platform.end()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """One platform that is hurt again and again."""
    with started(tmp_path_factory.mktemp("shared")) as platform:
        yield platform


@pytest.fixture
def hurt(shared: Platform) -> Iterator[Platform]:
    """The shared platform without sessions, and empty again for the next test."""
    assert session_pids(shared) == []
    yield shared
    end_all(shared)


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    with started(tmp_path) as platform:
        yield platform


def session_pids(platform: Platform) -> list[int]:
    """First processes of all runs, from the agent's scratch folders."""
    found = []
    for process in (platform.state / "agent" / "scratch").glob("*/process"):
        found.append(int(process.read_text().split("\n", 1)[1].split()[0]))
    return sorted(found)


def spawn(rest: Rest, platform: Platform, user: str) -> None:
    """Add a person to the platform and start their server."""
    perijove = str(Path(sys.executable).parent / "perijove")
    state = ["--state-dir", str(platform.state)]
    subprocess.run([perijove, "user", "add", user, *state], check=True, capture_output=True)
    status, _ = rest.call("POST", f"/hub/api/users/{user}")
    assert status == 201
    options = {"user_options": {"slots": {"cpu": "0.5", "mem": "512m"}}}
    status, _ = rest.call("POST", f"/hub/api/users/{user}/server", options)
    assert status in (201, 202)


def end_all(platform: Platform) -> None:
    """Stop every server; nothing of them is left."""
    rest = Rest(platform.url)

    def none_left() -> bool:
        status, users = rest.call("GET", "/hub/api/users?state=active")
        for user in users or ():
            rest.call("DELETE", f"/hub/api/users/{user['name']}/server")
        return status == 200 and not users

    until(none_left, "a server cannot be stopped")
    until(lambda: not session_pids(platform), "a session's processes are left")


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


def goes_on(rest: Rest, user: str, pid: str, seconds: float = WITHIN) -> None:
    """The same counter, in the same process, moves on as seen through the proxy."""
    before = until(lambda: count(rest, user)[1], "the server is not reached", seconds)
    until(lambda: count(rest, user)[1] > before, "the counter stands still", seconds)
    assert count(rest, user)[0] == pid


@pytest.mark.parametrize(
    "victims", [["hub"], ["manager"], ["agent"], ["proxy"], ["hub", "manager", "agent", "proxy"]]
)
def test_a_running_session_survives(hurt: Platform, victims: list[str]) -> None:
    platform, user = hurt, f"ada-{victims[-1]}-{len(victims)}"
    rest = Rest(platform.url)
    spawn(rest, platform, user)
    until(lambda: ready(rest, user), "the server never started")
    counter = start_counting(rest, user)
    runs = session_pids(platform)
    old = {name: platform.kill(name) for name in victims}

    def replaced() -> bool:
        return all(platform.pid_of(name) != pid for name, pid in old.items())

    until(replaced, f"{victims} were not started again", WITHIN)
    until(lambda: ready(rest, user), "the hub does not know the server any more", WITHIN)
    goes_on(rest, user, counter)
    assert session_pids(platform) == runs
    status, _ = rest.call("DELETE", f"/hub/api/users/{user}/server")
    assert status in (202, 204)
    until(lambda: not rest.server(user), "the server cannot be stopped any more", 30)
    until(lambda: not session_pids(platform), "the session's processes are left", 30)


@pytest.mark.parametrize("victim", ["hub", "manager", "agent", "all"])
@pytest.mark.parametrize("delay", [0.05, 0.8, 2.5])
def test_a_start_survives(hurt: Platform, victim: str, delay: float) -> None:
    platform, user = hurt, f"bob-{victim}-{delay}"
    rest = Rest(platform.url)
    spawn(rest, platform, user)
    time.sleep(delay)  # the moment of the kill is what this test varies
    for name in ["hub", "manager", "agent", "proxy"] if victim == "all" else [victim]:
        platform.kill(name)
    until(lambda: ready(rest, user), "the start was lost", 60)
    assert len(session_pids(platform)) == 1


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
    runs = session_pids(platform)
    assert platform.end(signal.SIGTERM) == 0
    assert session_pids(platform) == runs
    platform.start()
    until(lambda: ready(rest, "fay"), "the hub does not know the server any more", WITHIN)
    goes_on(rest, "fay", counter)
    assert session_pids(platform) == runs
