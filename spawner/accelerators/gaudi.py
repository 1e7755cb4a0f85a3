"""Intel Gaudi (Habana Labs), from the accel class of the habanalabs driver."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from spawner.accelerators.chips import Chip, Model, SysfsPlugin, counted, hwmon, numbers
from spawner.accelerators.specification import DeviceSpec
from spawner.accelerators.sysfs import PciFunction, entries, number, text

HABANA = 0x1DA3
GAUDI = Model("gaudi.device", "Gaudi", "Gaudi", "gaudi")
GAUDI2 = Model("gaudi2.device", "Gaudi 2", "Gaudi 2", "gaudi")
GAUDI3 = Model("gaudi3.device", "Gaudi 3", "Gaudi 3", "gaudi")
BY_PCI = {
    0x1000: GAUDI,
    0x1010: GAUDI,
    0x1020: GAUDI2,
    0x1060: GAUDI3,
    0x1061: GAUDI3,
    0x1062: GAUDI3,
    0x1063: GAUDI3,
}
CLASSES = (("accel", r"accel(\d+)"), ("habanalabs", r"hl(\d+)"))
"""The class of the driver since Linux 6.3, and the one before."""
FAULTS = {
    "malfunction": "its driver reports a malfunction",
    "disabled": "its driver disabled it",
    "needs reset": "its driver says that it needs a reset",
}
"""By the driver's status; the others are operation, and resets that end by themselves."""


class GaudiPlugin(SysfsPlugin):
    """Slots ``gaudi.device``, ``gaudi2.device``, ``gaudi3.device``."""

    name = "gaudi"
    sensors = hwmon()
    locked_memory = True

    def find(self) -> Iterable[Chip]:
        """Devices of either class whose PCI function is Habana's."""
        for kind, pattern in CLASSES:
            for match, folder in entries(self.sysfs.sys / "class" / kind, pattern):
                function = self.sysfs.function(folder / "device")
                if function is not None and function.vendor == HABANA:
                    chip = self._chip(kind, int(match.group(1)), folder, function)
                    if chip is not None:
                        yield chip

    def environment(self, chips: Sequence[Chip]) -> DeviceSpec:
        """Numbers for the vendor's runtime, and module ids for its software."""
        environ = counted(self.name, chips)
        modules = [chip.attributes["module"] for chip in chips]
        if len(chips) < len(self.chips()) and None not in modules:
            environ["HABANA_VISIBLE_MODULES"] = ",".join(str(module) for module in modules)
        return DeviceSpec(environ=environ, enforced={"HABANA_VISIBLE_DEVICES": numbers(chips)})

    def hidden_spec(self) -> DeviceSpec:
        """Nothing from a runtime that would otherwise give all."""
        return DeviceSpec(enforced={"HABANA_VISIBLE_DEVICES": "void"})

    def _chip(self, kind: str, minor: int, folder: Path, function: PciFunction) -> Chip | None:
        facts = folder / "device"
        model = _model(text(facts / "device_type") or "", function)
        if kind == "accel":
            nodes = self.sysfs.nodes(rf"accel{minor}|accel_controlD{minor}", "accel")
        else:
            nodes = self.sysfs.nodes(rf"hl{minor}|hl_controlD{minor}")
        if model is None or not nodes:
            return None
        return Chip(
            device_id=function.address,
            number=minor,
            model=model,
            product=f"Intel {model.human_name}",
            nodes=nodes,
            function=function,
            folder=folder,
            attributes={"module": number(facts / "module_id")},
            fault=FAULTS.get((text(facts / "status") or "").lower(), ""),
        )


def _model(device_type: str, function: PciFunction) -> Model | None:
    """By what the driver calls it (``GAUDI2``), else by its PCI id; other chips are not Gaudis."""
    for prefix, model in (("GAUDI3", GAUDI3), ("GAUDI2", GAUDI2), ("GAUDI", GAUDI)):
        if device_type.upper().replace(" ", "").startswith(prefix):
            return model
    return BY_PCI.get(function.device)
