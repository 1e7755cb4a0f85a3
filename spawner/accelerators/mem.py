"""The memory of a node: one device, counted in bytes."""

from __future__ import annotations

import re
from collections.abc import Sequence

import psutil

from spawner.accelerators.base import HostPlugin
from spawner.accelerators.measures import Measure, MeasureKind, Reading
from spawner.accelerators.specification import DeviceSpec
from spawner.accelerators.sysfs import text
from spawner.agent.protocol import DeviceReport, Share, SlotMetadata

ALIGNMENT = 16 * 1024 * 1024
DEFAULT_RESERVED = 1024**3


class MemPlugin(HostPlugin):
    """Slot ``mem``. Settings: ``reserved`` (default 1 GiB), ``total`` (default: all of the node's)."""

    name = "mem"

    def __init__(self) -> None:
        total = int(psutil.virtual_memory().total)
        super().__init__(total=total, reserved=min(DEFAULT_RESERVED, total // 4))

    def slots(self) -> Sequence[SlotMetadata]:
        """Bytes."""
        return [
            SlotMetadata(
                name="mem",
                human_name="Memory",
                description="Main memory",
                unit="memory",
                display_unit="GiB",
                icon="ram",
                type="bytes",
                quantum=1,
                binary=True,
                round_length=2,
            )
        ]

    async def devices(self) -> Sequence[DeviceReport]:
        """One device, ``mem``, aligned to 16 MiB so that it does not change with every boot.

        Its ``attributes`` say how much is on which NUMA node.
        """
        offered = (self._total - self._reserved) // ALIGNMENT * ALIGNMENT
        topology = {"numa": self._topology()}
        return [DeviceReport("mem", "mem", offered, attributes=topology, reserved=self._reserved)]

    def device_spec(self, shares: Sequence[Share]) -> DeviceSpec:
        """A hard limit in bytes; ``MEM_LIMIT`` as JupyterHub's tools read it."""
        amount = sum(share.amount for share in shares)
        environ = {"MEM_LIMIT": str(amount), "MEM_GUARANTEE": str(amount)}
        return DeviceSpec(memory_bytes=amount, environ=environ)

    async def measure(self) -> Sequence[Measure]:
        """Memory that is not available to new programs."""
        memory = psutil.virtual_memory()
        reading = {"mem": Reading(float(memory.total - memory.available), float(memory.total))}
        return [Measure("mem", MeasureKind.USAGE, "bytes", reading)]

    def _topology(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for match, folder in self._numa_nodes():
            total = re.search(r"MemTotal:\s*(\d+) kB", text(folder / "meminfo") or "")
            if total is not None:
                found[match.group(1)] = int(total.group(1)) * 1024
        return found
