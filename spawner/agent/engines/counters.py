"""Counters of a group of processes, read from control groups (version 1 or 2) and ``/proc``.

No engine is asked: what is read here is read for every kernel every few seconds.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

ROOT = "/sys/fs/cgroup"
PROC = "/proc"


@dataclass(frozen=True, slots=True)
class Place:
    """The control groups of some processes: folders by controller, one and the same for version 2."""

    unified: bool
    cpu: str
    memory: str
    io: str | None
    pids: str | None


@dataclass(frozen=True, slots=True)
class Usage:
    """Totals of a control group since it was made, and the memory in use now."""

    cpu_seconds: float
    memory_bytes: int
    io_read_bytes: int
    io_write_bytes: int
    tasks: int | None
    """Processes and threads."""


def place_of(pid: int, root: str = ROOT, proc: str = PROC) -> Place | None:
    """Where the control groups of ``pid`` are; None when it is gone or they cannot be seen from here."""
    try:
        with open(f"{proc}/{pid}/cgroup", encoding="ascii") as file:
            lines = file.read().splitlines()
    except OSError:
        return None
    folders: dict[str, str] = {}
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            folders[controller] = path
    if os.path.exists(f"{root}/cgroup.controllers"):
        found: Place | None = _unified(f"{root}{folders.get('', '/')}".rstrip("/"))
    else:
        found = _split(folders, root)
    return found if found is not None and os.path.isdir(found.cpu) else None


def _unified(folder: str) -> Place:
    return Place(True, folder, folder, folder, folder)


def _split(folders: Mapping[str, str], root: str) -> Place | None:
    if "cpuacct" not in folders or "memory" not in folders:
        return None
    at = {name: f"{root}/{name}{folders[name]}".rstrip("/") for name in folders if name}
    return Place(False, at["cpuacct"], at["memory"], at.get("blkio"), at.get("pids"))


def wrong_limit(place: Place, asked: int) -> str | None:
    """What is wrong with the memory that a control group allows, when ``asked`` bytes are right; None: nothing."""
    name = "memory.max" if place.unified else "memory.limit_in_bytes"
    try:
        given = text(f"{place.memory}/{name}").strip()
    except OSError:
        return None  # it is gone
    page = os.sysconf("SC_PAGE_SIZE")  # the kernel of Linux counts in these
    if given.isdecimal() and int(given) // page == asked // page:
        return None
    return f"its control group allows {given} bytes of memory, not {asked}"


def usage(place: Place, proc: str = PROC) -> Usage | None:
    """What a control group used; None when it is gone."""
    try:
        if place.unified:
            cpu = int(_pairs(f"{place.cpu}/cpu.stat")["usage_usec"]) / 1e6
            memory = int(text(f"{place.memory}/memory.current"))
            cache = int(_pairs(f"{place.memory}/memory.stat").get("inactive_file", "0"))
            io = _io_unified(place.io)
        else:
            cpu = int(text(f"{place.cpu}/cpuacct.usage")) / 1e9
            memory = int(text(f"{place.memory}/memory.usage_in_bytes"))
            cache = int(_pairs(f"{place.memory}/memory.stat").get("total_inactive_file", "0"))
            io = _io_split(place.io)
    except (OSError, KeyError, ValueError):
        return None
    if io == (0, 0):  # it may be that nobody counts: recent kernels of Linux do not, in version 1
        io = disk_traffic(members(place), proc)
    return Usage(cpu, max(0, memory - cache), *io, _tasks(place.pids))


def disk_traffic(pids: Iterable[int], proc: str = PROC) -> tuple[int, int]:
    """Bytes that processes read from and wrote to disks, with their children that ended."""
    read = written = 0
    for pid in pids:
        try:
            facts = dict(line.split(": ") for line in text(f"{proc}/{pid}/io").splitlines())
            read += int(facts["read_bytes"])
            written += int(facts["write_bytes"])
        except (OSError, KeyError, ValueError):  # gone, or not ours to look at
            continue
    return read, written


def traffic(pid: int, proc: str = PROC) -> tuple[int, int]:
    """Bytes received and sent in the network namespace of ``pid``, its loopback aside."""
    received = sent = 0
    try:
        lines = text(f"{proc}/{pid}/net/dev").splitlines()[2:]
    except OSError:
        return 0, 0
    for line in lines:
        name, _, numbers = line.partition(":")
        fields = numbers.split()
        if name.strip() != "lo" and len(fields) >= 9:
            received += int(fields[0])
            sent += int(fields[8])
    return received, sent


def sockets(pid: int, proc: str = PROC) -> str:
    """The tables of TCP sockets of ``pid``'s network namespace; those that are empty are not read.

    Linux goes over the buckets of all namespaces for each: that takes milliseconds.
    """
    folder = f"{proc}/{pid}/net"
    waiting = in_use(text(f"{folder}/sockstat"), "TCP", "tw")
    tables = ""
    for name, counts, kind in (("tcp", "sockstat", "TCP"), ("tcp6", "sockstat6", "TCP6")):
        if waiting or in_use(text(f"{folder}/{counts}", missing=""), kind, "inuse"):
            tables += text(f"{folder}/{name}", missing="")
    return tables


def in_use(counts: str, kind: str, what: str) -> int:
    """A number of ``sockstat``: ``TCP: inuse 4 orphan 0 tw 1``."""
    for line in counts.splitlines():
        name, _, numbers = line.partition(":")
        fields = numbers.split()
        if name == kind and what in fields:
            return int(fields[fields.index(what) + 1])
    return 0


def temporary_bytes(pid: int, proc: str = PROC) -> int | None:
    """What lies in the ``/tmp`` of ``pid``, where that is a file system of its own."""
    root = f"{proc}/{pid}/root"
    folder = f"{root}/tmp"  # noqa: S108 - only looked at
    try:
        below, above = os.lstat(folder), os.stat(root)
        if not stat.S_ISDIR(below.st_mode) or below.st_dev == above.st_dev:
            return None
        system = os.statvfs(folder)
    except OSError:
        return None
    return (system.f_blocks - system.f_bfree) * system.f_frsize


def members(place: Place) -> list[int]:
    """Ids of the processes in a control group and in those beneath it."""
    found: list[int] = []
    for folder, _, files in os.walk(place.cpu):
        if "cgroup.procs" in files:
            try:
                found += [int(line) for line in text(f"{folder}/cgroup.procs").split()]
            except (OSError, ValueError):
                continue
    return sorted(set(found))


def _io_unified(folder: str | None) -> tuple[int, int]:
    read = written = 0
    for line in _lines(folder, "io.stat"):
        for field in line.split()[1:]:
            name, _, value = field.partition("=")
            if name == "rbytes":
                read += int(value)
            elif name == "wbytes":
                written += int(value)
    return read, written


def _io_split(folder: str | None) -> tuple[int, int]:
    read = written = 0
    for line in _lines(folder, "blkio.throttle.io_service_bytes_recursive"):
        fields = line.split()
        if len(fields) == 3 and fields[1] == "Read":
            read += int(fields[2])
        elif len(fields) == 3 and fields[1] == "Write":
            written += int(fields[2])
    return read, written


def _lines(folder: str | None, name: str) -> list[str]:
    """Lines of a file that not every kernel of Linux has."""
    if folder is None:
        return []
    try:
        return text(f"{folder}/{name}").splitlines()
    except OSError:
        return []


def _tasks(folder: str | None) -> int | None:
    try:
        return None if folder is None else int(text(f"{folder}/pids.current"))
    except (OSError, ValueError):
        return None


def _pairs(path: str) -> dict[str, str]:
    return dict(line.split(" ", 1) for line in text(path).splitlines())


def text(path: str, missing: str | None = None) -> str:
    """A small file of the kernel's, without the layers of ``open``; ``missing`` instead of an error."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        if missing is None:
            raise
        return missing
    try:
        parts: list[bytes] = []
        while more := os.read(descriptor, 1 << 16):
            parts.append(more)
        return b"".join(parts).decode("ascii", "replace")
    finally:
        os.close(descriptor)
