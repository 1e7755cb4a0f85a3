"""The interface of an accelerator plug-in (entry points ``perijove.accelerators``), runtime-neutral."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from spawner.agent.protocol import DeviceReport, Share


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """What a kernel that holds some shares gets: limits, device nodes and environment."""

    cpu_quota: float | None = None
    cpuset: str | None = None
    memory_bytes: int | None = None
    devices: tuple[str, ...] = ()
    environ: Mapping[str, str] = field(default_factory=dict)


class AcceleratorPlugin(abc.ABC):
    """One family of devices."""

    name: str

    @abc.abstractmethod
    def configure(self, config: Mapping[str, Any]) -> None:
        """Take settings (reserved amounts, device masks); raises ``ValueError`` with a sentence."""

    @abc.abstractmethod
    async def devices(self) -> Sequence[DeviceReport]:
        """Devices present now, with the slots they offer; empty when this host has none."""

    @abc.abstractmethod
    def device_spec(self, shares: Sequence[Share]) -> DeviceSpec:
        """What a kernel holding ``shares`` (of this plug-in's slots only) gets."""


def only_settings(config: Mapping[str, Any], *allowed: str) -> None:
    """Raise ``ValueError`` for a setting that is not in ``allowed``."""
    for key in config:
        if key not in allowed:
            raise ValueError(f"{key!r} is not a setting; there are {', '.join(allowed)}")
