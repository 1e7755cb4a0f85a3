"""Ending a benchmark early, and in order."""

from __future__ import annotations

import signal
from types import FrameType

from benchmarks.reporting import note


def end_on_signals() -> None:
    """SIGTERM ends the benchmark like Ctrl-C does: in order. A second signal does not hurry it."""

    def end(number: int, frame: FrameType | None) -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_IGN)
        note("ending what was started")
        raise KeyboardInterrupt

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, end)
