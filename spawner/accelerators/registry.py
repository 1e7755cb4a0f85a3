"""Loading accelerator plug-ins and turning a kernel's shares into limits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from spawner.accelerators.base import AcceleratorPlugin
from spawner.agent.engines.base import Limits
from spawner.agent.protocol import DeviceReport, Share

GROUP = "perijove.accelerators"


class PluginError(Exception):
    """A plug-in cannot be loaded or configured; the sentence names it."""


class Accelerators:
    """The plug-ins of this agent, by name."""

    def __init__(self, plugins: Sequence[AcceleratorPlugin]) -> None:
        self._plugins = tuple(plugins)
        self._owner_of_slot: dict[str, AcceleratorPlugin] = {}

    @classmethod
    def load(cls, settings: Mapping[str, Mapping[str, Any]]) -> Accelerators:
        """All installed plug-ins with their ``settings`` by name. Raises ``PluginError``."""
        installed = {point.name: point for point in entry_points(group=GROUP)}
        for name in settings:
            if name not in installed:
                known = ", ".join(sorted(installed))
                raise PluginError(
                    f"accelerator plug-in {name!r} is not installed; there are {known}"
                )
        return cls(
            [_load(point, settings.get(name, {})) for name, point in sorted(installed.items())]
        )

    async def devices(self) -> tuple[DeviceReport, ...]:
        """Devices of all plug-ins. Raises ``PluginError`` when two offer the same slot."""
        found: list[DeviceReport] = []
        owners: dict[str, AcceleratorPlugin] = {}
        for plugin in self._plugins:
            for device in await plugin.devices():
                owner = owners.setdefault(device.slot, plugin)
                if owner is not plugin:
                    raise PluginError(
                        f"plug-ins {owner.name!r} and {plugin.name!r} both offer the slot {device.slot}"
                    )
                found.append(device)
        self._owner_of_slot = owners
        return tuple(found)

    def limits(self, shares: Iterable[Share], shm_bytes: int, pids: int) -> Limits:
        """What a kernel with ``shares`` may use. Raises ``PluginError`` for a slot nobody offers."""
        by_plugin: dict[str, list[Share]] = {}
        for share in shares:
            owner = self._owner_of_slot.get(share.slot)
            if owner is None:
                raise PluginError(f"no plug-in of this agent offers the slot {share.slot}")
            by_plugin.setdefault(owner.name, []).append(share)
        specs = [p.device_spec(by_plugin[p.name]) for p in self._plugins if p.name in by_plugin]
        environ: dict[str, str] = {}
        for spec in specs:
            environ.update(spec.environ)
        return Limits(
            cpu_quota=next((s.cpu_quota for s in specs if s.cpu_quota is not None), None),
            cpuset=next((s.cpuset for s in specs if s.cpuset is not None), None),
            memory_bytes=next((s.memory_bytes for s in specs if s.memory_bytes is not None), None),
            shm_bytes=shm_bytes,
            pids=pids,
            environ=environ,
            devices=tuple(node for spec in specs for node in spec.devices),
        )


def _load(point: EntryPoint, settings: Mapping[str, Any]) -> AcceleratorPlugin:
    try:
        cls = point.load()
    except (ImportError, AttributeError) as error:
        raise PluginError(
            f"accelerator plug-in {point.name!r} cannot be loaded: {error}"
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, AcceleratorPlugin)):
        raise PluginError(f"accelerator plug-in {point.name!r} is not an AcceleratorPlugin")
    plugin = cls()
    try:
        plugin.configure(settings)
    except ValueError as error:
        raise PluginError(f"accelerator plug-in {point.name!r}: {error}") from error
    return plugin
