"""Google TPUs that are attached to the node: PCI functions of Google with an accel or a VFIO device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from spawner.accelerators.chips import Chip, Model, SysfsPlugin, counted, numbers
from spawner.accelerators.specification import DeviceSpec
from spawner.accelerators.sysfs import PciFunction, entries

GOOGLE = 0x1AE0
VERSIONS = {
    0x0027: "TPU v2/v3",
    0x005E: "TPU v4",
    0x0062: "TPU v5p",
    0x0063: "TPU v5e",
    0x006F: "TPU v6e",
    0x0076: "TPU7x",
}
TPU = Model("tpu.device", "TPU chip", "TPU", "tpu")
BOUNDS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1", 8: "2,4,1"}
"""Shapes of the chips that one process may take, by their number."""


class TpuPlugin(SysfsPlugin):
    """Slot ``tpu.device``: one chip."""

    name = "tpu"
    locked_memory = True

    def find(self) -> Iterable[Chip]:
        """Chips with the device node of their driver, in the order of their addresses."""
        for place, function in enumerate(self.sysfs.pci(GOOGLE, VERSIONS)):
            nodes = self._nodes(function)
            if nodes:
                yield Chip(
                    device_id=function.address,
                    number=place,
                    model=TPU,
                    product=VERSIONS[function.device],
                    nodes=nodes,
                    function=function,
                )

    def environment(self, chips: Sequence[Chip]) -> DeviceSpec:
        """Which chips the runtime takes, and in which shape; nothing for all chips of the node."""
        environ = counted(self.name, chips)
        if len(chips) < len(self.chips()):
            environ["TPU_VISIBLE_CHIPS"] = numbers(chips)
            environ["TPU_PROCESS_BOUNDS"] = "1,1,1"
            if len(chips) in BOUNDS:
                environ["TPU_CHIPS_PER_PROCESS_BOUNDS"] = BOUNDS[len(chips)]
        return DeviceSpec(environ=environ)

    def _nodes(self, function: PciFunction) -> tuple[str, ...]:
        for match, folder in entries(self.sysfs.sys / "class/accel", r"accel\d+"):
            owner = self.sysfs.function(folder / "device")
            if owner is not None and owner.address == function.address:
                flat = self.sysfs.nodes(match.string)
                return flat or self.sysfs.nodes(match.string, "accel")
        try:
            group = (function.folder / "iommu_group").resolve(strict=True).name
        except OSError:
            return ()
        own = self.sysfs.nodes(group, "vfio")
        return (*own, "/dev/vfio/vfio") if own else ()
