"""Measures over time: current value, extremes, mean, change and rate, in the shape that Backend.AI's clients read.

Pure: values and times in, dictionaries out. ``Series.shown`` gives ``{"current", "capacity", "pct",
"unit_hint", "stats.min", "stats.max", "stats.avg", "stats.diff", "stats.rate", "version"}`` with those
``stats`` that the kind of the metric has; numbers are texts, as in Backend.AI.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

VERSION = 2


class Kind(enum.StrEnum):
    """How a value is to be read."""

    GAUGE = "gauge"
    """A number that goes up and down."""
    USAGE = "usage"
    """A part of a capacity."""
    RATE = "rate"
    """A total of which only the speed matters."""
    UTILIZATION = "utilization"
    """A total of busy time; shown is the part of the time that was available since the last look."""
    ACCUMULATION = "accumulation"
    """A total."""


STATS: Mapping[Kind, tuple[str, ...]] = {
    Kind.GAUGE: ("min", "max", "avg"),
    Kind.USAGE: ("min", "max", "avg"),
    Kind.RATE: ("max", "avg"),
    Kind.UTILIZATION: ("min", "max", "avg"),
    Kind.ACCUMULATION: ("diff", "rate"),
}
TOTALS = frozenset({Kind.RATE, Kind.UTILIZATION, Kind.ACCUMULATION})


@dataclass(frozen=True, slots=True)
class Metric:
    """One thing that is measured."""

    name: str
    kind: Kind
    unit: str
    help: str


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("cpu_used", Kind.ACCUMULATION, "msec", "CPU time used."),
        Metric("cpu_util", Kind.UTILIZATION, "percent", "Part of the CPU time that it may use."),
        Metric(
            "mem", Kind.USAGE, "bytes", "Memory in use, without cache that is given back at once."
        ),
        Metric("disk", Kind.USAGE, "bytes", "Space of the file system of the agent's folder."),
        Metric("io_read", Kind.ACCUMULATION, "bytes", "Read from disks."),
        Metric("io_write", Kind.ACCUMULATION, "bytes", "Written to disks."),
        Metric("net_rx", Kind.RATE, "bps", "Received, bytes in a second."),
        Metric("net_tx", Kind.RATE, "bps", "Sent, bytes in a second."),
        Metric("io_scratch_size", Kind.USAGE, "bytes", "What lies in the temporary folder."),
        Metric("processes", Kind.GAUGE, "count", "Processes and threads."),
        Metric("connections", Kind.GAUGE, "count", "TCP connections from outside the session."),
    )
}


@dataclass(slots=True)
class Series:
    """One metric of one thing, from its first value on."""

    metric: Metric
    _at: float | None = None
    _last: float = 0.0
    _current: float | None = None
    _capacity: float | None = None
    _diff: float = 0.0
    _seconds: float = 0.0
    _least: float = 0.0
    _most: float = 0.0
    _sum: float = 0.0
    _weight: float = 0.0

    def add(self, value: float, now: float, capacity: float | None = None) -> None:
        """Take a value; of totals the total so far. ``capacity`` of a utilization: units that can be busy.

        A total that fell began anew; a look that is not later than the last one is ignored, and what is no number.
        """
        if not math.isfinite(value + (capacity or 0.0)) or (
            self._at is not None and now <= self._at
        ):
            return
        seconds = 0.0 if self._at is None else now - self._at
        first = self._at is None
        diff = 0.0 if first else max(0.0, value - self._last)
        self._at, self._last, self._diff, self._seconds = now, value, diff, seconds
        kind = self.metric.kind
        if kind is Kind.ACCUMULATION:
            self._current, self._capacity = value, capacity
            return
        if kind in TOTALS and first:
            return
        if kind is Kind.UTILIZATION:
            self._capacity = seconds * 1000 * (capacity or 1.0)
            self._note(diff, diff / self._capacity * 100)
        elif kind is Kind.RATE:
            self._capacity = None
            self._note(diff / seconds, diff / seconds)
        else:
            self._capacity = capacity
            self._note(value, value)

    def _note(self, current: float, counted: float) -> None:
        """``counted`` is what extremes and mean are of: percents of a utilization, else the value."""
        weight = self._seconds or 1.0
        if self._current is None:
            self._least = self._most = counted
        self._current = current
        self._least, self._most = min(self._least, counted), max(self._most, counted)
        self._sum += counted * weight
        self._weight += weight

    def shown(self) -> dict[str, Any] | None:
        """As it is told; None while nothing is known."""
        if self._current is None:
            return None
        pct = self._current / self._capacity * 100 if self._capacity else 0.0
        answer: dict[str, Any] = {
            "current": number(self._current),
            "capacity": None if self._capacity is None else number(self._capacity),
            "pct": number(pct),
            "unit_hint": self.metric.unit,
            "version": VERSION,
        }
        facts = {
            "min": self._least,
            "max": self._most,
            "avg": self._sum / self._weight if self._weight else 0.0,
            "diff": self._diff,
            "rate": self._diff / self._seconds if self._seconds else 0.0,
        }
        return answer | {f"stats.{name}": number(facts[name]) for name in STATS[self.metric.kind]}


@dataclass(slots=True)
class Record:
    """All series of one thing."""

    _series: dict[str, Series] = field(default_factory=dict)

    def add(self, metric: Metric, value: float, now: float, capacity: float | None = None) -> None:
        """Take a value of a metric."""
        series = self._series.get(metric.name)
        if series is None:
            series = self._series[metric.name] = Series(metric)
        series.add(value, now, capacity)

    def shown(self) -> dict[str, dict[str, Any]]:
        """What is known, by metric."""
        told = {name: series.shown() for name, series in self._series.items()}
        return {name: shape for name, shape in told.items() if shape is not None}


def number(value: float) -> str:
    """A number as text: whole where it is, else with three digits behind the point."""
    return str(int(value)) if value == int(value) else f"{value:.3f}".rstrip("0").rstrip(".")
