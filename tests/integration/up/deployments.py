"""A real ``perijove up`` as a test subject: start it, read what it says, kill parts of it, end it."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

NAMES = ("proxy", "hub", "manager", "agent")
START_WITHIN = 90.0
READY = "sessions can start"


class Output:
    """What a process prints, read line by line as it comes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._arrived: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._arrived.put(line.rstrip("\n"))
        self._arrived.put(None)

    @property
    def output(self) -> str:
        """Everything it printed until now."""
        with contextlib.suppress(queue.Empty):
            while (line := self._arrived.get_nowait()) is not None:
                self.lines.append(line)
        return "\n".join(self.lines)

    def heard(self) -> int:
        """How many lines it printed until now."""
        return len(self.lines) if self.output else 0

    def wait_for(self, text: str, within: float = START_WITHIN, *, since: int = 0) -> None:
        """Wait until a line contains ``text``, of those after the first ``since``."""
        deadline = time.monotonic() + within
        while not any(text in line for line in self.lines[since:]):
            left = deadline - time.monotonic()
            try:
                line = self._arrived.get(timeout=max(left, 0.001))
            except queue.Empty:
                raise AssertionError(
                    f"{text!r} was not said in {within} s:\n{self.story()}"
                ) from None
            if line is None:
                raise AssertionError(f"it ended before {text!r}:\n{self.story()}")
            self.lines.append(line)

    def story(self) -> str:
        """What a failure shows."""
        return self.output

    def close(self) -> None:
        """After its end."""
        self._reader.join(5)
        assert self.process.stdout is not None
        self.process.stdout.close()


class Up(Output):
    """One run of ``perijove up`` on a state folder."""

    def __init__(self, state: Path, port: int, *options: str) -> None:
        self.state, self.port = state, port
        environ = {k: v for k, v in os.environ.items() if not k.startswith("PERIJOVE_")}
        command = [sys.executable, "-m", "hub.app", "up", "--engine", "process"]
        command += ["--state-dir", str(state), "--port", str(port), *options]
        process = subprocess.Popen(
            command,
            cwd=state.parent,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        super().__init__(process)

    def story(self) -> str:
        """All it said, and the ends of the logs."""
        parts = [self.output]
        for log in sorted((self.state / "logs").glob("*.log")):
            parts += [f"--- {log.name}", log.read_text()[-2000:]]
        return "\n".join(parts)

    def pid(self, name: str) -> int | None:
        """The recorded pid of one of the four."""
        try:
            return int(json.loads((self.state / "run" / f"{name}.json").read_text())["pid"])
        except (FileNotFoundError, KeyError, ValueError):
            return None

    def pids(self) -> dict[str, int | None]:
        """The recorded pids."""
        return {name: self.pid(name) for name in NAMES}

    def end(self, number: int, within: float = 60.0) -> int:
        """Send a signal and wait for the exit status."""
        self.process.send_signal(number)
        status = self.process.wait(within)
        self._reader.join(5)
        return status

    def close(self) -> None:
        """Kill what is left; for fixtures."""
        left = [pid for pid in self.pids().values() if pid is not None and alive(pid)]
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        super().close()

    def answers(self, path: str) -> bool:
        """Whether ``path`` behind the proxy answers with 200."""
        try:
            url = f"http://127.0.0.1:{self.port}{path}"
            with urllib.request.urlopen(url, timeout=2) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def whole(self) -> bool:
        """Whether hub and manager answer through the proxy and all four run."""
        running = all(pid is not None and alive(pid) for pid in self.pids().values())
        return running and self.answers("/hub/health") and self.answers("/services/perijove/health")


@contextlib.contextmanager
def running_up(state: Path, port: int, *options: str) -> Iterator[Up]:
    """A run that is ready for sessions; whatever is left of it at the end is killed."""
    up = Up(state, port, *options)
    try:
        up.wait_for(READY)
        yield up
    finally:
        up.close()


def alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def eventually(what: Callable[[], bool], within: float) -> float:
    """Poll until it is true; how long it took."""
    begin = time.monotonic()
    while time.monotonic() - begin < within:
        if what():
            return time.monotonic() - begin
        threading.Event().wait(0.05)
    raise AssertionError(f"not true within {within} s")
