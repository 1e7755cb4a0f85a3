"""Loading monitors and feeding them, each from a thread of its own: none can hold up or end the service."""

from __future__ import annotations

import asyncio
import logging
import queue
import re
import threading
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from traitlets import Float, List, TraitError, Unicode, validate
from traitlets.config import Configurable

from spawner.monitors.base import ErrorMonitor, LoggedError, Monitor, StatsMonitor
from spawner.monitors.samples import Sampler

STATS_GROUP = "perijove.monitors.stats"
ERRORS_GROUP = "perijove.monitors.errors"
MOST_WAITING = 1000
"""Errors that wait for a monitor; more are dropped."""
PATIENCE = 3.0
"""Seconds that a monitor has to end."""
TOLD = "_perijove_told"
"""Attribute of exceptions that monitors got."""
ACCESS = "log_request"
"""Name of the function that writes a line for each request, in JupyterHub and here."""
RENDER_WITHIN = 30.0
"""Seconds that reading all metrics of a process may take."""
T = TypeVar("T", bound=Monitor)
log = logging.getLogger(__name__)


class MonitorError(ValueError):
    """A monitor cannot be used; the sentence names it."""


class Monitors(Configurable):
    """Plug-ins that hub, manager and agents hand their metrics and errors to."""

    stats = List(
        Unicode(),
        help="""Monitors that get the metrics of every process, by their names among the entry points
        `perijove.monitors.stats`: `statsd`, `datadog`. Prometheus needs none: it reads `/metrics`.""",
    ).tag(config=True)
    errors = List(
        Unicode(),
        help="""Monitors that get every error that a process logs, by their names among the entry points
        `perijove.monitors.errors`: `sentry`.""",
    ).tag(config=True)
    interval = Float(10.0, min=0.1, help="Seconds between reports of metrics.").tag(config=True)
    metrics = Unicode(
        ".*",
        help="""Regular expression: metrics whose whole name matches are reported. Measures of sessions
        (`perijove_kernel_measure`) make many series.""",
    ).tag(config=True)

    @validate("metrics")
    def _valid_metrics(self, proposal: dict[str, Any]) -> str:
        try:
            Sampler(proposal["value"])
        except re.error as error:
            raise TraitError(f"metrics is {proposal['value']!r}: {error}") from error
        return str(proposal["value"])

    def start(self, process: str, source: Callable[[], bytes]) -> Running:
        """Open all monitors and feed them until ``Running.close``. Raises ``MonitorError``.

        ``source`` gives the process's metrics as Prometheus reads them; it is called from other threads.
        """
        opened: list[Monitor] = []
        try:
            stats = [self._open(STATS_GROUP, n, StatsMonitor, process, opened) for n in self.stats]
            errors = [
                self._open(ERRORS_GROUP, n, ErrorMonitor, process, opened) for n in self.errors
            ]
        except MonitorError:
            for each in opened:
                each.close()
            raise
        reporters = [_Reporter(each, source, self.interval, str(self.metrics)) for each in stats]
        return Running(reporters, [_Catcher(each) for each in errors])

    def _open(self, group: str, name: str, kind: type[T], process: str, opened: list[Monitor]) -> T:
        installed: dict[str, EntryPoint] = {p.name: p for p in entry_points(group=group)}
        if name not in installed:
            known = ", ".join(sorted(installed))
            raise MonitorError(f"{group.removeprefix('perijove.')} {name!r}: one of {known}")
        try:
            monitor = installed[name].load()(parent=self)
            if not isinstance(monitor, kind):
                raise MonitorError(f"monitor {name!r} is not a {kind.__name__}")
            monitor.open(process)
        except MonitorError:
            raise
        except (ImportError, AttributeError, TypeError, ValueError, TraitError) as error:
            raise MonitorError(f"monitor {name!r}: {error}") from error
        opened.append(monitor)
        return monitor


class Running:
    """Monitors at work."""

    def __init__(self, reporters: Sequence[_Reporter], catchers: Sequence[_Catcher]) -> None:
        self._threads = (*reporters, *catchers)
        self.handler: logging.Handler | None = _Handler(catchers) if catchers else None
        """Takes what is logged; None: nobody wants it. It serves the root logger until ``close``."""
        if self.handler is not None:
            logging.getLogger().addHandler(self.handler)
        for thread in self._threads:
            thread.start()

    async def __aenter__(self) -> Running:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        """Tell what ends the process, if it is an error, and close."""
        if self.handler is not None and isinstance(error, Exception):
            details = (type(error), error, error.__traceback__)
            self.handler.handle(
                log.makeRecord(log.name, logging.CRITICAL, __file__, 0, "%s", (error,), details)
            )
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Hand on what is left and end; blocks for some seconds at most."""
        if self.handler is not None:
            logging.getLogger().removeHandler(self.handler)
        for thread in self._threads:
            thread.stop()
        for thread in self._threads:
            thread.join(PATIENCE)


def of_loop(render: Callable[[], Coroutine[Any, Any, bytes]]) -> Callable[[], bytes]:
    """A source for other threads of what is rendered in the running event loop."""
    loop = asyncio.get_running_loop()

    def source() -> bytes:
        future = asyncio.run_coroutine_threadsafe(render(), loop)
        try:
            return future.result(RENDER_WITHIN)
        finally:
            future.cancel()  # nobody wants it any more: the next report asks anew

    return source


class _Feeder(threading.Thread):
    """The thread of one monitor."""

    def __init__(self, monitor: Monitor) -> None:
        super().__init__(name=f"monitor-{type(monitor).__name__}", daemon=True)
        self._monitor = monitor
        self._complaint = ""

    def attempt(self, work: Callable[[], object]) -> None:
        """Do it; a failure is told when it is a new one. Below ``ERROR``: monitors of errors get those."""
        try:
            work()
        except Exception as error:
            complaint = f"{type(error).__name__}: {error}"
            if complaint != self._complaint:
                self._complaint = complaint
                log.warning("%s failed", self.name, exc_info=error)
        else:
            self._complaint = ""

    def stop(self) -> None:
        """Ask it to end."""
        raise NotImplementedError


class _Reporter(_Feeder):
    """Feeds a monitor of metrics."""

    def __init__(
        self, monitor: StatsMonitor, source: Callable[[], bytes], interval: float, wanted: str
    ) -> None:
        super().__init__(monitor)
        self._to, self._source, self._interval = monitor, source, interval
        self._sampler, self._stopped = Sampler(wanted), threading.Event()

    def run(self) -> None:
        """Report at once, at the interval, and at the end what was reported last is handed on."""
        while True:
            self.attempt(self._report)
            if self._stopped.wait(self._interval):
                break
        self.attempt(self._to.close)

    def _report(self) -> None:
        self._to.report(self._sampler.read(self._source().decode()))

    def stop(self) -> None:
        """Ends after the report that it is at."""
        self._stopped.set()


class _Catcher(_Feeder):
    """Feeds a monitor of errors."""

    def __init__(self, monitor: ErrorMonitor) -> None:
        super().__init__(monitor)
        self._to = monitor
        self._waiting: queue.Queue[LoggedError | None] = queue.Queue(MOST_WAITING)

    def put(self, error: LoggedError) -> None:
        """Never blocks: of a flood the rest is lost."""
        try:
            self._waiting.put_nowait(error)
        except queue.Full:
            log.debug("an error is not told: too many wait for %s", self.name)

    def run(self) -> None:
        """One after the other."""
        while (error := self._waiting.get()) is not None:
            self.attempt(lambda error=error: self._to.capture(error))  # type: ignore[misc]  # bound now
        self.attempt(self._to.close)

    def stop(self) -> None:
        """Ends after what waits; where a flood waits, after what is at hand."""
        try:
            self._waiting.put_nowait(None)
        except queue.Full:
            with self._waiting.mutex:
                self._waiting.queue.clear()
                self._waiting.queue.append(None)


class _Handler(logging.Handler):
    """Hands on what is logged as an error."""

    def __init__(self, catchers: Sequence[_Catcher]) -> None:
        super().__init__(logging.ERROR)
        self._catchers = catchers

    def emit(self, record: logging.LogRecord) -> None:
        """Only queues. Whoever passes an exception on may log it too, and requests have a line besides."""
        exception = record.exc_info[1] if record.exc_info else None
        if getattr(exception, TOLD, False) or (exception is None and record.funcName == ACCESS):
            return
        if exception is not None:
            with suppress(AttributeError):  # of a class with slots
                setattr(exception, TOLD, True)
        try:
            message = record.getMessage()
        except Exception as wrong:  # noqa: BLE001 - whatever an argument does that is to be told
            message = f"{record.msg} ({type(wrong).__name__} in its arguments)"
        error = LoggedError(message, str(record.msg), record.name, exception)
        for catcher in self._catchers:
            catcher.put(error)

    def __deepcopy__(self, memo: object) -> _Handler:
        """There is one: JupyterHub gets it in its configuration, which is copied."""
        return self
