"""Processes of a run, found without being their parent: by the mark in their environment and start time.

A Jupyter server starts kernels and terminals in sessions of their own, so a process group does not
hold them all; the mark that every descendant inherits does.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from spawner.agent.engines.base import Process

MARK = "PERIJOVE_KERNEL_RUN"
MOST_OF_A_COMMAND = 4096
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process id that cannot be mistaken for a later process: id, start time and boot."""

    pid: int
    start_ticks: int
    boot_id: str

    def alive(self) -> bool:
        """Whether this very process still runs (a zombie does not)."""
        if self.boot_id != boot_id():
            return False
        facts = _stat(self.pid)
        return facts is not None and facts[0] not in "ZX" and facts[1] == self.start_ticks


def boot_id() -> str:
    """Changes with every boot of the machine."""
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def parse(text: str) -> ProcessId | None:
    """A process id from ``<boot id>\\n<the process's /proc/PID/stat>``; None if it is incomplete."""
    boot, _, stat = text.partition("\n")
    before, _, after = stat.rpartition(")")
    fields = after.split()
    if not before or len(fields) < 20:
        return None
    return ProcessId(int(before.split(" ", 1)[0]), int(fields[19]), boot.strip())


def _environments(pids: Iterable[int]) -> Iterator[tuple[int, bytes]]:
    """Those of ``pids`` whose environment may be read, with it."""
    for pid in pids:
        try:
            environment = (_PROC / str(pid) / "environ").read_bytes()
        except OSError:  # gone, or another user's
            continue
        yield pid, environment


def marked(mark: str) -> list[int]:
    """Ids of all processes that carry ``mark`` in their environment and are not zombies."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for pid, environment in _environments(_all()):
        if wanted in environment.split(b"\0"):
            facts = _stat(pid)
            if facts is not None and facts[0] not in "ZX":
                found.append(pid)
    return found


def living(pids: Iterable[int]) -> list[int]:
    """Those that are there and no zombies."""
    return [pid for pid in pids if (facts := _stat(pid)) is not None and facts[0] not in "ZX"]


def resident_bytes(pids: list[int]) -> int:
    """Memory that the processes hold in private and shared pages, shared ones counted once each."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = 0
    for pid in pids:
        try:
            resident, shared = (_PROC / str(pid) / "statm").read_text().split()[1:3]
        except (OSError, ValueError):
            continue
        total += (int(resident) - int(shared)) * page
    return total


def by_mark(pids: Iterable[int] | None = None) -> dict[str, list[int]]:
    """Ids of processes that carry any mark, by mark; without ``pids`` one look at everything."""
    prefix = f"{MARK}=".encode()
    found: dict[str, list[int]] = {}
    for pid, environment in _environments(_all() if pids is None else pids):
        at = environment.find(prefix)
        if at == 0 or (at > 0 and environment[at - 1] == 0):
            mark = environment[at + len(prefix) :].partition(b"\0")[0].decode("ascii", "replace")
            found.setdefault(mark, []).append(pid)
    return found


def _all() -> list[int]:
    return [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit()]


def cpu_seconds(pids: Sequence[int]) -> float:
    """Time that the processes and their children that ended have used."""
    ticks = 0
    for pid in pids:
        fields = _fields(pid)
        if fields is not None:
            ticks += sum(int(each) for each in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def describe(pids: Sequence[int]) -> tuple[Process, ...]:
    """What a list of processes shows of each that is still there."""
    page, tick = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")
    found = []
    for pid in pids:
        fields = _fields(pid)
        if fields is None or fields[0] in "ZX":
            continue
        seconds = (int(fields[11]) + int(fields[12])) / tick
        memory = int(fields[21]) * page
        found.append(Process(_own_pid(pid), _name(pid), _command(pid), seconds, memory))
    return tuple(found)


def _own_pid(pid: int) -> int:
    """The id that the process has in its own namespace."""
    try:
        status = (_PROC / str(pid) / "status").read_text()
    except OSError:
        return pid
    for line in status.splitlines():
        if line.startswith("NSpid:"):
            return int(line.split()[-1])
    return pid


def _name(pid: int) -> str:
    try:
        return (_PROC / str(pid) / "comm").read_bytes().decode("utf-8", "replace").rstrip("\n")
    except OSError:
        return ""


def _command(pid: int) -> str:
    try:
        raw = (_PROC / str(pid) / "cmdline").read_bytes()[:MOST_OF_A_COMMAND]
        return raw.replace(b"\0", b" ").decode("utf-8", "replace").strip()
    except OSError:
        return ""


def _fields(pid: int) -> list[str] | None:
    """The fields of its ``stat`` from the state on."""
    try:
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return fields if len(fields) > 21 else None


def send(pids: list[int], number: signal.Signals) -> None:
    """Send a signal to each process that is still there, and is ours."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _stat(pid: int) -> tuple[str, int] | None:
    """State letter and start time in clock ticks."""
    try:
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        return fields[0], int(fields[19])
    except (OSError, IndexError, ValueError):
        return None
