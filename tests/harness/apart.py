"""Work that needs an event loop of its own, in tests whose thread has one already: a browser's."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def apart(work: Callable[[], T]) -> T:
    """What ``work`` returns or raises, from a thread in which no event loop runs."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()
