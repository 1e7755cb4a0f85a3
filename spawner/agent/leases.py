"""Leases of runs that may go on elsewhere: a node that is cut off ends them before that happens.

The manager renews all leases with every ``Wanted``. The times are in a small file beside the agent's
state, so that an agent that restarts while it is cut off does not begin to count anew.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from spawner.agent.protocol import Wanted

LOOK_EVERY = 5.0
"""Seconds between looks at the leases."""
log = logging.getLogger(__name__)


class Leases:
    """Seconds of each kernel's lease, and when the manager was heard of last (seconds since the epoch)."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path, self._clock = path, clock
        self._heard, self._leases = clock(), dict[str, float]()
        try:
            kept = json.loads(path.read_text("utf-8"))
            self._leases = {str(kernel): float(lease) for kernel, lease in kept["leases"].items()}
            self._heard = min(self._heard, float(kept["heard"]))
        except FileNotFoundError:
            pass  # no run had a lease
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("the leases in %s cannot be read: %s", path, error)

    def renew(self, wanted: Wanted) -> None:
        """The manager was heard of: the leases that it gives begin now."""
        self._heard = self._clock()
        before = self._leases
        self._leases = {spec.kernel_id: spec.lease for spec in wanted.kernels if spec.lease}
        if self._leases or before:
            self._write()

    def over(self) -> list[str]:
        """Kernels whose lease is over."""
        silent = self._clock() - self._heard
        return [kernel for kernel, lease in self._leases.items() if silent >= lease]

    def _write(self) -> None:
        beside = self._path.with_suffix(".new")
        try:
            beside.write_text(json.dumps({"heard": self._heard, "leases": self._leases}), "utf-8")
            os.replace(beside, self._path)
        except OSError as error:
            log.warning("the leases cannot be written to %s: %s", self._path, error)
