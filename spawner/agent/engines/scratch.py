"""The scratch folder of one run of the process engine: all that must be known after the agent died.

``run.json`` (0600: it holds the environment) is written whole or not at all; ``process`` is written
by the run's first process about itself, ``exit_code`` by the same process when its command ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spawner.agent.engines.base import Endpoint, EngineState, Identity
from spawner.agent.engines.config_files import write_files
from spawner.agent.engines.process_table import MARK, ProcessId, parse
from spawner.agent.protocol import File, Share

UNFINISHED = ".new"
"""Ending of a folder that a crash may have left half-made."""
_SHELL = "/bin/sh"
LOG_LIMIT = 10 * 1024 * 1024
_WRAPPER = r"""
umask 077
for group in $PERIJOVE_CGROUPS; do echo $$ > "$group" || exit 125; done
if [ -n "$PERIJOVE_DATA_KIB" ]; then ulimit -d "$PERIJOVE_DATA_KIB" || exit 125; fi
ulimit -c 0
scratch=$PERIJOVE_SCRATCH
cd "$PERIJOVE_CWD" || exit 125
unset PERIJOVE_CWD PERIJOVE_CGROUPS PERIJOVE_DATA_KIB PERIJOVE_SCRATCH
{ cat /proc/sys/kernel/random/boot_id; cat "/proc/$$/stat"; } > "$scratch/process.new" || exit 125
mv "$scratch/process.new" "$scratch/process"
trap : TERM INT HUP
umask 022
(exec "$@"); code=$?
umask 077
echo "$code" > "$scratch/exit_code.new" && mv "$scratch/exit_code.new" "$scratch/exit_code"
"""
"""First process of a run. It outlives the agent, ignores SIGTERM while its command still ends, and
writes the command's exit code down, so that nobody has to be there to see it. The command is no job
in the background: those begin with ^C ignored."""
USUAL = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGPIPE,
    signal.SIGXFSZ,
)
"""Signals that mean what they usually do, whatever the agent itself ignores."""


@dataclass(frozen=True, slots=True)
class Run:
    """What ``run.json`` says."""

    kernel_id: str
    session_id: str
    epoch: int
    argv: tuple[str, ...]
    environ: dict[str, str]
    cwd: str
    endpoints: tuple[Endpoint, ...]
    shares: tuple[Share, ...]
    memory_bytes: int | None
    cgroups: tuple[str, ...]
    cpus: tuple[int, ...] = ()
    """Processors that it is kept to where no control group bounds its CPU time; empty: all."""
    pids: int | None = None
    """Processes that it may have where no control group counts them."""
    before: tuple[str, ...] = ()
    """Words before its command, which do what comes first (``spawner.agent.entering``)."""

    @property
    def identity(self) -> Identity:
        """Which run this is."""
        return Identity(self.kernel_id, self.session_id, self.epoch)


class Scratch:
    """One run's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = folder.name

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return self.folder / "output.log"

    @property
    def config(self) -> Path:
        """Where the files of the platform lie."""
        return self.folder / "config"

    def write(self, run: Run, files: Iterable[File] = ()) -> None:
        """Make the folder with ``run.json`` and ``files``, whole or not at all. Raises ``OSError``."""
        new = self._unfinished
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700, parents=True)
        body = asdict(run)
        body["shares"] = [[share.slot, share.device_id, share.amount] for share in run.shares]
        descriptor = os.open(new / "run.json", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(body, file)
        write_files(new / self.config.name, files, None)
        new.rename(self.folder)

    def read(self) -> Run | None:
        """What was written, or None where there is no (whole) folder."""
        try:
            body: dict[str, Any] = json.loads((self.folder / "run.json").read_text())
        except (OSError, ValueError):
            return None
        body["endpoints"] = tuple(Endpoint(**endpoint) for endpoint in body["endpoints"])
        body["shares"] = tuple(Share(*share) for share in body["shares"])
        for name in ("argv", "cgroups", "cpus", "before"):
            body[name] = tuple(body.get(name, ()))
        return Run(**body)

    def ports(self) -> dict[int, int]:
        """Ports that were chosen for programs of the run: number inside the kernel to number here."""
        try:
            text = (self.folder / "ports.json").read_text()
        except FileNotFoundError:
            return {}
        return {int(inside): int(here) for inside, here in json.loads(text).items()}

    def write_ports(self, ports: dict[int, int]) -> None:
        """Remember ``ports`` whole, or not at all. Raises ``OSError``."""
        new = self.folder / "ports.new"
        new.write_text(json.dumps(ports))
        new.rename(self.folder / "ports.json")

    def launch(self, run: Run, *, limit_data: bool) -> int:
        """Start the first process, which writes ``process`` before it starts the command; its id.

        Whoever calls this is its parent and has to bury it. Raises ``OSError``.
        """
        data_kib = run.memory_bytes // 1024 if limit_data and run.memory_bytes else ""
        environ = {
            **run.environ,
            MARK: self.mark,
            "PERIJOVE_SCRATCH": str(self.folder),
            "PERIJOVE_CGROUPS": " ".join(run.cgroups),
            "PERIJOVE_DATA_KIB": str(data_kib),
            "PERIJOVE_CWD": run.cwd,
        }
        appending = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        with _kept_to(run.cpus):
            return os.posix_spawn(
                _SHELL,
                [_SHELL, "-c", _WRAPPER, "perijove-session", *run.before, *run.argv],
                environ,
                setsid=True,
                setsigdef=USUAL,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, str(self.log), appending, 0o600),
                    (os.POSIX_SPAWN_DUP2, 1, 2),
                ],
            )

    def process(self) -> ProcessId | None:
        """The run's first process, as it wrote itself down; None before it did."""
        try:
            return parse((self.folder / "process").read_text())
        except OSError:
            return None

    def state(self, run: Run, *, oom_killed: bool) -> EngineState:
        """What the folder and the process table say of the run."""
        process = self.process()
        endpoints = run.endpoints
        if process is None:
            return EngineState(run.identity, "created", self.mark, endpoints, run.shares)
        started = self._written_at("process")
        if self.exit_code() is None and process.alive():
            return EngineState(run.identity, "running", self.mark, endpoints, run.shares, started)
        code = self.exit_code()
        return EngineState(
            identity=run.identity,
            phase="exited",
            native_id=self.mark,
            endpoints=endpoints,
            shares=run.shares,
            started_at=started,
            exit_code=128 + signal.SIGKILL if code is None else code,
            oom_killed=oom_killed or (self.folder / "oom").exists(),
            ended_at=self._written_at("exit_code"),
        )

    def exit_code(self) -> int | None:
        """Exit status of the command, None while it runs or when it was killed with its parent."""
        try:
            return int((self.folder / "exit_code").read_text())
        except (OSError, ValueError):
            return None

    def _written_at(self, name: str) -> float | None:
        with contextlib.suppress(FileNotFoundError):  # or it is being removed
            return (self.folder / name).stat().st_mtime
        return None

    def note_out_of_memory(self) -> None:
        """Remember that the run was ended because it used too much memory."""
        with contextlib.suppress(OSError):
            (self.folder / "oom").touch()

    def note(self, sentence: str) -> None:
        """Add a line to the output, for those who look for the reason of an end."""
        with contextlib.suppress(OSError), self.log.open("a") as file:
            file.write(f"[{sentence}]\n")

    def bound_log(self) -> None:
        """Keep the newest half of a log that grew over its limit (it is open for appending)."""
        with contextlib.suppress(OSError):  # it is gone, or the disk is full
            if self.log.stat().st_size <= LOG_LIMIT:
                return
            with self.log.open("r+b") as file:
                file.seek(-LOG_LIMIT // 2, os.SEEK_END)
                kept = file.read()
                file.truncate(0)
                file.seek(0)
                file.write(b"[earlier output was dropped]\n" + kept)

    def tail(self, lines: int) -> str:
        """The last ``lines`` of the output."""
        try:
            with self.log.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - 65536 - lines * 256))
                text = file.read().decode("utf-8", "replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def delete(self) -> None:
        """Remove the folder, also a half-made one."""
        for each in (self.folder, self._unfinished):
            shutil.rmtree(each, ignore_errors=True)

    @property
    def _unfinished(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}{UNFINISHED}")

    def size(self) -> int:
        """Bytes of the files in the folder."""
        total = 0
        with contextlib.suppress(OSError):  # the folder, or a file, may go meanwhile
            for each in self.folder.iterdir():
                total += each.lstat().st_size
        return total


@contextlib.contextmanager
def _kept_to(cpus: tuple[int, ...]) -> Iterator[None]:
    """What this thread starts meanwhile runs on ``cpus`` only; not the agent's other threads."""
    before = os.sched_getaffinity(0)
    usable = before & set(cpus)
    if usable:
        os.sched_setaffinity(0, usable)
    try:
        yield
    finally:
        if usable:
            os.sched_setaffinity(0, before)
