"""Long-running processes that outlive whoever started them: start, adopt, watch, end.

Each runs in a session of its own (so that a terminal's Ctrl-C does not reach it) and writes straight
into its log file (so that no pipe breaks when the supervisor dies). ``run/NAME.json`` says which
process it is: the pid together with its start time, because pids are used again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from hub.config.deployment import write_atomically

LAUNCH = "PERIJOVE_LAUNCH"
"""Environment variable that marks one launch; finds a process whose record was cut short."""
POLL = 0.1
"""Seconds between looks at a process that is not our child."""


@dataclass(frozen=True, slots=True)
class DaemonSpec:
    """How to run a daemon. ``secrets`` are environment variables that must not be written anywhere."""

    name: str
    argv: tuple[str, ...]
    environ: Mapping[str, str]
    secrets: Mapping[str, str]
    log: Path
    record: Path
    directory: Path

    def fingerprint(self) -> str:
        """Changes when the daemon would be run differently; secrets never change."""
        text = json.dumps([self.argv, sorted(self.environ.items())])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class Daemon:
    """One daemon: not running, or a process that we started or adopted."""

    def __init__(self, spec: DaemonSpec) -> None:
        self.spec = spec
        self.process: psutil.Process | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self.started_at = 0.0

    @property
    def name(self) -> str:
        """Short name, as in log lines."""
        return self.spec.name

    @property
    def pid(self) -> int | None:
        """Its process id, if it runs."""
        return self.process.pid if self.process is not None else None

    @property
    def ours(self) -> bool:
        """Whether we started it ourselves."""
        return self._child is not None

    def start(self) -> None:
        """Start it. The launch is recorded before, so that it is found whatever interrupts us."""
        self.started_at = time.monotonic()
        launch = secrets.token_hex(8)
        self._write({"launch": launch})
        environ = {**_inherited(), **self.spec.environ, **self.spec.secrets, LAUNCH: launch}
        with self.spec.log.open("ab") as log:
            self._child = subprocess.Popen(
                self.spec.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environ,
                cwd=self.spec.directory,
                start_new_session=True,
            )
        self.process = psutil.Process(self._child.pid)
        self._write(
            {
                "launch": launch,
                "pid": self._child.pid,
                "started": self.process.create_time(),
                "fingerprint": self.spec.fingerprint(),
            }
        )

    def adopt(self) -> str:
        """Take over the recorded process.

        Returns ``adopted``; ``none`` when nothing runs; ``other`` when what runs was started
        differently (it is then ours to end, not to keep).
        """
        try:
            record = json.loads(self.spec.record.read_text())
        except (FileNotFoundError, ValueError):
            return "none"
        if not isinstance(record, dict):
            return "none"
        process = _recorded_process(record)
        if process is None:
            return "none"
        self.process, self._child = process, None
        self.started_at = time.monotonic()
        return "adopted" if record.get("fingerprint") == self.spec.fingerprint() else "other"

    def alive(self) -> bool:
        """Whether the process still runs; a zombie does not."""
        if self._child is not None:
            return self._child.poll() is None
        if self.process is None:
            return False
        try:
            return self.process.is_running() and self.process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    async def exited(self) -> None:
        """Wait until it runs no more."""
        while self.alive():  # noqa: ASYNC110 - it may be the child of nobody here
            await asyncio.sleep(POLL)

    def exit_reason(self) -> str:
        """How it ended, in words."""
        code = self._child.returncode if self._child is not None else None
        if code is None:
            return "ended"
        if code >= 0:
            return f"ended with exit status {code}"
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
        return f"was ended by signal {-code}"

    async def stop(self, grace: float) -> None:
        """End it: SIGTERM, after ``grace`` seconds SIGKILL to its group; forget it."""
        if self.process is not None and self.alive():
            with contextlib.suppress(psutil.NoSuchProcess):
                self.process.terminate()
            try:
                async with asyncio.timeout(grace):
                    await self.exited()
            except TimeoutError:
                self.kill()
                await self.exited()
        self.process = self._child = None
        self.spec.record.unlink(missing_ok=True)

    def kill(self) -> None:
        """SIGKILL to its whole process group, now."""
        if self.process is not None and self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def _write(self, record: Mapping[str, object]) -> None:
        write_atomically(self.spec.record, json.dumps(record) + "\n", 0o600)


def _recorded_process(record: Mapping[str, object]) -> psutil.Process | None:
    """The living process that ``record`` names, or None."""
    pid, started = record.get("pid"), record.get("started")
    if pid is None:
        return _launched_process(str(record.get("launch", "")))
    if not isinstance(pid, int) or not isinstance(started, int | float):
        return None
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        if abs(process.create_time() - started) < 0.05 and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def _launched_process(launch: str) -> psutil.Process | None:
    """The session leader that carries ``launch`` in its environment: its starter died too soon."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if (
                launch
                and process.environ().get(LAUNCH) == launch
                and os.getsid(process.pid) == process.pid
            ):
                return process
    return None


def _inherited() -> dict[str, str]:
    """Our environment without what belongs to another Perijove, hub or session, or slows restarts down."""
    foreign = ("PERIJOVE_", "JUPYTERHUB_", "JPY_", "CONFIGPROXY_", "PYTHONDONTWRITEBYTECODE")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)}


def find_program(name: str, places: Sequence[Path]) -> Path | None:
    """The executable ``name`` in one of ``places``."""
    for place in places:
        candidate = place / name
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return candidate
    return None
