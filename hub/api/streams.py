"""Server-sent events: frames, comments that keep the connection alive, and an end when the client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec
from tornado.iostream import StreamClosedError

from hub.api.endpoints import EVENTS
from hub.api.handler import ApiHandler

ALIVE = b": alive\n\n"


@dataclass(frozen=True, slots=True)
class Frame:
    """One event. ``id`` lets a client that connects again go on after it."""

    name: str
    data: Any
    id: int | None = None

    def encode(self) -> bytes:
        """The lines of the event stream (WHATWG HTML, section 9.2)."""
        head = (
            f"event: {self.name}\n" if self.id is None else f"event: {self.name}\nid: {self.id}\n"
        )
        return head.encode() + b"data: " + msgspec.json.encode(self.data) + b"\n\n"


async def send_events(handler: ApiHandler, frames: AsyncIterator[Frame]) -> None:
    """Write ``frames`` until they end or the client leaves. The iterator is closed in either case."""
    handler.set_header("Content-Type", EVENTS)
    handler.set_header("X-Accel-Buffering", "no")
    gone = asyncio.ensure_future(handler.gone.wait())
    following: asyncio.Task[Frame | None] | None = None
    try:
        await _write(handler, ALIVE)
        while not gone.done():
            following = following or asyncio.create_task(_next(frames))
            ends: set[asyncio.Future[Any]] = {following, gone}
            await asyncio.wait(
                ends,
                timeout=handler.services.keepalive,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if following.done():
                frame, following = following.result(), None
                if frame is None:
                    break
                await _write(handler, frame.encode())
            elif not gone.done():
                await _write(handler, ALIVE)
    except StreamClosedError:
        return
    finally:
        gone.cancel()
        if following is not None:
            following.cancel()
            with suppress(asyncio.CancelledError):
                await following
        close = getattr(frames, "aclose", None)
        if close is not None:
            await close()
    if not handler.gone.is_set():
        await handler.finish()


async def _next(frames: AsyncIterator[Frame]) -> Frame | None:
    return await anext(frames, None)


async def _write(handler: ApiHandler, chunk: bytes) -> None:
    handler.write(chunk)
    await handler.flush()


def last_event_id(handler: ApiHandler) -> int:
    """The id after which a client that connects again wants to go on; 0 without one."""
    text = handler.request.headers.get("Last-Event-ID", "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else 0
