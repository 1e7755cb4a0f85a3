"""Loading accelerator plug-ins and turning a kernel's shares into limits.

A plug-in may be foreign code: what it raises while it lists or measures is logged once, and the other
plug-ins go on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from spawner.accelerators.base import AcceleratorPlugin
from spawner.accelerators.measures import Measure
from spawner.accelerators.specification import DeviceSpec
from spawner.agent.engines.base import Limits
from spawner.agent.protocol import DeviceReport, Share, SlotMetadata
from spawner.scheduler.slots import SlotType, kind_of

GROUP = "perijove.accelerators"
INTRINSIC = ("cpu", "mem")
"""Slots of the node itself."""
PATIENCE = 20.0
"""Seconds that a plug-in may take to list its devices or to measure."""
T = TypeVar("T")
log = logging.getLogger(__name__)


class PluginError(Exception):
    """A plug-in cannot be loaded or configured; the sentence names it."""


class Accelerators:
    """The plug-ins of this agent, by name."""

    def __init__(self, plugins: Sequence[AcceleratorPlugin]) -> None:
        self._plugins = tuple(plugins)
        self._listed: dict[str, tuple[DeviceReport, ...]] = {}
        self._owner_of_slot: dict[str, AcceleratorPlugin] = {}
        self._complaints: dict[tuple[str, str], str] = {}
        self._hanging: dict[str, asyncio.Future[Any]] = {}
        """Questions by plug-in that were not answered in time, and still may be."""

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

    @property
    def plugins(self) -> tuple[AcceleratorPlugin, ...]:
        """All of them, by name."""
        return self._plugins

    async def devices(self) -> tuple[DeviceReport, ...]:
        """Devices of all plug-ins. Raises ``PluginError`` when two offer the same slot.

        A plug-in that fails is believed to have what it last had.
        """
        for plugin in self._plugins:
            found = await self._try(plugin, "list its devices", plugin.devices)
            if found is not None:
                self._listed[plugin.name] = tuple(found)
        owners: dict[str, AcceleratorPlugin] = {}
        for plugin in self._plugins:
            for device in self._listed.get(plugin.name, ()):
                owner = owners.setdefault(device.slot, plugin)
                if owner is not plugin:
                    raise PluginError(
                        f"plug-ins {owner.name!r} and {plugin.name!r} both offer the slot {device.slot}"
                    )
        self._owner_of_slot = owners
        return tuple(d for p in self._plugins for d in self._listed.get(p.name, ()))

    def slots(self) -> tuple[SlotMetadata, ...]:
        """Metadata of all slots that the devices last listed offer."""
        described = {
            slot.name: slot
            for plugin in self._plugins
            if self._listed.get(plugin.name)
            for slot in plugin.slots()
            if self._owner_of_slot.get(slot.name) is plugin
        }
        return tuple(described.get(name) or _nameless(name) for name in sorted(self._owner_of_slot))

    async def measure(self) -> tuple[Measure, ...]:
        """Readings of all devices that are there; a plug-in that fails is left out."""
        present = [plugin for plugin in self._plugins if self._listed.get(plugin.name)]
        found = await asyncio.gather(
            *(self._try(plugin, "measure", plugin.measure) for plugin in present)
        )
        return tuple(measure for measures in found for measure in measures or ())

    def parts(self, shares: Iterable[Share]) -> dict[str, float]:
        """Which part of each accelerator ``shares`` are; what the node keeps for itself counts as a part."""
        whole = {
            (device.slot, device.device_id): device.capacity + device.reserved
            for devices in self._listed.values()
            for device in devices
        }
        found: dict[str, float] = {}
        for share in shares:
            amount = whole.get((share.slot, share.device_id), 0)
            if share.slot not in INTRINSIC and amount > 0:
                part = min(1.0, share.amount / amount)
                found[share.device_id] = max(found.get(share.device_id, 0.0), part)
        return found

    def limits(self, shares: Iterable[Share], shm_bytes: int, pids: int) -> Limits:
        """What a kernel with ``shares`` may use. Raises ``PluginError`` with a sentence."""
        by_plugin: dict[str, list[Share]] = {}
        for share in shares:
            owner = self._owner_of_slot.get(share.slot)
            if owner is None:
                raise PluginError(f"no plug-in of this agent offers the slot {share.slot}")
            by_plugin.setdefault(owner.name, []).append(share)
        specs = []
        for plugin in self._plugins:
            held = by_plugin.get(plugin.name)
            try:
                if held:
                    specs.append(plugin.device_spec(held))
                elif self._listed.get(plugin.name):
                    specs.append(plugin.hidden_spec())
            except ValueError as error:
                raise PluginError(f"accelerator plug-in {plugin.name!r}: {error}") from error
        return merged(specs, shm_bytes, pids)

    async def _try(
        self, plugin: AcceleratorPlugin, what: str, ask: Callable[[], Coroutine[Any, Any, T]]
    ) -> T | None:
        """What a plug-in answers, or None; a failure is told when it is a new one.

        A question that takes too long goes on, and the plug-in is asked nothing else meanwhile: a vendor's
        tool or driver that hangs costs one thread or process, however often its devices are listed.
        """
        key = (plugin.name, what)
        if plugin.name in self._hanging:
            return None
        asking = asyncio.ensure_future(ask())
        try:
            try:
                await asyncio.wait([asking], timeout=PATIENCE)
            finally:  # also when who asked is cancelled, as with each connection to the manager that ends
                if not asking.done():
                    self._hanging[plugin.name] = asking
                    asking.add_done_callback(lambda _: self._answered_late(plugin.name, asking))
            if not asking.done():
                raise TimeoutError(f"no answer within {PATIENCE:g} s")
            answer = asking.result()
        except Exception as error:
            complaint = f"{type(error).__name__}: {error}"
            if self._complaints.get(key) != complaint:
                self._complaints[key] = complaint
                log.warning("accelerator plug-in %r cannot %s", plugin.name, what, exc_info=error)
            return None
        self._complaints.pop(key, None)
        return answer

    def _answered_late(self, name: str, asking: asyncio.Future[Any]) -> None:
        """A question that took too long is over; what came of it is old by now."""
        self._hanging.pop(name, None)
        if not asking.cancelled() and asking.exception() is None:
            log.info("accelerator plug-in %r answers again", name)


def merged(specs: Sequence[DeviceSpec], shm_bytes: int, pids: int) -> Limits:
    """All that the plug-ins ask for, as one."""
    environ: dict[str, str] = {}
    host_environ: dict[str, str] = {}
    enforced: dict[str, str] = {}
    for spec in specs:
        environ.update(spec.environ)
        host_environ.update(spec.host_environ)
        enforced.update(spec.enforced)
    return Limits(
        cpu_quota=next((s.cpu_quota for s in specs if s.cpu_quota is not None), None),
        cpuset=next((s.cpuset for s in specs if s.cpuset is not None), None),
        memory_bytes=next((s.memory_bytes for s in specs if s.memory_bytes is not None), None),
        shm_bytes=shm_bytes,
        pids=pids,
        environ=environ,
        enforced=enforced,
        host_environ=host_environ,
        devices=tuple(dict.fromkeys(node for spec in specs for node in spec.devices)),
        requests=tuple(request for spec in specs for request in spec.requests),
        driver_mounts=tuple(dict.fromkeys(mount for spec in specs for mount in spec.mounts)),
        groups=tuple(sorted({group for spec in specs for group in spec.groups})),
        cgroup_rules=tuple(dict.fromkeys(rule for spec in specs for rule in spec.cgroup_rules)),
        locked_memory=any(spec.locked_memory for spec in specs),
    )


def _nameless(slot: str) -> SlotMetadata:
    """What the name of a slot says, for a plug-in that says nothing of it."""
    kind = kind_of(slot)
    return SlotMetadata(
        name=slot,
        human_name=kind.human_name,
        description=kind.human_name,
        unit=kind.unit,
        display_unit=kind.unit,
        icon=slot.partition(".")[0],
        type=kind.type.value,
        quantum=kind.quantum,
        binary=kind.type is SlotType.BYTES,
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
