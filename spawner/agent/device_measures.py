"""What accelerator plug-ins measure of their devices, checked: a plug-in that fails disturbs nothing."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spawner.accelerators.registry import Accelerators

UNITS = frozenset({"bytes", "Celsius", "bps", "pct", "watts"})
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DeviceValue:
    """One value of one device; ``unit`` is one of ``UNITS``."""

    current: float
    capacity: float | None
    unit: str


async def read_devices(accelerators: Accelerators) -> Mapping[str, Mapping[str, DeviceValue]]:
    """Values by device id and metric (``cuda_util``, ``cuda_mem``, ...); what cannot be read is left out."""
    measure = getattr(accelerators, "measure", None)
    if measure is None:
        return {}
    try:
        answer = await measure()
    except Exception as error:
        log.warning("the accelerators cannot be measured: %s", error)
        return {}
    return {
        device: {name: _value(name, given) for name, given in values.items()}
        for device, values in answer.items()
    }


def _value(name: str, given: Any) -> DeviceValue:
    if isinstance(given, int | float):
        unit = {"util": "pct", "mem": "bytes", "power": "watts", "temperature": "Celsius"}
        suffix = name.rpartition("_")[2]
        return DeviceValue(float(given), 100.0 if suffix == "util" else None, unit.get(suffix, "pct"))
    capacity = getattr(given, "capacity", None)
    unit = str(getattr(given, "unit", None) or getattr(given, "unit_hint", "pct"))
    return DeviceValue(float(given.current), None if capacity is None else float(capacity), unit)
