"""The memory of a node: one device, counted in bytes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from spawner.accelerators.base import AcceleratorPlugin, only_settings
from spawner.accelerators.measures import Measure, MeasureKind, Reading
from spawner.accelerators.specification import DeviceSpec
from spawner.accelerators.sysfs import ROOT, Sysfs, entries, text
from spawner.agent.protocol import DeviceReport, Share, SlotMetadata
from spawner.scheduler.slots import human_bytes, parse_amount

ALIGNMENT = 16 * 1024 * 1024
DEFAULT_RESERVED = 1024**3


class MemPlugin(AcceleratorPlugin):
    """Slot ``mem``. Settings: ``reserved`` (default 1 GiB), ``total`` (default: all of the node's)."""

    name = "mem"

    def __init__(self) -> None:
        self._total = int(psutil.virtual_memory().total)
        self._reserved = min(DEFAULT_RESERVED, self._total // 4)
        self._sysfs = Sysfs()

    def configure(self, config: Mapping[str, Any]) -> None:
        """``reserved``: bytes kept for the node itself; ``total``: bytes to count with; ``root`` of ``sys``."""
        only_settings(config, "reserved", "total", "root")
        self._sysfs = Sysfs(Path(str(config.get("root", ROOT))))
        if "total" in config:
            self._total = parse_amount("mem", config["total"])
        if "reserved" in config:
            self._reserved = parse_amount("mem", config["reserved"])
        if self._reserved >= self._total:
            raise ValueError(f"reserved is {human_bytes(self._reserved)}: nothing would be left")

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
        for match, folder in entries(self._sysfs.sys / "devices/system/node", r"node(\d+)"):
            total = re.search(r"MemTotal:\s*(\d+) kB", text(folder / "meminfo") or "")
            if total is not None:
                found[match.group(1)] = int(total.group(1)) * 1024
        return found
