"""The two interfaces of monitors (entry points ``perijove.monitors.stats`` and ``perijove.monitors.errors``).

A monitor is a ``Configurable`` whose traits are its settings. All calls of one monitor come from one thread that does
nothing else: it may block, and what it raises is logged. ``spawner.monitors.conformance`` has the tests.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from traitlets.config import Configurable


class SampleKind(enum.StrEnum):
    """What a value means."""

    COUNTER = "counter"
    """By how much a total grew since the last report."""
    GAUGE = "gauge"
    """A value as it is now."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One finite number."""

    name: str
    kind: SampleKind
    value: float
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class LoggedError:
    """An error that the process logged."""

    message: str
    template: str
    """The message without what differs from one time to the next."""
    logger: str
    exception: BaseException | None


class Monitor(Configurable):
    """What both kinds have."""

    def open(self, process: str) -> None:
        """Prepare, for ``hub``, ``manager`` or ``agent``. Raises ``ValueError`` with a sentence; blocks briefly."""

    def close(self) -> None:
        """Hand on what is left, for a second or two at most."""


class Repeats(logging.Filter):
    """Of what a monitor's library logs again and again while its server is away, lets the first through."""

    _last: object = None

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether this is another message than the last one."""
        last, self._last = self._last, record.msg
        return bool(record.msg != last)


class StatsMonitor(Monitor):
    """Gets metrics at an interval."""

    def report(self, samples: Sequence[Sample]) -> None:
        """Hand on all metrics of the process."""
        raise NotImplementedError


class ErrorMonitor(Monitor):
    """Gets errors as they are logged."""

    def capture(self, error: LoggedError) -> None:
        """Hand on an error."""
        raise NotImplementedError
