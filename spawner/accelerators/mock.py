"""Devices described by a TOML file, for trying clusters without the hardware.

[[devices]]
slot = "cuda.device"
id = "GPU-0"
capacity = "1"
numa_node = 0
model = "Imaginary 9000"
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spawner.accelerators.base import AcceleratorPlugin, DeviceSpec, only_settings
from spawner.agent.protocol import DeviceReport, Share
from spawner.scheduler.slots import format_amount, parse_amount

_INTRINSIC = ("cpu", "mem")


class MockPlugin(AcceleratorPlugin):
    """Setting ``file``: the TOML file; without it the plug-in offers nothing."""

    name = "mock"

    def __init__(self) -> None:
        self._devices: tuple[DeviceReport, ...] = ()

    def configure(self, config: Mapping[str, Any]) -> None:
        """Read and check the file."""
        only_settings(config, "file")
        if not config:
            return
        path = Path(str(config["file"]))
        try:
            entries = tomllib.loads(path.read_text(encoding="utf-8")).get("devices", [])
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise ValueError(f"file {path}: {error}") from error
        self._devices = tuple(_device(path, index, entry) for index, entry in enumerate(entries))
        seen = [(device.slot, device.device_id) for device in self._devices]
        for pair in seen:
            if seen.count(pair) > 1:
                raise ValueError(f"file {path}: slot {pair[0]} has two devices {pair[1]!r}")

    async def devices(self) -> Sequence[DeviceReport]:
        """The devices of the file."""
        return self._devices

    def device_spec(self, shares: Sequence[Share]) -> DeviceSpec:
        """No real device, only the environment that says what the kernel holds."""
        held = ",".join(f"{s.slot}:{s.device_id}={format_amount(s.slot, s.amount)}" for s in shares)
        return DeviceSpec(environ={"PERIJOVE_MOCK_DEVICES": held})


def _device(path: Path, index: int, entry: Any) -> DeviceReport:
    where = f"file {path}, devices[{index}]"
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: give a table")
    unknown = set(entry) - {"slot", "id", "capacity", "numa_node", "model", "attributes"}
    missing = {"slot", "id", "capacity"} - set(entry)
    if unknown or missing:
        raise ValueError(f"{where}: unknown keys {sorted(unknown)}, missing keys {sorted(missing)}")
    slot = str(entry["slot"])
    if slot in _INTRINSIC:
        raise ValueError(f"{where}: slot {slot!r} is the node's own")
    return DeviceReport(
        slot,
        str(entry["id"]),
        parse_amount(slot, entry["capacity"]),
        numa_node=entry.get("numa_node"),
        model=str(entry.get("model", "")),
        attributes=dict(entry.get("attributes", {})),
    )
