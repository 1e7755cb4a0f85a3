"""Ports of this host for the relays of apps: the one that has been free longest is taken first."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable

_RANGE = re.compile(r"(\d{1,5})-(\d{1,5})")
COOL_DOWN = 60.0
"""Seconds that a port rests after its use, so that nobody who still means the old app meets a new one."""


def parse_range(text: str) -> range:
    """Ports of ``FIRST-LAST``. Raises ``ValueError``."""
    found = _RANGE.fullmatch(text.strip())
    first, last = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1024 <= first <= last <= 65535:
        raise ValueError(f"app_ports is {text!r}: give FIRST-LAST within 1024-65535")
    return range(first, last + 1)


class PoolExhausted(Exception):
    """No port is free now; the sentence says when one will be."""


class PortPool:
    """Hands out each port once, and again after it was given back and has cooled down."""

    def __init__(
        self,
        ports: range,
        cool_down: float = COOL_DOWN,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._free: deque[tuple[int, float]] = deque((port, float("-inf")) for port in ports)
        self._cool_down, self._now, self._size = cool_down, now, len(ports)

    def take(self) -> int:
        """The port that has been free longest. Raises ``PoolExhausted``."""
        if not self._free:
            raise PoolExhausted(f"all {self._size} ports for apps of this node are in use")
        port, since = self._free[0]
        left = self._cool_down - (self._now() - since)
        if left > 0:
            raise PoolExhausted(
                f"all {self._size} ports for apps of this node are in use or cooling down:"
                f" try again in {left:.0f} s"
            )
        self._free.popleft()
        return port

    def give_back(self, port: int) -> None:
        """The port is not used any more."""
        self._free.append((port, self._now()))
