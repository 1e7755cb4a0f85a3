"""The CPUs of a node: one device whose capacity is what the agent may hand out."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spawner.accelerators.base import AcceleratorPlugin, DeviceSpec, only_settings
from spawner.agent.protocol import DeviceReport, Share
from spawner.scheduler.slots import MICRO, parse_amount


class CpuPlugin(AcceleratorPlugin):
    """Slot ``cpu``, enforced as a share of CPU time. Settings: ``reserved``, ``total`` (amounts)."""

    name = "cpu"

    def __init__(self) -> None:
        self._reserved = 0
        self._total = len(os.sched_getaffinity(0)) * MICRO

    def configure(self, config: Mapping[str, Any]) -> None:
        """``reserved``: CPUs kept for the node itself; ``total``: CPUs to count with."""
        only_settings(config, "reserved", "total")
        if "total" in config:
            self._total = parse_amount("cpu", config["total"])
        if "reserved" in config:
            self._reserved = parse_amount("cpu", config["reserved"])
        if self._reserved >= self._total:
            raise ValueError(f"reserved is {config.get('reserved')!r}: nothing would be left")

    async def devices(self) -> Sequence[DeviceReport]:
        """One device, ``cpu``."""
        return [DeviceReport("cpu", "cpu", self._total - self._reserved, model=_model())]

    def device_spec(self, shares: Sequence[Share]) -> DeviceSpec:
        """A quota of CPU time, and the counts that numerical libraries read."""
        amount = sum(share.amount for share in shares)
        threads = str(max(1, math.ceil(amount / MICRO)))
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        environ = dict.fromkeys(names, threads)
        environ |= {"CPU_LIMIT": f"{amount / MICRO:g}", "CPU_GUARANTEE": f"{amount / MICRO:g}"}
        return DeviceSpec(cpu_quota=amount / MICRO, environ=environ)


def _model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
