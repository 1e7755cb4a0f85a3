"""HyperAccel LPUs: FPGA cards of the xclmgmt driver on a node with the vendor's software."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from spawner.accelerators.chips import Chip, Model, SysfsPlugin, counted, hwmon
from spawner.accelerators.specification import DeviceSpec, HostMount
from spawner.accelerators.sysfs import PciFunction, entries

LPU = Model("hyperaccel-lpu.device", "HyperAccel LPU", "LPU", "lpu")
SOFTWARE = "/opt/hyperdex"
DRIVER = "bus/pci/drivers/xclmgmt"


class HyperaccelPlugin(SysfsPlugin):
    """Slot ``hyperaccel-lpu.device``. Other FPGA cards have the driver too, so the software decides."""

    name = "hyperaccel"
    sensors = hwmon("")
    mounts = (HostMount(SOFTWARE, SOFTWARE),)
    locked_memory = True

    def find(self) -> Iterable[Chip]:
        """Cards whose second function has a render node."""
        if not (self.sysfs.root / SOFTWARE.lstrip("/")).is_dir():
            return
        for place, (match, folder) in enumerate(
            entries(self.sysfs.sys / DRIVER, r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.0")
        ):
            management = self.sysfs.function(folder)
            user = self.sysfs.function_at(f"{match.string[:-1]}1")
            if management is None or user is None:
                continue
            renders = [f"/dev/dri/{name}" for name in user.children(r"renderD\d+")]
            debug = self.sysfs.nodes(rf"xvc_pri\.m{_minor(management)}\.0", "xfpga")
            if renders:
                yield Chip(
                    device_id=management.address,
                    number=place,
                    model=LPU,
                    product="HyperAccel LPU",
                    nodes=(*debug, *renders),
                    function=user,
                    folder=user.folder,
                )

    def environment(self, chips: Sequence[Chip]) -> DeviceSpec:
        """How many there are; the vendor's stack takes every card whose node it can open."""
        return DeviceSpec(environ=counted(self.name, chips))


def _minor(function: PciFunction) -> int:
    """The number by which the driver names a card's nodes: its address in one integer."""
    domain, bus, rest = function.address.split(":")
    slot, _, part = rest.partition(".")
    return int(domain, 16) << 16 | int(bus, 16) << 8 | int(slot, 16) << 3 | int(part)
