"""A relay between two programs that a test can cut, and that breaks by itself after so many bytes."""

from __future__ import annotations

import asyncio
import contextlib


class Cable:
    """Carries connections to a port of this host. While it is cut, nobody gets through."""

    def __init__(self, to: int) -> None:
        self._to, self.port = to, 0
        self.carried, self.breaks_at = 0, 0
        """Bytes that came back, and how many may (0: all)."""
        self.broken = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._wires: set[asyncio.StreamWriter] = set()

    async def join(self) -> None:
        """Let everybody through, at the port that it had before."""
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """End all connections, and take no more."""
        if self._server is not None:
            self._server.close()
            for wire in list(self._wires):
                wire.transport.abort()
            await self._server.wait_closed()
            self._server = None

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._to)
        self._wires |= {writer, back}
        try:
            await asyncio.gather(self._carry(reader, back, False), self._carry(there, writer, True))
        finally:
            self._wires -= {writer, back}
            for wire in (writer, back):
                wire.close()

    async def _carry(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, counts: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while piece := await source.read(65536):
                if counts:
                    self.carried += len(piece)
                    if self.breaks_at and self.carried > self.breaks_at:
                        self.broken.set()
                        return
                sink.write(piece)
                await sink.drain()
        sink.close()
