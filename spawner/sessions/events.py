"""The in-process event bus: what happened to sessions and kernels, told after it was committed.

Events carry the names of Backend.AI's event stream (``session_enqueued``, ``kernel_started``, ...).
The bus is a hint, never the truth: whoever misses an event finds the same facts in rows.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from spawner.sessions.states import Status

QUEUE_SIZE = 1000
LAGGED = "server_lagged"
"""Last event of a subscriber that did not keep up; it has missed the ones after."""

SESSION_EVENTS: dict[Status, str] = {
    Status.PENDING: "session_enqueued",
    Status.SCHEDULED: "session_scheduled",
    Status.RUNNING: "session_started",
    Status.RUNNING_DEGRADED: "session_unhealthy",
    Status.RESTARTING: "session_restarting",
    Status.TERMINATING: "session_terminating",
    Status.TERMINATED: "session_terminated",
    Status.CANCELLED: "session_cancelled",
    Status.ERROR: "session_terminated",
}
KERNEL_EVENTS: dict[Status, str] = {
    Status.PREPARING: "kernel_preparing",
    Status.CREATING: "kernel_creating",
    Status.RUNNING: "kernel_started",
    Status.TERMINATING: "kernel_terminating",
    Status.TERMINATED: "kernel_terminated",
    Status.CANCELLED: "kernel_cancelled",
    Status.ERROR: "kernel_terminated",
}
CALLBACK_EVENTS = frozenset({
    "enqueued", "scheduled", "started", "cancelled", "terminating", "terminated", "success", "failure",
})  # fmt: skip
"""What callbacks tell, as Backend.AI does, without ``session_``."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a session or to one of its kernels."""

    name: str
    session_id: uuid.UUID
    session_name: str
    owner_id: uuid.UUID
    access_key: str
    domain: str
    reason: str = ""
    exit_code: int | None = None
    kernel_id: uuid.UUID | None = None
    cluster_role: str = "main"
    cluster_index: int = 1

    def data(self) -> dict[str, Any]:
        """The JSON object of the wire event."""
        answer: dict[str, Any] = {
            "reason": self.reason,
            "sessionName": self.session_name,
            "ownerAccessKey": self.access_key,
            "sessionId": str(self.session_id),
            "exitCode": self.exit_code,
        }
        if self.kernel_id is not None:
            answer["kernelId"] = str(self.kernel_id)
            answer["clusterRole"] = self.cluster_role
            answer["clusterIdx"] = self.cluster_index
        return answer


class Subscription:
    """A reader of the bus: ``async for event in subscription``; close it, or use it in ``with``."""

    def __init__(self, bus: EventBus, wanted: Callable[[Event], bool], size: int) -> None:
        self._bus = bus
        self.wanted = wanted
        self._queue: asyncio.Queue[Event | None] = asyncio.Queue()
        self._size = size
        self._closed = False

    def offer(self, event: Event) -> None:
        """Take an event, or end with ``LAGGED`` when the reader is too slow."""
        if self._closed:
            return
        if self._queue.qsize() >= self._size:
            self._queue.put_nowait(_lagged(event))
            self.close()
            return
        self._queue.put_nowait(event)

    def close(self) -> None:
        """No further events; readers end after what is queued."""
        if not self._closed:
            self._closed = True
            self._bus.forget(self)
            self._queue.put_nowait(None)

    async def get(self, timeout: float | None = None) -> Event | None:
        """The next event; None when the subscription ended. Raises ``TimeoutError``."""
        async with asyncio.timeout(timeout):
            return await self._queue.get()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    async def __aiter__(self) -> AsyncIterator[Event]:
        while (event := await self._queue.get()) is not None:
            yield event


class EventBus:
    """Hands each published event to every subscriber that wants it, never waiting for any."""

    def __init__(self) -> None:
        self._subscriptions: set[Subscription] = set()

    def subscribe(
        self, wanted: Callable[[Event], bool] = lambda event: True, size: int = QUEUE_SIZE
    ) -> Subscription:
        """A new subscriber of the events for which ``wanted`` is true."""
        subscription = Subscription(self, wanted, size)
        self._subscriptions.add(subscription)
        return subscription

    def forget(self, subscription: Subscription) -> None:
        """Drop a closed subscriber."""
        self._subscriptions.discard(subscription)

    def publish(self, event: Event) -> None:
        """Hand ``event`` out; returns at once."""
        for subscription in tuple(self._subscriptions):
            if subscription.wanted(event):
                subscription.offer(event)

    def close(self) -> None:
        """End all subscriptions."""
        for subscription in tuple(self._subscriptions):
            subscription.close()

    def __len__(self) -> int:
        return len(self._subscriptions)


def _lagged(event: Event) -> Event:
    return Event(
        LAGGED,
        event.session_id,
        event.session_name,
        event.owner_id,
        event.access_key,
        event.domain,
        "the reader did not keep up",
    )
