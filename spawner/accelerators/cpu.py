"""The CPUs of a node: one device whose capacity is what the agent may hand out."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import psutil

from spawner.accelerators.base import HostPlugin
from spawner.accelerators.measures import Measure, MeasureKind, Reading
from spawner.accelerators.specification import DeviceSpec
from spawner.accelerators.sysfs import text
from spawner.agent.protocol import DeviceReport, Share, SlotMetadata
from spawner.scheduler.slots import MICRO, kind_of


class CpuPlugin(HostPlugin):
    """Slot ``cpu``, enforced as a share of CPU time. Settings: ``reserved``, ``total`` (amounts)."""

    name = "cpu"

    def __init__(self) -> None:
        super().__init__(total=len(os.sched_getaffinity(0)) * MICRO, reserved=0)

    def slots(self) -> Sequence[SlotMetadata]:
        """Tenths of a CPU."""
        return [
            SlotMetadata(
                name="cpu",
                human_name="CPU",
                description="CPU time",
                unit="CPU",
                display_unit="Core",
                icon="cpu",
                quantum=kind_of("cpu").quantum,
                round_length=1,
            )
        ]

    async def devices(self) -> Sequence[DeviceReport]:
        """One device, ``cpu``; ``attributes`` say which CPUs are on which NUMA node."""
        return [
            DeviceReport(
                "cpu",
                "cpu",
                self._total - self._reserved,
                model=_model(),
                attributes={"numa": self._topology()},
                reserved=self._reserved,
            )
        ]

    def device_spec(self, shares: Sequence[Share]) -> DeviceSpec:
        """A quota of CPU time, and the counts that numerical libraries read."""
        amount = sum(share.amount for share in shares)
        threads = str(max(1, math.ceil(amount / MICRO)))
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        environ = dict.fromkeys(names, threads)
        environ |= {"CPU_LIMIT": f"{amount / MICRO:g}", "CPU_GUARANTEE": f"{amount / MICRO:g}"}
        return DeviceSpec(cpu_quota=amount / MICRO, environ=environ)

    async def measure(self) -> Sequence[Measure]:
        """Time that all CPUs together were busy."""
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
        busy = sum(times) - idle - guests  # guests are counted as users too
        reading = {"cpu": Reading(busy)}
        return [Measure("cpu_used", MeasureKind.ACCUMULATION, "seconds", reading)]

    def _topology(self) -> dict[str, str]:
        nodes = self._numa_nodes()
        lists = {match.group(1): text(folder / "cpulist") for match, folder in nodes}
        return {node: cpus for node, cpus in lists.items() if cpus}


def _model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
