"""What plug-ins share whose devices are found through sysfs: a vendor adds how to find its chips.

Settings of all of them: ``include`` and ``exclude`` (lists of device ids, PCI addresses or numbers) and
``root`` (where ``sys`` and ``dev`` lie; default ``/``).
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spawner.accelerators.base import (
    AcceleratorPlugin,
    Mask,
    aside,
    only_settings,
    whole_devices,
)
from spawner.accelerators.measures import Measure, MeasureKind, Reading
from spawner.accelerators.specification import DeviceNode, DeviceSpec, HostMount
from spawner.accelerators.sysfs import ROOT, PciFunction, Sysfs, sensor
from spawner.agent.protocol import DeviceReport, Share, SlotMetadata
from spawner.scheduler.slots import MICRO


@dataclass(frozen=True, slots=True)
class Model:
    """A kind of chip: its slot and what people call it."""

    slot: str
    human_name: str
    unit: str
    icon: str

    def metadata(self) -> SlotMetadata:
        """The slot, counted in whole devices."""
        return whole_devices(self.slot, self.human_name, self.unit, self.icon)


@dataclass(frozen=True, slots=True)
class Chip:
    """One device that was found."""

    device_id: str
    number: int
    """How the vendor's driver and tools count it on this node."""
    model: Model
    product: str
    nodes: tuple[str, ...]
    function: PciFunction | None = None
    folder: Path | None = None
    """Where its sensors are."""
    memory_bytes: int | None = None
    links: frozenset[str] = frozenset()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    fault: str = ""
    """Why it is not to be used, where the driver says so."""

    @property
    def names(self) -> frozenset[str]:
        """All it goes by in a mask."""
        address = {self.function.address} if self.function else set()
        return frozenset({self.device_id, str(self.number), *address})


@dataclass(frozen=True, slots=True)
class Sensor:
    """A quantity in a file: at the first of ``places`` (globs beneath the chip's folder) that is there."""

    name: str
    kind: MeasureKind
    unit: str
    places: tuple[str, ...]
    scale: float = 1.0
    limits: tuple[str, ...] = ()
    """Where the most that it can be is written, if anywhere."""

    def read(self, folder: Path) -> Reading | None:
        """The reading now, or None."""
        value = sensor(folder, *self.places)
        if value is None:
            return None
        limit = sensor(folder, *self.limits)
        if self.unit == "percent":
            return Reading(value * self.scale, 100.0)
        return Reading(value * self.scale, None if limit is None else limit * self.scale)


def hwmon(prefix: str = "device/") -> tuple[Sensor, ...]:
    """Power and temperature as kernel drivers publish them."""
    place = f"{prefix}hwmon/hwmon*/"
    return (
        Sensor(
            "power",
            MeasureKind.USAGE,
            "watts",
            (f"{place}power1_input", f"{place}power1_average"),
            1e-6,
            (f"{place}power1_cap", f"{place}power1_max"),
        ),
        Sensor(
            "temperature",
            MeasureKind.GAUGE,
            "celsius",
            (f"{place}temp1_input",),
            1e-3,
            (f"{place}temp1_crit",),
        ),
    )


class SysfsPlugin(AcceleratorPlugin):
    """Whole devices found in sysfs."""

    sensors: tuple[Sensor, ...] = ()
    mounts: tuple[HostMount, ...] = ()
    """Folders of the node that a kernel gets with a device, where they are there."""
    locked_memory = False

    def __init__(self) -> None:
        self.sysfs = Sysfs()
        self._mask = Mask()
        self._chips: dict[tuple[str, str], Chip] = {}

    def configure(self, config: Mapping[str, Any]) -> None:
        """Masks, and where to look."""
        only_settings(config, "include", "exclude", "root")
        self._mask = Mask.read(config)
        root = config.get("root", str(ROOT))
        if not isinstance(root, str) or not Path(root).is_dir():
            raise ValueError(f"root is {root!r}: give a folder with sys and dev in it")
        self.sysfs = Sysfs(Path(root))

    @abc.abstractmethod
    def find(self) -> Iterable[Chip]:
        """The chips that are there. Blocks."""

    def names_within(self, chips: Sequence[Chip]) -> Mapping[str, str]:
        """Device nodes that a kernel with ``chips`` finds under other names than the node's own."""
        del chips
        return {}

    def environment(self, chips: Sequence[Chip]) -> DeviceSpec:
        """Variables for a kernel that holds ``chips``; only the environments of the answer count."""
        del chips
        return DeviceSpec()

    def slots(self) -> Sequence[SlotMetadata]:
        """One for each model that was found."""
        models = {chip.model.slot: chip.model for chip in self._chips.values()}
        return [models[slot].metadata() for slot in sorted(models)]

    async def devices(self) -> Sequence[DeviceReport]:
        """All chips; masked ones offer nothing."""
        chips = list(await aside(lambda: tuple(self.find())))
        self._chips = {(chip.model.slot, chip.device_id): chip for chip in chips}
        self._mask.check(self.name, (name for chip in chips for name in chip.names))
        return [self._report(chip) for chip in chips]

    def device_spec(self, shares: Sequence[Share]) -> DeviceSpec:
        """Its device nodes, the groups that may open them, and the vendor's variables."""
        chips = self.chosen(shares)
        named = self.names_within(chips)
        nodes = tuple(dict.fromkeys(node for chip in chips for node in chip.nodes))
        given = self.environment(chips)
        return DeviceSpec(
            devices=tuple(DeviceNode(node, named.get(node, "")) for node in nodes),
            mounts=tuple(
                m for m in self.mounts if (self.sysfs.root / m.source.lstrip("/")).exists()
            ),
            groups=self.sysfs.groups(nodes),
            locked_memory=self.locked_memory,
            environ=given.environ,
            enforced=given.enforced,
            host_environ=given.host_environ,
        )

    async def measure(self) -> Sequence[Measure]:
        """What the sensors of the chips say."""
        return await aside(self._measure)

    def chosen(self, shares: Sequence[Share]) -> list[Chip]:
        """The chips of ``shares``, as the driver counts them. Raises ``ValueError``."""
        chips = []
        for share in shares:
            chip = self._chips.get((share.slot, share.device_id))
            if chip is None:
                raise ValueError(f"{share.slot} {share.device_id} is not there any more")
            chips.append(chip)
        return sorted(chips, key=lambda chip: chip.number)

    def chips(self) -> list[Chip]:
        """All chips that were last found."""
        return list(self._chips.values())

    def _report(self, chip: Chip) -> DeviceReport:
        masked = self._mask.hides(chip.names)
        attributes: dict[str, Any] = {"number": chip.number, **chip.attributes}
        if chip.function is not None:
            attributes["pci"] = chip.function.address
        if chip.memory_bytes is not None:
            attributes["memory"] = chip.memory_bytes
        return DeviceReport(
            slot=chip.model.slot,
            device_id=chip.device_id,
            capacity=0 if masked or chip.fault else MICRO,
            numa_node=chip.function.numa_node if chip.function else None,
            model=chip.product,
            attributes=attributes,
            links=tuple(sorted(chip.links)),
            masked=masked,
            fault=chip.fault,
        )

    def _measure(self) -> list[Measure]:
        measures = []
        for each in self.sensors:
            readings: dict[str, Reading] = {}
            for chip in self._chips.values():
                reading = None if chip.folder is None else each.read(chip.folder)
                if reading is not None:
                    readings[chip.device_id] = reading
            if readings:
                measures.append(Measure(f"{self.name}_{each.name}", each.kind, each.unit, readings))
        return measures


def numbers(chips: Iterable[Chip]) -> str:
    """Numbers of chips, as visibility variables want them: ``0,2``."""
    return ",".join(str(chip.number) for chip in chips)


def counted(family: str, chips: Sequence[Chip]) -> dict[str, str]:
    """Variables that say how many of what a kernel holds."""
    return {"GPU_TYPE": family, "GPU_COUNT": str(len(chips))}
