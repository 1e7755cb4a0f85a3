"""Counters of the node itself, from ``/proc``."""

from __future__ import annotations

import os
from dataclasses import dataclass

from spawner.agent.engines import counters

_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class NodeUsage:
    """Totals since boot, and what is in use now."""

    cpu_seconds: float
    cpus: int
    memory_bytes: int
    memory_capacity: int
    disk_bytes: int
    disk_capacity: int
    net_rx_bytes: int
    net_tx_bytes: int


def read(folder: str) -> NodeUsage:
    """The node as it is now; the disk is that of ``folder``. Raises ``OSError``."""
    busy, cpus = _cpu(counters.text("/proc/stat"))
    total, free = _memory(counters.text("/proc/meminfo"))
    disk = os.statvfs(folder)
    received, sent = counters.traffic(os.getpid())
    return NodeUsage(
        cpu_seconds=busy,
        cpus=cpus,
        memory_bytes=total - free,
        memory_capacity=total,
        disk_bytes=(disk.f_blocks - disk.f_bfree) * disk.f_frsize,
        disk_capacity=disk.f_blocks * disk.f_frsize,
        net_rx_bytes=received,
        net_tx_bytes=sent,
    )


def _cpu(text: str) -> tuple[float, int]:
    """Busy seconds of all CPUs together, and their number."""
    lines = [line for line in text.splitlines() if line.startswith("cpu")]
    fields = [int(each) for each in lines[0].split()[1:9]]
    idle = fields[3] + fields[4]
    return (sum(fields) - idle) / _TICK, len(lines) - 1


def _memory(text: str) -> tuple[int, int]:
    facts = dict(line.split(":", 1) for line in text.splitlines())
    return _kib(facts["MemTotal"]), _kib(facts["MemAvailable"])


def _kib(text: str) -> int:
    return int(text.split()[0]) * 1024
