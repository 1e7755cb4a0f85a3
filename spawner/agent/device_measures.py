"""What accelerator plug-ins measure of their devices, checked: a plug-in that fails disturbs nothing."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from spawner.accelerators.registry import Accelerators

UNITS = {"percent": "pct", "celsius": "Celsius"}
"""Units of plug-ins that Backend.AI's clients know by another name."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DeviceValue:
    """One value of one device, in the units of Backend.AI's clients (bytes, Celsius, bps, pct)."""

    current: float
    capacity: float | None
    unit: str


async def read_devices(accelerators: Accelerators) -> Mapping[str, Mapping[str, DeviceValue]]:
    """Values by device id and metric (``cuda_util``, ``cuda_mem``, ...); what cannot be read is left out."""
    try:
        answer = await accelerators.measure()
    except (OSError, ValueError) as error:
        log.warning("the accelerators cannot be measured: %s", error)
        return {}
    found: dict[str, dict[str, DeviceValue]] = {}
    for measure in answer:
        unit = UNITS.get(str(measure.unit), str(measure.unit))
        for device, reading in measure.devices.items():
            value = DeviceValue(reading.value, reading.capacity, unit)
            found.setdefault(device, {})[measure.name] = value
    return found
