"""The whole platform as a user starts it: ``perijove up`` in an empty state folder."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from hub.config.deployment import Deployment
from tests.harness.ports import free_port

HERE = Path(sys.executable).parent


def until(condition: Callable[[], Any], what: str, seconds: float = 90) -> Any:
    """The first answer of ``condition`` that is true; fails with ``what``."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.1)
    return answer


class Platform:
    """One ``perijove up``; its terminal output is read line by line."""

    def __init__(self, state: Path, engine: str, *, config: str = "") -> None:
        self.state, self.engine = state, engine
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.password = ""
        self.lines: list[str] = []
        self._incoming: queue.Queue[str] = queue.Queue()
        self._config = state.parent / "perijove_config.py"
        self._config.write_text(config)
        self._users = {"admin"}
        self.process: subprocess.Popen[str] | None = None

    def start(self, timeout: float = 170) -> None:
        """Start and wait until sessions can start; remembers the password that is shown once."""
        command = [str(HERE / "perijove"), "up", "--engine", self.engine, "--port", str(self.port)]
        command += ["--state-dir", str(self.state), "-f", str(self._config)]
        environ = {**os.environ, "HOME": str(self.state.parent)}
        self.process = subprocess.Popen(
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, args=(self.process,), daemon=True)
        self._reader.start()
        self.wait_for_line("sessions can start", timeout)
        for line in self.lines:
            if found := re.search(r"Log in as admin with the password (\S+)", line):
                self.password = found.group(1)

    def wait_for_line(self, text: str, timeout: float) -> str:
        """The next line that contains ``text``; fails with the output so far."""
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            try:
                line = self._incoming.get(timeout=min(left, 1))
            except queue.Empty:
                if self.process is not None and self.process.poll() is not None:
                    break
                continue
            self.lines.append(line)
            if text in line:
                return line
        raise AssertionError(f"no line with {text!r}:\n" + "".join(self.lines[-60:]) + self.logs())

    def logs(self) -> str:
        """The tail of every process's log, for failure messages."""
        tails = []
        for path in sorted((self.state / "logs").glob("*.log")):
            tail = "".join(path.read_text(errors="replace").splitlines(keepends=True)[-30:])
            tails.append(f"\n--- {path.name}\n{tail}")
        return "".join(tails)

    def pid_of(self, name: str, within: float = 30) -> int:
        """Process id of proxy, hub, manager or agent, once the supervisor wrote it down."""
        record = self.state / "run" / f"{name}.json"

        def pid() -> int | None:
            return json.loads(record.read_text()).get("pid") if record.exists() else None

        return int(until(pid, f"{name} is not started", within))

    def add_user(self, name: str) -> None:
        """Add a person, who may be there from an earlier call."""
        if name in self._users:
            return
        deployment = Deployment(state_dir=str(self.state))
        request = urllib.request.Request(
            f"{deployment.addresses().manager_url}/admin/users",
            data=json.dumps({"name": name}).encode(),
            headers={
                "Authorization": f"Bearer {deployment.secrets().hub_secret}",
                "X-Perijove-User": "admin",
                "Content-Type": "application/json",
            },
        )
        urllib.request.urlopen(request, timeout=60).close()
        self._users.add(name)

    def command(self, *words: str) -> str:
        """What a ``perijove`` command on this state folder prints."""
        command = [str(HERE / "perijove"), *words, "--state-dir", str(self.state)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def kill(self, name: str) -> int:
        """``kill -9`` one of the four; its old process id."""
        pid = self.pid_of(name)
        os.kill(pid, signal.SIGKILL)
        return pid

    def end(self, number: signal.Signals = signal.SIGINT, timeout: float = 60) -> int:
        """Send ``number`` to the supervisor and wait for its exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        status = self.process.wait(timeout)
        self._reader.join(timeout)
        return status

    def leftovers(self) -> list[str]:
        """Command lines of processes that still belong to this state folder."""
        found = []
        for process in psutil.process_iter():
            try:
                line = " ".join(process.cmdline())
                mine = str(self.state) in line or str(self.state) in "".join(
                    process.environ().values()
                )
            except psutil.Error:
                continue
            if mine and process.pid != os.getpid():
                found.append(line)
        return found

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as output:
            for line in output:
                self._incoming.put(line)
