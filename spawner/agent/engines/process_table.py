"""Processes of a run, found without being their parent: by the mark in their environment and start time.

A Jupyter server starts kernels and terminals in sessions of their own, so a process group does not
hold them all; the mark that every descendant inherits does.
"""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path

MARK = "PERIJOVE_KERNEL_RUN"
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


def marked(mark: str) -> list[int]:
    """Ids of all processes that carry ``mark`` in their environment and are not zombies."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in _PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environment = (entry / "environ").read_bytes()
        except OSError:  # gone, or another user's
            continue
        if wanted in environment.split(b"\0"):
            facts = _stat(int(entry.name))
            if facts is not None and facts[0] not in "ZX":
                found.append(int(entry.name))
    return found


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


def send(pids: list[int], number: signal.Signals) -> None:
    """Send a signal to each process that is still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _stat(pid: int) -> tuple[str, int] | None:
    """State letter and start time in clock ticks."""
    try:
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        return fields[0], int(fields[19])
    except (OSError, IndexError, ValueError):
        return None
