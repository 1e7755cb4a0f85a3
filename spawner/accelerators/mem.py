"""The memory of a node: one device, counted in bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import psutil

from spawner.accelerators.base import AcceleratorPlugin, DeviceSpec, only_settings
from spawner.agent.protocol import DeviceReport, Share
from spawner.scheduler.slots import human_bytes, parse_amount

ALIGNMENT = 16 * 1024 * 1024
DEFAULT_RESERVED = 1024**3


class MemPlugin(AcceleratorPlugin):
    """Slot ``mem``. Settings: ``reserved`` (default 1 GiB), ``total`` (default: all of the node's)."""

    name = "mem"

    def __init__(self) -> None:
        self._total = int(psutil.virtual_memory().total)
        self._reserved = min(DEFAULT_RESERVED, self._total // 4)

    def configure(self, config: Mapping[str, Any]) -> None:
        """``reserved``: bytes kept for the node itself; ``total``: bytes to count with."""
        only_settings(config, "reserved", "total")
        if "total" in config:
            self._total = parse_amount("mem", config["total"])
        if "reserved" in config:
            self._reserved = parse_amount("mem", config["reserved"])
        if self._reserved >= self._total:
            raise ValueError(f"reserved is {human_bytes(self._reserved)}: nothing would be left")

    async def devices(self) -> Sequence[DeviceReport]:
        """One device, ``mem``, aligned to 16 MiB so that it does not change with every boot."""
        offered = (self._total - self._reserved) // ALIGNMENT * ALIGNMENT
        return [DeviceReport("mem", "mem", offered)]

    def device_spec(self, shares: Sequence[Share]) -> DeviceSpec:
        """A hard limit in bytes; ``MEM_LIMIT`` as JupyterHub's tools read it."""
        amount = sum(share.amount for share in shares)
        environ = {"MEM_LIMIT": str(amount), "MEM_GUARANTEE": str(amount)}
        return DeviceSpec(memory_bytes=amount, environ=environ)
