"""The loop that measures a node: at an interval it reads counters and makes one ``Measures`` of them."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from spawner.accelerators.registry import Accelerators
from spawner.agent import node
from spawner.agent.device_measures import DeviceValue, read_devices
from spawner.agent.engines.base import Engine, EngineError, Identity, Measured
from spawner.agent.kernels import Kernels
from spawner.agent.measures import METRICS, Kind, Metric, Record, number
from spawner.agent.protocol import KernelReport, Measures

MOST_PROCESSES = 200
log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Kernel:
    """What was measured of one run."""

    since: float
    record: Record = field(default_factory=Record)
    connected_at: float | None = None


class Measuring:
    """Measures everything on a node; ``latest`` is the newest outcome."""

    def __init__(
        self,
        engine: Engine,
        kernels: Kernels,
        accelerators: Accelerators,
        *,
        folder: str,
        interval: float,
        running: Callable[[Mapping[str, Any]], Identity],
    ) -> None:
        self._engine, self._kernels, self._accelerators = engine, kernels, accelerators
        self._folder, self._interval, self._running = folder, interval, running
        self._runs: dict[Identity, _Kernel] = {}
        self._node = Record()
        self._devices: dict[str, Record] = {}
        self._news = asyncio.Event()
        self.latest: Measures | None = None

    async def run(self) -> None:
        """Measure until cancelled; what cannot be read this time is left out."""
        while True:
            try:
                await self.look()
            except (EngineError, OSError, ValueError) as error:
                log.warning("the node cannot be measured: %s", error)
            await asyncio.sleep(self._interval)

    async def look(self) -> Measures:
        """Measure once."""
        counted = await self._engine.measure()
        devices = await read_devices(self._accelerators)
        here = await asyncio.to_thread(node.read, self._folder)
        now = time.monotonic()
        reports = {_identity(report): report for report in self._kernels.reports()}
        self._runs = {each: run for each, run in self._runs.items() if each in reports}
        for identity, measured in counted.items():
            report = reports.get(identity)
            if report is not None:
                run = self._runs.setdefault(identity, _Kernel(now))
                _add_kernel(run, measured, report, now)
                _add_held(run.record, devices, report, now)
        told = self._add_node(here, devices, now)
        self.latest = Measures(
            at=time.time(),
            node=self._node.shown(),
            devices=told,
            kernels={each.kernel_id: _shown(run, now) for each, run in self._runs.items()},
        )
        self._news.set()
        self._news = asyncio.Event()
        return self.latest

    async def following(self) -> Measures:
        """The next measures."""
        while True:
            await self._news.wait()
            if self.latest is not None:
                return self.latest

    def last(self, identity: Identity) -> dict[str, Any]:
        """What was measured of a run last; empty when nothing was."""
        run = self._runs.get(identity)
        return {} if run is None else run.record.shown()

    async def processes(self, params: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Call ``processes``: ``{"kernel_id"}`` -> its processes, those that used most CPU time first."""
        identity = self._running(params)
        found = await self._engine.processes(identity)
        busiest = sorted(found, key=lambda each: (-each.cpu_seconds, each.pid))
        return [
            {
                "pid": each.pid,
                "command": each.command,
                "cpu_used": number(each.cpu_seconds * 1000),
                "mem": str(each.memory_bytes),
            }
            for each in busiest[:MOST_PROCESSES]
        ]

    def _add_node(
        self,
        here: node.NodeUsage,
        devices: Mapping[str, Mapping[str, DeviceValue]],
        now: float,
    ) -> dict[str, dict[str, Any]]:
        """The node's own record, and by metric what each device shows."""
        record = self._node
        milliseconds = here.cpu_seconds * 1000
        record.add(METRICS["cpu_used"], milliseconds, now)
        record.add(METRICS["cpu_util"], milliseconds, now, here.cpus)
        record.add(METRICS["mem"], here.memory_bytes, now, here.memory_capacity)
        record.add(METRICS["disk"], here.disk_bytes, now, here.disk_capacity)
        record.add(METRICS["net_rx"], here.net_rx_bytes, now)
        record.add(METRICS["net_tx"], here.net_tx_bytes, now)
        shown = record.shown()
        told = {
            name: {name.split("_")[0]: {**shown[name], "unit_hint": unit}}
            for name, unit in (("cpu_util", "pct"), ("mem", "bytes"))
            if name in shown
        }
        self._devices = {each: self._devices.get(each, Record()) for each in devices}
        for device, values in devices.items():
            for name, value in values.items():
                self._devices[device].add(_metric(name, value), value.current, now, value.capacity)
            for name, shape in self._devices[device].shown().items():
                told.setdefault(name, {})[device] = shape
        return told


def _add_kernel(run: _Kernel, measured: Measured, report: KernelReport, now: float) -> None:
    held: dict[str, int] = {}
    for share in report.shares:
        held[share.slot] = held.get(share.slot, 0) + share.amount
    cpus = held["cpu"] / 1e6 if held.get("cpu") else float(os.cpu_count() or 1)
    values: dict[str, tuple[float | None, float | None]] = {
        "cpu_used": (measured.cpu_seconds * 1000, None),
        "cpu_util": (measured.cpu_seconds * 1000, cpus),
        "mem": (measured.memory_bytes, held.get("mem")),
        "io_read": (measured.io_read_bytes, None),
        "io_write": (measured.io_write_bytes, None),
        "net_rx": (measured.net_rx_bytes, None),
        "net_tx": (measured.net_tx_bytes, None),
        "io_scratch_size": (measured.scratch_bytes, None),
        "processes": (measured.processes, None),
        "connections": (measured.connections, None),
    }
    for name, (value, capacity) in values.items():
        if value is not None:
            run.record.add(METRICS[name], value, now, capacity)
    if measured.connections:
        run.connected_at = now


def _add_held(
    record: Record,
    devices: Mapping[str, Mapping[str, DeviceValue]],
    report: KernelReport,
    now: float,
) -> None:
    """What the accelerators that a kernel holds show, together: sums, and means of percents."""
    held = {share.device_id for share in report.shares if share.slot not in ("cpu", "mem")}
    values: dict[str, list[DeviceValue]] = {}
    for device in sorted(held):
        for name, value in devices.get(device, {}).items():
            values.setdefault(name, []).append(value)
    for name, several in values.items():
        total = sum(value.current for value in several)
        capacities = [value.capacity for value in several if value.capacity is not None]
        if several[0].unit in ("pct", "Celsius"):
            total /= len(several)
            capacities = capacities[:1]
        capacity = sum(capacities) if capacities else None
        record.add(_metric(name, several[0]), total, now, capacity)


def _metric(name: str, value: DeviceValue) -> Metric:
    kind = Kind.GAUGE if value.capacity is None else Kind.USAGE
    return Metric(name, kind, value.unit, "")


def _shown(run: _Kernel, now: float) -> dict[str, Any]:
    """A run's record; ``connections`` says since when there was none, and how long that was watched."""
    shown = run.record.shown()
    if "connections" in shown:
        quiet = now - (run.since if run.connected_at is None else run.connected_at)
        shown["connections"] |= {"quiet": round(quiet, 3), "watched": round(now - run.since, 3)}
    return shown


def _identity(report: KernelReport) -> Identity:
    return Identity(report.kernel_id, report.session_id, report.epoch)
