"""FuriosaAI Warboy and RNGD, from the management classes of the vendor's drivers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from spawner.accelerators.chips import Chip, Model, SysfsPlugin, counted, hwmon
from spawner.accelerators.specification import DeviceSpec
from spawner.accelerators.sysfs import entries, text

WARBOY = Model("warboy.device", "Furiosa Warboy", "Warboy", "furiosa")
RNGD = Model("rngd.device", "Furiosa RNGD", "RNGD", "furiosa")
FURIOSA = "FURIOSAAI"


class FuriosaPlugin(SysfsPlugin):
    """Slots ``warboy.device`` and ``rngd.device``."""

    name = "furiosa"
    sensors = hwmon("")
    locked_memory = True

    def find(self) -> Iterable[Chip]:
        """Devices of both classes with all nodes of theirs: cores, channels, management."""
        for match, folder in entries(self.sysfs.sys / "class/npu_mgmt", r"npu(\d+)_mgmt"):
            maker = text(folder / "platform_type")
            if maker is None or maker.upper() == FURIOSA:
                yield from self._chip(WARBOY, int(match.group(1)), folder, "")
        for match, folder in entries(self.sysfs.sys / "class/rngd_mgmt", r"rngd!npu(\d+)mgmt"):
            yield from self._chip(RNGD, int(match.group(1)), folder, "rngd")

    def environment(self, chips: Sequence[Chip]) -> DeviceSpec:
        """In a container the vendor's software takes the devices whose nodes are there."""
        names = ",".join(f"npu:{chip.number}" for chip in chips)
        return DeviceSpec(
            environ=counted(self.name, chips), host_environ={"FURIOSA_DEVICES": names}
        )

    def _chip(self, model: Model, place: int, folder: Path, below: str) -> Iterable[Chip]:
        nodes = self.sysfs.nodes(rf"npu{place}(?!\d).*", below)
        if not nodes:
            return
        function = self.sysfs.function_at(text(folder / "busname") or "")
        yield Chip(
            device_id=function.address if function else f"{model.slot.partition('.')[0]}-{place}",
            number=place,
            model=model,
            product=model.human_name,
            nodes=nodes,
            function=function,
            folder=function.folder if function else folder,
        )
