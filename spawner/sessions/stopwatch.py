"""How long each phase of a pass takes in each resource group; the clock that the scheduler lacks."""

from __future__ import annotations

import time
from collections.abc import Callable

from spawner.scheduler.observe import Phase


class Stopwatch:
    """An observer of a pass (``spawner.scheduler.observe``) that adds up seconds of wall time."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._at: tuple[str, Phase] = ("", "")
        self._since = clock()
        self.seconds: dict[tuple[str, Phase], float] = {}
        """By resource group and phase."""

    def __call__(self, group: str, phase: Phase) -> None:
        """From now on it is ``phase`` of ``group``, or nothing (``""``)."""
        now = self._clock()
        if self._at[1]:
            self.seconds[self._at] = self.seconds.get(self._at, 0.0) + now - self._since
        self._at, self._since = (group, phase), now
