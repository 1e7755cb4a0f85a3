"""The loop that measures a node: at an interval it reads counters and makes one ``Measures`` of them."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from spawner.accelerators.measures import Measure, MeasureKind, Told, of_kernel
from spawner.accelerators.registry import Accelerators
from spawner.agent import node
from spawner.agent.engines.base import Engine, EngineError, Identity, Measured
from spawner.agent.kernels import Kernels
from spawner.agent.measures import METRICS, Kind, Metric, Record, number
from spawner.agent.protocol import KernelReport, Measures

MOST_PROCESSES = 200
LOOK = 0.5
"""Seconds over which it is seen how busy processes are."""
UNITS = {"percent": "pct", "celsius": "Celsius"}
"""Units of plug-ins that Backend.AI's clients know by another name."""
KINDS = {
    MeasureKind.GAUGE: Kind.GAUGE,
    MeasureKind.USAGE: Kind.USAGE,
    MeasureKind.UTILIZATION: Kind.USAGE,  # plug-ins read percents, not busy time
    MeasureKind.ACCUMULATION: Kind.ACCUMULATION,
}
log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Kernel:
    """What was measured of one run."""

    since: float
    record: Record = field(default_factory=Record)
    shared: frozenset[str] = frozenset()
    """Metrics of devices of which others may have a part."""
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
        seen: Callable[[], Mapping[str, int]],
    ) -> None:
        """``seen`` tells of connections to apps by kernel, of which the engine knows only some."""
        self._engine, self._kernels, self._accelerators = engine, kernels, accelerators
        self._folder, self._interval, self._running = folder, interval, running
        self._seen = seen
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
            except (EngineError, OSError) as error:
                log.warning("the node cannot be measured: %s", error)
            except Exception as error:  # plug-ins may tell anything, which ends no session
                log.error("the node cannot be measured", exc_info=error)
            await asyncio.sleep(self._interval)

    async def look(self) -> Measures:
        """Measure once."""
        counted = await self._engine.measure()
        measured = await self._accelerators.measure()
        here = await asyncio.to_thread(node.read, self._folder)
        reports = {_identity(report): report for report in self._kernels.reports()}
        processes = await self._processes_on(measured)
        seen = self._seen()
        now = time.monotonic()
        self._runs = {each: run for each, run in self._runs.items() if each in reports}
        for identity, counters in counted.items():
            report = reports.get(identity)
            if report is not None:
                run = self._runs.setdefault(identity, _Kernel(now))
                if counters.connections is not None:
                    known = max(counters.connections, seen.get(identity.kernel_id, 0))
                    counters = replace(counters, connections=known)
                _add_kernel(run, counters, report, now)
                parts = self._accelerators.parts(report.shares)
                _add_held(run, of_kernel(measured, parts, processes.get(identity, ())), now)
        devices = self._add_node(here, measured, now)
        self.latest = Measures(
            at=time.time(),
            node=self._node.shown(),
            devices=devices,
            kernels={each.kernel_id: _shown(run, now) for each, run in self._runs.items()},
        )
        self._news.set()
        self._news = asyncio.Event()
        return self.latest

    async def _processes_on(self, measured: Iterable[Measure]) -> dict[Identity, list[int]]:
        """Processes that drivers tell of, by kernel."""
        users = [each for measure in measured for each in measure.processes.values()]
        pids = {pid for each in users for pid in each}
        found: dict[Identity, list[int]] = {}
        if pids:
            for pid, identity in (await self._engine.owners(pids)).items():
                found.setdefault(identity, []).append(pid)
        return found

    async def following(self) -> Measures:
        """The next measures."""
        while True:
            await self._news.wait()
            if self.latest is not None:
                return self.latest

    def last(self, identity: Identity) -> dict[str, Any]:
        """What was measured of a run last; empty when nothing was."""
        run = self._runs.get(identity)
        return {} if run is None else _shown(run, time.monotonic())

    async def processes(self, params: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Call ``processes``: ``{"kernel_id"}`` -> its processes, those that used most CPU time first.

        It looks twice, to tell what each does now: ``cpu_util`` is percent of one CPU.
        """
        identity = self._running(params)
        begin = time.monotonic()
        before = {each.pid: each.cpu_seconds for each in await self._engine.processes(identity)}
        await asyncio.sleep(LOOK)
        found = await self._engine.processes(identity)
        seconds = time.monotonic() - begin
        busiest = sorted(found, key=lambda each: (-each.cpu_seconds, each.pid))
        return [
            {
                "pid": each.pid,
                "name": each.name,
                "command": each.command,
                "cpu_used": number(each.cpu_seconds * 1000),
                "cpu_util": number(
                    max(0, each.cpu_seconds - before.get(each.pid, 0)) / seconds * 100
                ),
                "mem": str(each.memory_bytes),
            }
            for each in busiest[:MOST_PROCESSES]
        ]

    def _add_node(
        self,
        here: node.NodeUsage,
        measured: Sequence[Measure],
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
        for measure in measured:
            reading = measure.of_node()
            if measure.name not in METRICS and reading is not None:
                record.add(_metric(measure), reading.value, now, reading.capacity)
        shown = record.shown()
        told = {
            name: {name.split("_")[0]: {**shown[name], "unit_hint": unit}}
            for name, unit in (("cpu_util", "pct"), ("mem", "bytes"))
            if name in shown
        }
        present = {device for measure in measured for device in measure.devices}
        self._devices = {each: self._devices.get(each, Record()) for each in sorted(present)}
        for measure in measured:
            for device, reading in measure.devices.items():
                self._devices[device].add(_metric(measure), reading.value, now, reading.capacity)
        for device, of_device in self._devices.items():
            for name, shape in of_device.shown().items():
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


def _add_held(run: _Kernel, told: Sequence[Told], now: float) -> None:
    """What the accelerators that a kernel holds show."""
    for each in told:
        run.record.add(_metric(each.measure), each.reading.value, now, each.reading.capacity)
    run.shared = frozenset(each.measure.name for each in told if each.shared)


def _metric(measure: Measure) -> Metric:
    unit = UNITS.get(measure.unit, measure.unit)
    return Metric(measure.name, KINDS[measure.kind], unit, "")


def _shown(run: _Kernel, now: float) -> dict[str, Any]:
    """A run's record; ``connections`` says since when there was none, and how long that was watched."""
    shown = run.record.shown()
    for name in run.shared & shown.keys():
        shown[name]["shared"] = True
    if "connections" in shown:
        quiet = now - (run.since if run.connected_at is None else run.connected_at)
        shown["connections"] |= {"quiet": round(quiet, 3), "watched": round(now - run.since, 3)}
    return shown


def _identity(report: KernelReport) -> Identity:
    return Identity(report.kernel_id, report.session_id, report.epoch)
