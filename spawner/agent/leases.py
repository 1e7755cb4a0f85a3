"""Leases of runs that may go on elsewhere: a node that is cut off ends them before that happens.

The manager renews all leases with every ``Wanted``. The times are in a small file beside the agent's
state, so that an agent that restarts while it is cut off does not begin to count anew, and still knows
which runs it ended itself.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from spawner.agent.protocol import Wanted

LOOK_EVERY = 1.0
"""Seconds between looks at the leases."""
log = logging.getLogger(__name__)


def _since_boot() -> float:
    """Time that nobody sets, and that goes on while the agent is away and the host sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Leases:
    """Seconds of each kernel's lease, and when the manager was heard of last (seconds since the host's boot)."""

    def __init__(self, path: Path, clock: Callable[[], float] = _since_boot) -> None:
        self._path, self._clock = path, clock
        self._heard, self._leases = clock(), dict[str, float]()
        self._fenced: dict[str, int] = {}
        try:
            kept = json.loads(path.read_text("utf-8"))
            self._leases = {str(kernel): float(lease) for kernel, lease in kept["leases"].items()}
            ended = kept.get("fenced", {})
            self._fenced = {str(kernel): int(epoch) for kernel, epoch in ended.items()}
            self._heard = min(self._heard, float(kept["heard"]))
        except FileNotFoundError:
            log.debug("no run had a lease: there is no %s", path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("the leases in %s cannot be read: %s", path, error)

    def renew(self, wanted: Wanted) -> None:
        """The manager was heard of: the leases that it gives begin now."""
        self._heard = self._clock()
        before = self._leases, self._fenced
        self._leases = {spec.kernel_id: spec.lease for spec in wanted.kernels if spec.lease}
        # The manager has not recorded the end of a run that it still names.
        named = {(spec.kernel_id, spec.epoch) for spec in wanted.kernels} | {*wanted.drain}
        self._fenced = {run[0]: run[1] for run in self._fenced.items() if run in named}
        if self._leases or any(before):
            self._write()

    @property
    def fenced(self) -> Mapping[str, int]:
        """Runs (kernel id, epoch) that this node ended, as far as the manager has not recorded it."""
        return self._fenced

    def fence(self, kernel_id: str, epoch: int) -> None:
        """Note that a run is being ended because its lease is over."""
        if self._fenced.get(kernel_id) != epoch:
            log.warning("kernel %s: its lease is over, ending it", kernel_id)
            self._fenced[kernel_id] = epoch
            self._write()

    def over(self) -> list[str]:
        """Kernels whose lease is over."""
        silent = self._clock() - self._heard
        return [kernel for kernel, lease in self._leases.items() if silent >= lease]

    def _write(self) -> None:
        beside = self._path.with_suffix(".new")
        try:
            kept = {"heard": self._heard, "leases": self._leases, "fenced": self._fenced}
            beside.write_text(json.dumps(kept), "utf-8")
            os.replace(beside, self._path)
        except OSError as error:
            log.warning("the leases cannot be written to %s: %s", self._path, error)
