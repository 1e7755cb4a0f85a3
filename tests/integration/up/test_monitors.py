"""Hub, manager and agent hand their metrics on, as one configuration file says."""

from __future__ import annotations

import signal
import socket
import time
from pathlib import Path

import pytest

from tests.integration.up.deployments import free_port, running_up

pytestmark = pytest.mark.integration

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
