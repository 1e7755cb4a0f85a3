"""What plug-ins measure, in neutral form, and how it adds up for a node or a kernel."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from spawner.agent.protocol import Share


class MeasureKind(enum.StrEnum):
    """How readings of several devices become one."""

    GAUGE = "gauge"
    """A state, such as a temperature: the highest counts."""
    USAGE = "usage"
    """An amount in use, such as bytes or watts: they add up."""
    UTILIZATION = "utilization"
    """Percent of what a device can do: their mean."""
    ACCUMULATION = "accumulation"
    """A counter since boot: they add up."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A value and, where there is a limit, the most it can be."""

    value: float
    capacity: float | None = None


@dataclass(frozen=True, slots=True)
class Measure:
    """One quantity of the devices of one plug-in; a device that cannot tell is left out."""

    name: str
    """``cuda_util``, ``cuda_mem``, ``rocm_power``."""
    kind: MeasureKind
    unit: str
    """``percent``, ``bytes``, ``watts``, ``celsius`` or ``seconds``."""
    devices: Mapping[str, Reading]
    """By device id."""

    def of(self, device_ids: Iterable[str]) -> Reading | None:
        """One reading for several devices; None when none of them told."""
        return combine(self.kind, [self.devices[d] for d in device_ids if d in self.devices])

    def of_node(self) -> Reading | None:
        """One reading for all devices."""
        return self.of(self.devices)


def combine(kind: MeasureKind, readings: list[Reading]) -> Reading | None:
    """Several readings of one kind as one; its capacity is known if all of theirs are."""
    if not readings:
        return None
    values = [reading.value for reading in readings]
    limits = [reading.capacity for reading in readings if reading.capacity is not None]
    complete = len(limits) == len(readings)
    if kind is MeasureKind.GAUGE:
        return Reading(max(values), max(limits) if complete else None)
    if kind is MeasureKind.UTILIZATION:
        mean = sum(values) / len(values)
        return Reading(mean, sum(limits) / len(limits) if complete else None)
    return Reading(sum(values), sum(limits) if complete else None)


def of_kernel(measures: Iterable[Measure], shares: Iterable[Share]) -> dict[str, Reading]:
    """What a kernel is told of the devices that it holds, by name of the measure.

    Devices are measured as a whole: holders of parts of one device are all told of the whole device.
    """
    held = sorted({share.device_id for share in shares})
    readings = {measure.name: measure.of(held) for measure in measures}
    return {name: reading for name, reading in readings.items() if reading is not None}
