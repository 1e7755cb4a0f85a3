"""Who watches a pass: told which phase begins, and nothing else. Clocks are the watcher's own affair."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

Phase = Literal["prepare", "order", "check", "place", "explain", "preempt", "reserve", "commit", ""]
"""What goes on in a pass for one resource group; ``""``: nothing that is told of.

``prepare`` learns what is there, ``order`` chooses the next session, ``check`` asks its limits and parents,
``place`` seeks and takes nodes and devices, ``explain`` finds out why there are none, ``preempt`` seeks
victims, ``reserve`` a place and a time. ``commit`` is for whoever carries the plan out.
"""

Observer = Callable[[str, Phase], None]
"""Called with a resource group and the phase that begins there and ends the one before."""


def unobserved(group: str, phase: Phase) -> None:
    """Nobody watches."""
