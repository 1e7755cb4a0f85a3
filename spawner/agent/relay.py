"""A listener in front of one app: lets in who knows its token, then carries bytes until both sides are done."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable

from spawner.agent import preamble

CHUNK = 65536
MOST_STRANGERS = 256
"""Connections of a relay that have not said their token yet; further ones are closed at once."""
KEEP_ALIVE = 60
"""Seconds of silence after which a connection is tried; it counts as one for as long again."""
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
"""Serves a connection that was let in; says ``ok`` or a refusal first."""
log = logging.getLogger(__name__)


class Relay:
    """Listens on one port. Connections are counted, so that idle sessions can be told."""

    def __init__(self, token: str, serve: Serve) -> None:
        self.token = token
        self.connections = 0
        self._ended = 0
        self._serve = serve
        self._strangers = 0
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def open(self, host: str, port: int) -> None:
        """Listen. Raises ``OSError``."""
        self._server = await asyncio.start_server(self._accept, host, port, limit=CHUNK)

    async def close(self) -> None:
        """Stop listening and end all connections."""
        if self._server is not None:
            self._server.close()
        for task, writer in self._open.items():
            task.cancel()
            writer.transport.abort()  # what was not sent yet may never be read
        if self._open:
            await asyncio.wait(self._open)
        if self._server is not None:
            await self._server.wait_closed()

    def seen(self) -> int:
        """Connections that were open at some time since this was asked last."""
        ended, self._ended = self._ended, 0
        return self.connections + ended

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._strangers >= MOST_STRANGERS:
            writer.transport.abort()
            return
        self._strangers += 1
        _keep_alive(writer.get_extra_info("socket"))
        task = asyncio.create_task(self._handle(reader, writer))
        self._open[task] = writer
        task.add_done_callback(self._open.pop)

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            try:
                admitted = await self._admits(reader)
            finally:
                self._strangers -= 1
            if not admitted:
                who = writer.get_extra_info("peername")
                log.warning("somebody at %s without the token of an app was refused", who)
                writer.write(preamble.refusal("wrong token"))
                return
            self.connections += 1
            try:
                await self._serve(reader, writer)
            finally:
                self.connections -= 1
                self._ended += 1
        except OSError as error:
            log.debug("a connection to an app broke: %s", error)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _admits(self, reader: asyncio.StreamReader) -> bool:
        try:
            async with asyncio.timeout(preamble.PATIENCE):
                line = await reader.readline()
        except (TimeoutError, ValueError):  # silent, or no line within the limit
            return False
        return preamble.fits(line, self.token)


def _keep_alive(connection: socket.socket) -> None:
    """Let the system find out that the other side is gone, though it could not say so."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEP_ALIVE)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEP_ALIVE // 4)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)


async def pipe(
    one: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    other: tuple[asyncio.StreamReader, asyncio.StreamWriter],
) -> None:
    """Carry bytes both ways; the end of one direction is passed on, and both must end."""

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()

    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(carry(one[0], other[1]))
            tasks.create_task(carry(other[0], one[1]))
    except* OSError as gone:
        log.debug("one side is gone, so the other is done: %s", gone.exceptions[0])
