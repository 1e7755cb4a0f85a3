"""Devices described by a TOML file, for trying clusters without the hardware.

[slots."foo.device"]          # only for slots that should be shown in a special way
human_name = "Foo"
unit = "Foo"

[[devices]]
slot = "cuda.device"
id = "GPU-0"
capacity = "1"                # "0.9" of a cuda.shares device: the rest is the node's
numa_node = 0
model = "Imaginary 9000"
links = ["GPU-1"]
masked = false
fault = ""                    # why it is out of order; it is shown, and not given out
attributes = {memory = 1024}
environ = {FOO_VISIBLE = "0"} # for kernels that hold it
measures = {foo_util = {kind = "utilization", unit = "percent", value = 42, capacity = 100}}
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from spawner.accelerators.base import AcceleratorPlugin, only_settings
from spawner.accelerators.measures import Measure, MeasureKind, Reading
from spawner.accelerators.specification import DeviceSpec
from spawner.agent.protocol import DeviceReport, Share, SlotMetadata
from spawner.scheduler.slots import MICRO, format_amount, kind_of, parse_amount

_INTRINSIC = ("cpu", "mem")
_UNITS = {"percent", "bytes", "watts", "celsius", "seconds"}


class _Reading(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kind: MeasureKind
    unit: str
    value: float
    capacity: float | None = None


class _Device(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    slot: str
    id: str
    capacity: str | int | float
    numa_node: int | None = None
    model: str = ""
    links: tuple[str, ...] = ()
    masked: bool = False
    fault: str = ""
    attributes: dict[str, Any] = msgspec.field(default_factory=dict)
    environ: dict[str, str] = msgspec.field(default_factory=dict)
    measures: dict[str, _Reading] = msgspec.field(default_factory=dict)


class _Slot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    human_name: str | None = None
    description: str = ""
    unit: str | None = None
    display_unit: str | None = None
    icon: str | None = None
    type: str | None = None
    quantum: str | None = None
    round_length: int = 0


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    devices: tuple[_Device, ...] = ()
    slots: dict[str, _Slot] = msgspec.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Content:
    devices: tuple[DeviceReport, ...] = ()
    entries: tuple[_Device, ...] = ()
    slots: tuple[SlotMetadata, ...] = ()


class MockPlugin(AcceleratorPlugin):
    """Setting ``file``: the TOML file; without it the plug-in offers nothing."""

    name = "mock"

    def __init__(self) -> None:
        self._path: Path | None = None
        self._content = _Content()

    def configure(self, config: Mapping[str, Any]) -> None:
        """Read and check the file."""
        only_settings(config, "file")
        if config:
            self._path = Path(str(config["file"]))
            self._content = _read(self._path)

    def slots(self) -> Sequence[SlotMetadata]:
        """As the file describes them, else what their names say."""
        return self._content.slots

    async def devices(self) -> Sequence[DeviceReport]:
        """The devices of the file, which may have changed: as hardware breaks, or is added."""
        if self._path is not None:
            self._content = _read(self._path)
        return self._content.devices

    def device_spec(self, shares: Sequence[Share]) -> DeviceSpec:
        """No real device, only the environment that says what the kernel holds."""
        held = ",".join(f"{s.slot}:{s.device_id}={format_amount(s.slot, s.amount)}" for s in shares)
        environ = {"PERIJOVE_MOCK_DEVICES": held}
        for share in shares:
            environ |= self._entry(share).environ
        return DeviceSpec(environ=environ)

    async def measure(self) -> Sequence[Measure]:
        """The readings of the file."""
        found: dict[str, tuple[_Reading, dict[str, Reading]]] = {}
        for entry in self._content.entries:
            for name, given in entry.measures.items():
                readings = found.setdefault(name, (given, {}))[1]
                readings[entry.id] = Reading(given.value, given.capacity)
        return [Measure(name, g.kind, g.unit, readings) for name, (g, readings) in found.items()]

    def _entry(self, share: Share) -> _Device:
        for entry in self._content.entries:
            if (entry.slot, entry.id) == (share.slot, share.device_id):
                return entry
        raise ValueError(f"{share.slot} {share.device_id} is not there any more")


def _read(path: Path) -> _Content:
    """The file's content. Raises ``ValueError`` naming the file, and the entry that is wrong."""
    try:
        return _content(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, tomllib.TOMLDecodeError, ValueError) as error:
        raise ValueError(f"file {path}: {error}") from error


def _content(document: Mapping[str, Any]) -> _Content:
    """Raises ``ValueError`` naming the entry that is wrong."""
    file = msgspec.convert(document, _File)
    slots = {name: _metadata(name, given) for name, given in file.slots.items()}
    for device in file.devices:
        slots.setdefault(device.slot, _metadata(device.slot, _Slot()))
    reports = tuple(_report(index, e, slots[e.slot]) for index, e in enumerate(file.devices))
    seen = [(device.slot, device.device_id) for device in reports]
    for index, (slot, device_id) in enumerate(seen):
        if seen.count((slot, device_id)) > 1:
            raise ValueError(f"slot {slot} has two devices {device_id!r}")
        strange = [each for each in file.devices[index].links if (slot, each) not in seen]
        if strange:
            raise ValueError(f"devices[{index}].links: slot {slot} has no device {strange[0]!r}")
    offered = {slot for slot, _ in seen}
    return _Content(reports, file.devices, tuple(slots[name] for name in sorted(offered)))


def _report(index: int, entry: _Device, slot: SlotMetadata) -> DeviceReport:
    where = f"devices[{index}]"
    if entry.slot in _INTRINSIC:
        raise ValueError(f"{where}: slot {entry.slot!r} is the node's own")
    for name, reading in entry.measures.items():
        if reading.unit not in _UNITS:
            known = ", ".join(sorted(_UNITS))
            raise ValueError(f"{where}.measures.{name}.unit is {reading.unit!r}: one of {known}")
    # What is counted in bytes is written as memory is, whatever the slot's name says.
    amount = parse_amount("mem" if slot.type == "bytes" else _counted(slot), entry.capacity)
    return DeviceReport(
        entry.slot,
        entry.id,
        0 if entry.masked or entry.fault else amount,
        numa_node=entry.numa_node,
        model=entry.model,
        attributes=dict(entry.attributes),
        links=entry.links,
        masked=entry.masked,
        fault=entry.fault,
    )


def _counted(slot: SlotMetadata) -> str:
    """A slot that is written as ``slot`` is: in parts, or whole."""
    return "any.shares" if slot.quantum < MICRO else "any.device"


def _metadata(name: str, given: _Slot) -> SlotMetadata:
    kind = kind_of(name)
    kinds = ("count", "bytes", "unique")
    if given.type is not None and given.type not in kinds:
        raise ValueError(f"slots.{name}.type is {given.type!r}: one of {', '.join(kinds)}")
    type_ = given.type or kind.type.value
    quantum = kind.quantum if type_ == kind.type else (1 if type_ == "bytes" else MICRO)
    if given.quantum is not None:
        quantum = parse_amount("mem" if type_ == "bytes" else "any.shares", given.quantum)
        if not quantum:
            raise ValueError(f"slots.{name}.quantum is {given.quantum!r}: give more than 0")
    return SlotMetadata(
        name=name,
        human_name=given.human_name or kind.human_name,
        description=given.description or given.human_name or kind.human_name,
        unit=given.unit or kind.unit,
        display_unit=given.display_unit or given.unit or kind.unit,
        icon=given.icon or name.partition(".")[0],
        type=type_,
        quantum=quantum,
        binary=type_ == "bytes",
        round_length=given.round_length,
    )
