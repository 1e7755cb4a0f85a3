"""Named points at which tests freeze the manager, to throw it away there and start another.

Disarmed (always, outside of tests) a point costs one look into an empty dictionary.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

NAMES = frozenset(
    {
        "create-committed",
        "schedule-planned",
        "schedule-applied",
        "push-recorded",
        "push-sent",
        "report-received",
        "report-recorded",
        "destroy-committed",
    }
)
_armed: dict[str, asyncio.Event] = {}


async def reach(name: str) -> None:
    """Go on, or stay here for ever when a test has armed ``name``."""
    reached = _armed.get(name)
    if reached is not None:
        reached.set()
        await asyncio.Event().wait()


@contextmanager
def armed(name: str) -> Iterator[asyncio.Event]:
    """Arm ``name``; the event is set when somebody stands there."""
    if name not in NAMES:
        raise ValueError(f"failpoint {name!r}: known are {', '.join(sorted(NAMES))}")
    _armed[name] = asyncio.Event()
    try:
        yield _armed[name]
    finally:
        del _armed[name]
