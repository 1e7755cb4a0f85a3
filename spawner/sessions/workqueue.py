"""A queue of keys: each waits at most once, is worked on by one worker at a time, and backs off on failure."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class WorkQueue(Generic[K]):
    """Keys to work on. ``put`` of a key that waits does nothing; of one in work, works on it once more."""

    def __init__(self, base_delay: float = 0.05, max_delay: float = 60.0) -> None:
        self._base, self._max = base_delay, max_delay
        self._ready: deque[K] = deque()
        self._waiting: set[K] = set()
        self._working: set[K] = set()
        self._failures: dict[K, int] = {}
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._arrived = asyncio.Event()

    def put(self, key: K) -> None:
        """Work on ``key`` soon, also when it was backing off."""
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
        if key in self._waiting:
            return
        self._waiting.add(key)
        if key not in self._working:
            self._ready.append(key)
            self._arrived.set()

    async def get(self) -> K:
        """The next key; call ``done`` or ``failed`` with it."""
        while not self._ready:
            self._arrived.clear()
            await self._arrived.wait()
        key = self._ready.popleft()
        self._waiting.discard(key)
        self._working.add(key)
        return key

    def done(self, key: K) -> None:
        """The work on ``key`` succeeded."""
        self._failures.pop(key, None)
        self._leave(key)

    def failed(self, key: K) -> float:
        """The work on ``key`` failed: it comes back after a delay, which is returned."""
        count = self._failures.get(key, 0)
        self._failures[key] = count + 1
        delay: float = min(self._max, self._base * 2.0 ** min(count, 30))
        if key not in self._waiting:
            loop = asyncio.get_running_loop()
            self._timers[key] = loop.call_later(delay, self._due, key)
        self._leave(key)
        return delay

    def close(self) -> None:
        """Forget keys that back off."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _due(self, key: K) -> None:
        self._timers.pop(key, None)
        self.put(key)

    def _leave(self, key: K) -> None:
        self._working.discard(key)
        if key in self._waiting:
            self._ready.append(key)
            self._arrived.set()
