"""The interface of an accelerator plug-in (entry points ``perijove.accelerators``), runtime-neutral.

``spawner.accelerators.conformance`` has its tests; docs/accelerators.md shows how to write one.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import logging
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from spawner.accelerators.measures import Measure
from spawner.accelerators.specification import DeviceSpec
from spawner.accelerators.sysfs import ROOT, Sysfs, entries
from spawner.agent.protocol import DeviceReport, Share, SlotMetadata
from spawner.scheduler.slots import human_amount, parse_amount

T = TypeVar("T")
log = logging.getLogger(__name__)


async def aside(function: Callable[..., T], *arguments: Any) -> T:
    """What a blocking function answers, from a thread of its own: a driver may never return.

    Such a thread neither takes the place of another question nor keeps the agent from ending.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def tell(settle: Callable[[Any], None], outcome: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop may be closed by now
            loop.call_soon_threadsafe(lambda: None if future.done() else settle(outcome))

    def failed(_: object, error: BaseException | None, __: object) -> bool:
        tell(future.set_exception, error)
        return True

    def ask() -> None:
        with contextlib.ExitStack() as stack:
            stack.push(lambda *raised: raised[1] is not None and failed(*raised))
            tell(future.set_result, function(*arguments))

    threading.Thread(target=ask, name="accelerators", daemon=True).start()
    return await future


class AcceleratorPlugin(abc.ABC):
    """One family of devices. Hardware that is not there is no error and not worth a word."""

    name: str

    @abc.abstractmethod
    def configure(self, config: Mapping[str, Any]) -> None:
        """Take settings (reserved amounts, device masks); raises ``ValueError`` with a sentence."""

    @abc.abstractmethod
    def slots(self) -> Sequence[SlotMetadata]:
        """How people read the slots; at least of all slots that ``devices`` last offered."""

    @abc.abstractmethod
    async def devices(self) -> Sequence[DeviceReport]:
        """Devices present now, with the slots they offer; empty when this host has none.

        Ids stay the same across restarts of the agent and of the host. Masked devices are reported
        with a capacity of 0.
        """

    @abc.abstractmethod
    def device_spec(self, shares: Sequence[Share]) -> DeviceSpec:
        """What a kernel holding ``shares`` (of this plug-in's slots only) gets.

        Raises ``ValueError`` for a device that is not there or a combination that cannot work.
        """

    def hidden_spec(self) -> DeviceSpec:
        """What a kernel gets that holds nothing of this plug-in, on a node that has its devices."""
        return DeviceSpec()

    async def measure(self) -> Sequence[Measure]:
        """Readings of the devices now; quantities that cannot be read are left out."""
        return ()


class HostPlugin(AcceleratorPlugin):
    """What every node has: one device, whose slot has the name of the plug-in."""

    def __init__(self, *, total: int, reserved: int) -> None:
        self._total, self._reserved = total, reserved
        self._sysfs = Sysfs()

    def configure(self, config: Mapping[str, Any]) -> None:
        """``reserved``: kept for the node itself; ``total``: to count with (amounts); ``root`` of ``sys``."""
        only_settings(config, "reserved", "total", "root")
        self._sysfs = Sysfs(Path(str(config.get("root", ROOT))))
        if "total" in config:
            self._total = parse_amount(self.name, config["total"])
        if "reserved" in config:
            self._reserved = parse_amount(self.name, config["reserved"])
        if self._reserved >= self._total:
            kept = human_amount(self.name, self._reserved)
            raise ValueError(f"reserved is {kept}: nothing would be left")

    def _numa_nodes(self) -> list[tuple[re.Match[str], Path]]:
        return entries(self._sysfs.sys / "devices/system/node", r"node(\d+)")


@dataclass(slots=True)
class Mask:
    """Which devices an agent may give out, by id or any other name they go by."""

    include: frozenset[str] | None = None
    """None: all."""
    exclude: frozenset[str] = frozenset()
    _warned: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> Mask:
        """The settings ``include`` and ``exclude``. Raises ``ValueError``."""
        include = _names("include", config["include"]) if "include" in config else None
        exclude = _names("exclude", config.get("exclude", ()))
        both = exclude & (include or frozenset())
        if both:
            raise ValueError(f"include and exclude both name {', '.join(sorted(both))}")
        return cls(include, exclude)

    def hides(self, names: Iterable[str]) -> bool:
        """Whether the device that goes by ``names`` is not to be given out."""
        known = set(names)
        return bool(known & self.exclude) or (self.include is not None and not known & self.include)

    def check(self, plugin: str, names: Iterable[str]) -> None:
        """Say once of each entry that it names none of the devices, which go by ``names``."""
        for entry in sorted(((self.include or frozenset()) | self.exclude) - set(names)):
            if entry not in self._warned:
                self._warned.add(entry)
                log.warning("accelerator plug-in %s: no device is called %r", plugin, entry)


def _names(setting: str, value: Any) -> frozenset[str]:
    if not isinstance(value, list | tuple) or not all(isinstance(v, str | int) for v in value):
        raise ValueError(f"{setting} is {value!r}: give a list of device ids")
    return frozenset(str(entry) for entry in value)


def only_settings(config: Mapping[str, Any], *allowed: str) -> None:
    """Raise ``ValueError`` for a setting that is not in ``allowed``."""
    for key in config:
        if key not in allowed:
            raise ValueError(f"{key!r} is not a setting; there are {', '.join(allowed)}")


def whole_devices(slot: str, human_name: str, unit: str, icon: str) -> SlotMetadata:
    """Metadata of a slot that counts whole devices."""
    return SlotMetadata(
        name=slot,
        human_name=human_name,
        description=f"{human_name}, whole devices",
        unit=unit,
        display_unit=unit,
        icon=icon,
    )
