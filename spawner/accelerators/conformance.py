"""What every accelerator plug-in guarantees, one test a guarantee, for plug-ins of this package and others.

Subclass ``AcceleratorConformance`` in a test module and give it ``make``, which returns a plug-in with
at least one device that is not masked (of a stand-in, if need be) and ``absent``, which returns one
that looks where there is none. Both get an empty folder. Nothing but the standard library is needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

from spawner.accelerators.base import AcceleratorPlugin
from spawner.accelerators.measures import Measure
from spawner.accelerators.specification import DeviceSpec
from spawner.agent.protocol import DeviceReport, Hello, Share, SlotMetadata, decode, encode
from spawner.scheduler.slots import kind_of

MAX_ID = 64
"""Characters of a slot's name and of a device's id that the ledger keeps."""
UNITS = {"percent", "bytes", "watts", "celsius", "seconds"}


class AcceleratorConformance:
    """Subclass it; the names of the tests are the guarantees."""

    def make(self, folder: Path) -> AcceleratorPlugin:
        """A configured plug-in whose ``devices`` will list something."""
        raise NotImplementedError

    def absent(self, folder: Path) -> AcceleratorPlugin | None:
        """A configured plug-in on a node without its hardware; None for what every node has."""
        raise NotImplementedError

    def test_devices_are_told_apart_and_fit_the_ledger(self) -> None:
        """Ids are unique within a slot, short, and amounts are multiples of the quantum."""
        with self._present() as (plugin, devices):
            quanta = {slot.name: slot.quantum for slot in plugin.slots()}
            keys = [(device.slot, device.device_id) for device in devices]
            _check(len(keys) == len(set(keys)), f"devices are listed twice: {keys}")
            for device in devices:
                for text in (device.slot, device.device_id):
                    _check(0 < len(text) <= MAX_ID, f"{text!r} has not 1 to {MAX_ID} characters")
                _check(device.capacity >= 0, f"{device} offers less than nothing")
                rest = device.capacity % quanta[device.slot]
                _check(rest == 0, f"{device} is no multiple of its slot's quantum")
                _check(not device.masked or device.capacity == 0, f"{device} is masked and offered")
                _check(not device.fault or device.capacity == 0, f"{device} is broken and offered")
                _check(device.numa_node is None or device.numa_node >= 0, f"{device}: NUMA node")

    def test_listing_twice_gives_the_same(self) -> None:
        """Nothing moves while the hardware does not."""
        with self._present() as (plugin, devices):
            again = tuple(asyncio.run(_list(plugin)))
            _check(again == devices, f"{again} after {devices}")

    def test_links_lead_both_ways_to_devices_of_the_slot(self) -> None:
        """A link has two ends."""
        with self._present() as (_, devices):
            by_key = {(device.slot, device.device_id): device for device in devices}
            for device in devices:
                for peer in device.links:
                    other = by_key.get((device.slot, peer))
                    _check(other is not None, f"{device.device_id} is linked to unknown {peer}")
                    mutual = other is not None and device.device_id in other.links
                    _check(mutual and peer != device.device_id, f"{peer} does not link back")

    def test_every_slot_is_described(self) -> None:
        """User interfaces can show all that is offered."""
        with self._present() as (plugin, devices):
            described = {slot.name: slot for slot in plugin.slots()}
            for name in {device.slot for device in devices}:
                _check(name in described, f"{name} is offered and not described")
                _described(described[name])

    def test_devices_travel_to_the_manager(self) -> None:
        """Reports are plain data."""
        with self._present() as (plugin, devices):
            hello = Hello(
                1, "a", "g", "0", "x86_64", "e", "h", devices, (), slots=(*plugin.slots(),)
            )
            _check(decode(encode(hello)) == hello, "the manager reads something else than was sent")

    def test_each_device_can_be_held(self) -> None:
        """Every one alone, and all of a slot together."""
        with self._present() as (plugin, devices):
            offered = [device for device in devices if device.capacity]
            _check(bool(offered), "make() gave no device that can be held")
            for device in offered:
                _sound(plugin.device_spec([_share(device)]))
            for slot in {device.slot for device in offered}:
                spec = plugin.device_spec([_share(d) for d in offered if d.slot == slot])
                _sound(spec)

    def test_the_same_shares_mean_the_same(self) -> None:
        """A start that is repeated gets the same devices."""
        with self._present() as (plugin, devices):
            shares = [_share(device) for device in devices if device.capacity][:1]
            _check(plugin.device_spec(shares) == plugin.device_spec(shares), "the answer changed")

    def test_unheld_devices_are_no_error(self) -> None:
        """Kernels that hold nothing get a sound answer too."""
        with self._present() as (plugin, _):
            _sound(plugin.hidden_spec())

    def test_measures_are_of_known_devices(self) -> None:
        """In known units, and nothing beyond its limit."""
        with self._present() as (plugin, devices):
            known = {device.device_id for device in devices}
            for measure in asyncio.run(_measure(plugin)):
                _check(measure.unit in UNITS, f"{measure.name} is in {measure.unit!r}")
                _check(set(measure.devices) <= known, f"{measure.name} is of unknown devices")
                _check(measure.of_node() is not None, f"{measure.name} has no reading")
                for reading in measure.devices.values():
                    fits = reading.capacity is None or reading.value <= reading.capacity
                    bounded = measure.unit != "percent" or 0 <= reading.value <= 100
                    _check(fits and bounded, f"{measure.name} is {reading}")

    def test_absent_hardware_is_absent_without_a_word(self) -> None:
        """No device, no measure, nothing in the log."""
        with tempfile.TemporaryDirectory() as folder, _log() as lines:
            plugin = self.absent(Path(folder))
            if plugin is not None:
                _check(not asyncio.run(_list(plugin)), "devices are listed")
                _check(not asyncio.run(_measure(plugin)), "something is measured")
                _check(not plugin.slots() or bool(plugin.name), "the plug-in has no name")
        _check(not lines, f"the log has {lines}")

    def test_an_unknown_setting_is_refused(self) -> None:
        """By name."""
        with tempfile.TemporaryDirectory() as folder:
            plugin = self.make(Path(folder))
            try:
                plugin.configure({"no-such-setting": 1})
            except ValueError as error:
                _check("no-such-setting" in str(error), f"{error} does not name the setting")
            else:
                raise AssertionError("the setting was taken")

    @contextlib.contextmanager
    def _present(self) -> Iterator[tuple[AcceleratorPlugin, tuple[DeviceReport, ...]]]:
        with tempfile.TemporaryDirectory() as folder:
            plugin = self.make(Path(folder))
            devices = tuple(asyncio.run(_list(plugin)))
            _check(bool(devices), "make() gave a plug-in without devices")
            yield plugin, devices


async def _list(plugin: AcceleratorPlugin) -> tuple[DeviceReport, ...]:
    return tuple(await plugin.devices())


async def _measure(plugin: AcceleratorPlugin) -> tuple[Measure, ...]:
    return tuple(await plugin.measure())


def _share(device: DeviceReport) -> Share:
    return Share(device.slot, device.device_id, device.capacity)


def _described(slot: SlotMetadata) -> None:
    for field in ("human_name", "description", "unit", "display_unit", "icon"):
        _check(bool(getattr(slot, field)), f"{slot.name} has no {field}")
    _check(slot.type in ("count", "bytes", "unique"), f"{slot.name} is of type {slot.type!r}")
    _check(slot.quantum > 0, f"{slot.name} has a quantum of {slot.quantum}")
    _check(slot.binary == (slot.type == "bytes"), f"{slot.name}: bytes are shown in binary units")
    _check(kind_of(slot.name).name == slot.name, f"{slot.name} is not a name of a slot")


def _sound(spec: DeviceSpec) -> None:
    for node in spec.devices:
        _check(node.path.startswith("/dev/"), f"{node.path} is not a device node")
        _check(bool(node.permissions) and set(node.permissions) <= set("rwm"), f"{node}")
    for mount in spec.mounts:
        absolute = mount.source.startswith("/") and mount.target.startswith("/")
        _check(absolute, f"{mount} is not absolute")
    for request in spec.requests:
        _check(bool(request.driver and request.device_ids), f"{request} asks for nothing")
    for variables in (spec.environ, spec.enforced, spec.host_environ):
        for name, value in variables.items():
            texts = isinstance(name, str) and isinstance(value, str)
            _check(texts and "=" not in name and "\0" not in value, f"variable {name}={value!r}")
    _check(all(group > 0 for group in spec.groups), f"groups {spec.groups}")
    _check(dataclasses.replace(spec) == spec, "the specification cannot be compared")


@contextlib.contextmanager
def _log() -> Iterator[list[str]]:
    """Lines of level INFO and above that are logged meanwhile."""
    lines: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    collector = Collector(logging.INFO)
    root = logging.getLogger()
    root.addHandler(collector)
    try:
        yield lines
    finally:
        root.removeHandler(collector)


def _check(holds: bool, sentence: str) -> None:
    if not holds:
        raise AssertionError(sentence)
