"""Callbacks outlive the manager that owes them: it is killed while nobody receives them."""

from __future__ import annotations

import http.server
import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.harness.ports import free_port
from tests.integration.up.deployments import eventually, running_up
from tests.integration.up.test_administration import call

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]


@contextmanager
def receiver(port: int) -> Iterator[list[dict[str, Any]]]:
    """What is posted to a port."""
    bodies: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            """Not of interest."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield bodies
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_manager_that_is_killed_owes_its_callbacks_still(tmp_path: Path) -> None:
    config = tmp_path / "perijove_config.py"
    config.write_text("c.ManagerConfig.callback_allow = ['127.0.0.1']\n")
    port = free_port()
    with running_up(tmp_path / "state", free_port(), "-f", str(config)) as up:
        made = call(up, "POST", "/session", {
            "name": "told", "image": "process", "config": {"resources": {"cpu": "0.1", "mem": "256m"}},
            "callbackURL": f"http://127.0.0.1:{port}/hook", "maxWaitSeconds": 30,
        })  # fmt: skip
        assert made["status"] == "RUNNING"
        before = up.pid("manager")
        assert before is not None
        os.kill(before, signal.SIGKILL)
        eventually(lambda: up.pid("manager") not in (before, None) and up.whole(), 60)
        with receiver(port) as bodies:
            eventually(lambda: [each["event"] for each in bodies][-1:] == ["started"], 60)
            call(up, "DELETE", "/session/told")
            eventually(lambda: [each["event"] for each in bodies][-1:] == ["terminated"], 60)
        events = [each["event"] for each in bodies]
        assert events == ["enqueued", "scheduled", "started", "terminating", "terminated"]
        assert {each["session_id"] for each in bodies} == {made["sessionId"]}
        assert len({each["id"] for each in bodies}) == len(events)
        assert up.end(signal.SIGINT) == 0, up.story()
