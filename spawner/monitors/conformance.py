"""Tests of a monitor: subclass, say how it is made, done.

    class TestMine(StatsConformance):
        def make(self) -> StatsMonitor:
            return MyMonitor(endpoint="127.0.0.1:9")

``make`` gives one whose server does not answer: that is what must do no harm.
"""

from __future__ import annotations

import abc
import time

from spawner.monitors.base import (
    ErrorMonitor,
    LoggedError,
    Monitor,
    Sample,
    SampleKind,
    StatsMonitor,
)

PATIENCE = 5.0


class _Conformance(abc.ABC):
    @abc.abstractmethod
    def make(self) -> Monitor:
        """A monitor whose server does not answer."""

    def test_it_can_be_closed_without_having_been_opened(self) -> None:
        self.make().close()

    def test_it_ends_soon_though_its_server_does_not_answer(self) -> None:
        monitor = self.make()
        begin = time.monotonic()
        monitor.open("manager")
        self.feed(monitor)
        monitor.close()
        if time.monotonic() - begin > PATIENCE:
            raise AssertionError(f"it took more than {PATIENCE:g} s")

    @abc.abstractmethod
    def feed(self, monitor: Monitor) -> None:
        """Hand it what is unusual."""


class StatsConformance(_Conformance):
    """Of monitors of metrics."""

    def feed(self, monitor: Monitor) -> None:
        """Odd labels, and as many samples as a large deployment has."""
        if not isinstance(monitor, StatsMonitor):
            raise AssertionError(f"{monitor} is not a StatsMonitor")
        odd = {"name": "a|b:c,d#e \n", "other": ""}
        monitor.report([])
        monitor.report(
            [Sample(f"metric_{n}", kind, n / 3, odd) for n in range(5000) for kind in SampleKind]
        )


class ErrorConformance(_Conformance):
    """Of monitors of errors."""

    def feed(self, monitor: Monitor) -> None:
        """With and without an exception."""
        if not isinstance(monitor, ErrorMonitor):
            raise AssertionError(f"{monitor} is not an ErrorMonitor")
        monitor.capture(LoggedError("it went wrong", "%s went wrong", "some.logger", None))
        try:
            raise ValueError("x" * 100_000)
        except ValueError as error:
            monitor.capture(LoggedError("it failed", "it failed", "some.logger", error))
