"""What plug-ins measure, in neutral form, and how it adds up for a node or a kernel."""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field


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
    processes: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    """By device id and process id on the node, where the driver tells whose use it is."""

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


@dataclass(frozen=True, slots=True)
class Told:
    """What a kernel is told of one quantity of its devices."""

    measure: Measure
    reading: Reading
    shared: bool
    """Others, who hold the rest of a device, may have a part in it."""


def of_kernel(
    measures: Iterable[Measure], parts: Mapping[str, float], processes: Collection[int]
) -> list[Told]:
    """What a kernel is told that holds ``parts`` of devices (1: the whole) and runs ``processes``.

    Of a part it is told its own use, against its part of the capacity, where the driver tells processes
    apart; else the use of the whole device, as ``shared``.
    """
    found = []
    for measure in measures:
        readings, shared = [], False
        for device, part in sorted(parts.items()):
            whole, users = measure.devices.get(device), measure.processes.get(device)
            if whole is None:
                continue
            if part < 1 and users is not None:
                limit = None if whole.capacity is None else whole.capacity * part
                whole = Reading(sum(users.get(pid, 0.0) for pid in processes), limit)
            else:
                shared = shared or part < 1
            readings.append(whole)
        reading = combine(measure.kind, readings)
        if reading is not None:
            found.append(Told(measure, reading, shared))
    return found
