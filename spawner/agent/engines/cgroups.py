"""Control groups for the process engine, where this user may make them (version 1 or 2)."""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Collection, Iterable
from pathlib import Path

from spawner.agent.engines.base import Limits
from spawner.agent.engines.counters import Place

ROOT = Path("/sys/fs/cgroup")
PARENT = "perijove"
COUNTING = ("cpuacct", "blkio")
"""Hierarchies of version 1 that a run joins to be counted, where the host has them."""
_PERIOD = 100_000


class ControlGroups:
    """The control groups of runs, beneath ``perijove`` and the agent's own mark ``home`` in each hierarchy."""

    def __init__(self, home: str, root: Path = ROOT) -> None:
        self._root, self._home = root, home
        self.unified = (root / "cgroup.controllers").exists()
        self.usable = self._probe()

    def create(self, run: str, limits: Limits) -> tuple[str, ...]:
        """Make the groups of ``run`` with its limits; the ``cgroup.procs`` files to join."""
        settings = _unified(limits) if self.unified else _split(limits)
        if not self.unified:  # these only count
            settings |= {name: {} for name in COUNTING if (self._root / name).is_dir()}
        joined = []
        for hierarchy, files in settings.items():
            folder = self._folder(hierarchy, run)
            folder.mkdir(parents=True, exist_ok=True)
            for name, value in files.items():
                with contextlib.suppress(FileNotFoundError):  # e.g. no swap accounting
                    (folder / name).write_text(value)
            joined.append(str(folder / "cgroup.procs"))
        return tuple(joined)

    def out_of_memory(self, run: str) -> bool:
        """Whether the kernel killed something of ``run`` for memory."""
        hierarchy, name = (
            ("", "memory.events") if self.unified else ("memory", "memory.oom_control")
        )
        try:
            text = (self._folder(hierarchy, run) / name).read_text()
        except OSError:
            return False
        counts = dict(line.split() for line in text.splitlines() if len(line.split()) == 2)
        return int(counts.get("oom_kill", 0)) > 0

    def place(self, run: str) -> Place | None:
        """Where the use of ``run`` is counted; None when nothing counts it."""
        if self.unified:
            folder = str(self._folder("", run))
            found = Place(True, folder, folder, folder, folder)
        else:
            cpu, io, memory, pids = (
                str(self._folder(name, run)) for name in (*COUNTING, "memory", "pids")
            )
            found = Place(False, cpu, memory, io, pids)
        return found if Path(found.cpu).is_dir() else None

    def members(self, run: str) -> set[int]:
        """Ids of the processes in the groups of ``run``, whatever they made of their environment."""
        return _members(self._folder(hierarchy, run) for hierarchy in self._hierarchies)

    def others(self, runs: Collection[str]) -> dict[str, list[Path]]:
        """Groups of this agent that belong to none of ``runs``, by name."""
        found: dict[str, list[Path]] = {}
        for hierarchy in self._hierarchies:
            for folder in self._folder(hierarchy, "").glob("*/"):
                if folder.name not in runs:
                    found.setdefault(folder.name, []).append(folder)
        return found

    def remove(self, run: str) -> None:
        """Remove the groups of ``run``, whose processes have ended; harmless when there are none."""
        for hierarchy in self._hierarchies:
            folder = self._folder(hierarchy, run)
            for _ in range(50):
                try:
                    with contextlib.suppress(FileNotFoundError):
                        folder.rmdir()
                except OSError as error:
                    if error.errno == errno.EBUSY:  # the kernel still buries the last process
                        time.sleep(0.02)
                        continue
                break

    @property
    def _hierarchies(self) -> tuple[str, ...]:
        return ("",) if self.unified else ("memory", "cpu", "pids", *COUNTING)

    def _folder(self, hierarchy: str, run: str) -> Path:
        return self._root / hierarchy / PARENT / self._home / run

    def _probe(self) -> bool:
        """Whether groups with limits can be made here."""
        try:
            if self.unified:
                own = self._folder("", "")
                own.mkdir(parents=True, exist_ok=True)
                for folder in (self._root, own.parent, own):
                    (folder / "cgroup.subtree_control").write_text("+cpu +memory +pids")
            self.create("probe", Limits(cpu_quota=1, memory_bytes=1 << 30))
        except OSError:
            return False
        self.remove("probe")
        return True


def left(folders: Iterable[Path]) -> str:
    """A clause on control groups (of any version) whose run is gone."""
    where = list(folders)
    pids = _members(where)
    inside = f", with {len(pids)} processes in them" if pids else ""
    return f"its control groups are left{inside}: {', '.join(sorted(map(str, where)))}"


def _members(folders: Iterable[Path]) -> set[int]:
    found: set[int] = set()
    for folder in folders:
        for procs in folder.glob("**/cgroup.procs"):
            with contextlib.suppress(OSError):
                found.update(map(int, procs.read_text().split()))
    return found


def _unified(limits: Limits) -> dict[str, dict[str, str]]:
    files = {"pids.max": str(limits.pids)}
    if limits.memory_bytes is not None:
        files |= {"memory.max": str(limits.memory_bytes), "memory.swap.max": "0"}
    if limits.cpu_quota is not None:
        files["cpu.max"] = f"{max(1000, int(limits.cpu_quota * _PERIOD))} {_PERIOD}"
    return {"": files}


def _split(limits: Limits) -> dict[str, dict[str, str]]:
    settings: dict[str, dict[str, str]] = {"pids": {"pids.max": str(limits.pids)}}
    if limits.memory_bytes is not None:
        settings["memory"] = {
            "memory.limit_in_bytes": str(limits.memory_bytes),
            "memory.memsw.limit_in_bytes": str(limits.memory_bytes),
        }
    if limits.cpu_quota is not None:
        settings["cpu"] = {
            "cpu.cfs_period_us": str(_PERIOD),
            "cpu.cfs_quota_us": str(max(1000, int(limits.cpu_quota * _PERIOD))),
        }
    return settings
