"""Hub, manager and agent hand their metrics and errors on, as one configuration file says."""

from __future__ import annotations

import json
import signal
import socket
import sqlite3
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import pytest

from tests.harness.ports import free_port
from tests.harness.sentry import receiving, silent
from tests.integration.up.deployments import Up, running_up
from tests.integration.up.test_administration import call

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]
BROKEN = """
import os
from tornado.web import RequestHandler
import spawner.agent.engines.process

class Broken(RequestHandler):
    def get(self):
        local = os.environ["PERIJOVE_HUB_SECRET"]
        raise RuntimeError(f"the hub broke with {local} and {self.request.headers['Cookie']}")

async def create(*words):
    raise RuntimeError(f"the agent broke with {os.environ} {words[1].environ}")

c.JupyterHub.extra_handlers.append(("/broken", Broken))
spawner.agent.engines.process.ProcessEngine.create = create
c.Monitors.errors = ["sentry"]
"""
"""Faults that nobody foresaw, with secrets in their messages."""
ASKED_WITHIN = 20.0

SERIES = {
    "process:hub": "jupyterhub_running_servers",
    "process:manager": "perijove_sessions",
    "process:agent": "perijove_agent_kernels",
}
"""One that only this process has."""


def test_all_processes_report(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(30)
        config = tmp_path / "perijove_config.py"
        config.write_text(
            "c.Monitors.stats = ['datadog']\n"
            "c.Monitors.interval = 0.5\n"
            f"c.DatadogMonitor.port = {server.getsockname()[1]}\n"
        )
        with running_up(tmp_path / "state", free_port(), "-f", str(config)) as up:
            missing, deadline = set(SERIES), time.monotonic() + 60
            while missing and time.monotonic() < deadline:
                lines = server.recv(65536).decode().splitlines()
                for each in list(missing):
                    if any(line.startswith(f"{SERIES[each]}:") and each in line for line in lines):
                        missing.discard(each)
            assert not missing, up.story()
            assert up.end(signal.SIGINT) == 0, "monitors do not keep it from ending"


def provoke(up: Up, name: str) -> None:
    """An error in each of the three."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{up.port}/hub/broken?token=0123456789abcdef",
        headers={"Cookie": "jupyterhub-session-id=cookie-0123456789"},
    )
    with pytest.raises(urllib.error.HTTPError) as broken:
        urllib.request.urlopen(request, timeout=ASKED_WITHIN)
    with broken.value:
        assert broken.value.code == 500
    with sqlite3.connect(up.state / "perijove.sqlite") as database:
        database.execute("UPDATE resource_presets SET resource_slots = '\"wrong\"'")
    database.close()
    with pytest.raises(urllib.error.HTTPError) as broken:
        call(up, "GET", "/resource/presets")
    with broken.value:
        assert broken.value.code == 500
    made = call(up, "POST", "/session", {
        "name": name, "image": "process", "config": {"resources": {"cpu": "0.1", "mem": "256m"}},
        "maxWaitSeconds": 30,
    })  # fmt: skip
    assert made["status"] != "RUNNING"


def secrets_of(up: Up) -> list[str]:
    kept = json.loads((up.state / "secrets.json").read_text())
    found = [str(value) for value in kept.values()]
    assert len([value for value in found if len(value) > 30]) >= 5
    return [*found, "cookie-0123456789", "0123456789abcdef"]


def test_errors_arrive_once_and_without_secrets(tmp_path: Path) -> None:
    config = tmp_path / "perijove_config.py"
    with receiving() as sentry:
        config.write_text(f"{BROKEN}c.SentryMonitor.dsn = {sentry.dsn!r}\n")
        with running_up(tmp_path / "state", free_port(), "-f", str(config)) as up:
            provoke(up, "broken")
            events = sentry.until("the agent broke", 30)
            assert up.end(signal.SIGINT) == 0, up.story()
            events += sentry.rest()
            tries = (up.state / "logs/agent.log").read_text().count("the start failed")
            expected = {"hub": 1, "manager": 1, "agent": tries}
            told = Counter(event["tags"]["process"] for event in events)
            assert dict(told) == expected, json.dumps(events, indent=1)
            assert all(event["exception"]["values"] for event in events)
            text = json.dumps(events)
            assert [secret for secret in secrets_of(up) if secret in text] == []


def test_a_receiver_that_never_answers_holds_up_nobody(tmp_path: Path) -> None:
    config = tmp_path / "perijove_config.py"
    with silent() as dsn:
        config.write_text(
            f"{BROKEN}c.SentryMonitor.dsn = {dsn!r}\nc.Monitors.stats = ['statsd']\n"
            f"c.Monitors.interval = 0.2\nc.StatsdMonitor.port = {free_port()}\n"
        )
        with running_up(tmp_path / "state", free_port(), "-f", str(config)) as up:
            for number in range(3):
                provoke(up, f"broken-{number}")
            begin = time.monotonic()
            assert call(up, "GET", "/sessions")
            assert up.answers("/hub/health")
            assert time.monotonic() - begin < 5
            begin = time.monotonic()
            said = (up.state / "logs/manager.log").read_text()
            assert said.count("Error submitting packet") <= 1
            assert up.end(signal.SIGINT) == 0, up.story()
            assert time.monotonic() - begin < 30, "it ends without what is not told"
