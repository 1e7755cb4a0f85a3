"""How long recoveries take: lines of ``artifacts/recovery.csv`` (what, seconds, load of the machine)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def note(what: str, seconds: float) -> None:
    """Write one down."""
    path = Path(__file__).parents[2] / "artifacts" / "recovery.csv"
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write(f"{what},{seconds:.2f},{os.getloadavg()[0]:.1f}\n")


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Note how long the block took."""
    begun = time.monotonic()
    yield
    note(what, time.monotonic() - begun)
