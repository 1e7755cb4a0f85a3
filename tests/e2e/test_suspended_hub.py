"""A hub that is suspended while people work: whoever is connected stays, and no token outlives its time.

How long it took to be back is written to ``artifacts/recovery.csv``.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import websocket

from hub.api.authentication import CACHE_SECONDS
from tests.e2e.platform import Platform, until
from tests.e2e.test_survival import (
    Rest,
    goes_on,
    patience,
    ready,
    session_runs,
    spawn,
    start_counting,
    started,
)
from tests.harness.audit import audit
from tests.harness.recovery import timed

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

IDLE = 10
"""Seconds without a connection after which a server is ended."""
PAUSE = CACHE_SECONDS + 5.0
LIFE = 15
"""Seconds that a token is good for."""
USER = "ivy"


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    with started(tmp_path, "process") as platform:
        yield platform


@contextmanager
def connected(rest: Rest, platform: Platform) -> Iterator[None]:
    """Somebody has a notebook open: a WebSocket to the kernel that counts, through the proxy."""
    _, [kernel] = rest.call("GET", f"/user/{USER}/api/kernels")
    url = f"ws://127.0.0.1:{platform.port}/user/{USER}/api/kernels/{kernel['id']}/channels"
    _, token = rest.call("POST", f"/hub/api/users/{USER}/tokens", {"note": "notebook"})
    socket = websocket.create_connection(url, header=[f"Authorization: token {token['token']}"])

    def read() -> None:
        while socket.connected:
            try:
                socket.recv()  # answers pings
            except (websocket.WebSocketException, OSError):
                return

    reading = threading.Thread(target=read)
    reading.start()
    try:
        yield
    finally:
        socket.close()
        reading.join(10)


def accepted(platform: Platform, token: str) -> tuple[int, int]:
    """What the hub, and the manager, answer to a token."""
    person = Rest(platform.url, token)
    return person.call("GET", "/hub/api/user")[0], person.call(
        "GET", "/services/perijove/sessions"
    )[0]


def test_a_hub_is_suspended(platform: Platform) -> None:
    rest = Rest(platform.url)
    spawn(rest, platform, USER)
    until(lambda: ready(rest, USER), "the server never started")
    counter = start_counting(rest, USER)
    rule = [f"idle_timeout={IDLE}", 'idle_checks={"warn_before": "2s"}']
    platform.command("policy", "set", "default", *rule)
    with connected(rest, platform):
        runs = session_runs(platform)
        short = {"note": "short", "expires_in": LIFE}
        _, made = rest.call("POST", f"/hub/api/users/{USER}/tokens", short)
        assert accepted(platform, made["token"]) == (200, 200)
        hub = platform.pid_of("hub")
        os.kill(hub, signal.SIGSTOP)
        try:
            awake = time.monotonic() + PAUSE
            while time.monotonic() < awake:
                assert session_runs(platform) == runs
                time.sleep(0.5)
        finally:
            os.kill(hub, signal.SIGCONT)
        with timed("24,hub suspended 35 s until it answers"):
            until(lambda: ready(rest, USER), "the hub does not know the server", patience())
        assert accepted(platform, made["token"]) == (403, 401)
        assert platform.pid_of("hub") == hub
        goes_on(rest, USER, counter)
        assert session_runs(platform) == runs
        audit(platform.state)
    until(lambda: not session_runs(platform), "who is idle stays", 90)
    until(lambda: not rest.server(USER), "the hub does not hear of the end", 60)
    audit(platform.state)
