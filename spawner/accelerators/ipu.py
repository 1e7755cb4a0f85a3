"""Graphcore IPUs on PCI cards of the node (IPU-Machines across a network are not found)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from spawner.accelerators.chips import Chip, Model, SysfsPlugin, counted, hwmon
from spawner.accelerators.specification import DeviceSpec

GRAPHCORE = 0x1D95
PRODUCTS = {0x0001: "Colossus GC2", 0x0002: "Colossus GC1"}
IPU = Model("ipu.device", "Graphcore IPU", "IPU", "ipu")


class IpuPlugin(SysfsPlugin):
    """Slot ``ipu.device``."""

    name = "ipu"
    sensors = hwmon("")
    locked_memory = True

    def find(self) -> Iterable[Chip]:
        """Cards with a node ``/dev/ipuN``: the one their driver names, else counted by address."""
        for place, function in enumerate(self.sysfs.pci(GRAPHCORE)):
            named = function.children(r"ipu\d+")
            name = named[0] if named else f"ipu{place}"
            nodes = self.sysfs.nodes(rf"{name}(_\w+)?")
            if nodes:
                yield Chip(
                    device_id=function.address,
                    number=int(name.removeprefix("ipu")),
                    model=IPU,
                    product=PRODUCTS.get(function.device, "Graphcore IPU"),
                    nodes=nodes,
                    function=function,
                    folder=function.folder,
                )

    def environment(self, chips: Sequence[Chip]) -> DeviceSpec:
        """How many there are; the vendor's stack takes every card whose node it can open."""
        return DeviceSpec(environ=counted(self.name, chips))
