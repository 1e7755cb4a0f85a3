"""The agents' end of the manager: a WebSocket handed to the registry."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address
from typing import Any

from tornado.iostream import SSLIOStream
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from authenticator.problems import Forbidden
from hub.api.endpoints import Access, endpoint
from hub.api.handler import Base

CLOSED_BY_POLICY = 1008
TRY_AGAIN = 1012
_QUEUE = 1000


class AgentConnect(Base, WebSocketHandler):
    """An agent dials in."""

    paths = ("/agents/connect",)

    def initialize(self) -> None:
        """It may leave before it is let in: that is told to the registry as well."""
        super().initialize()
        self._frames: asyncio.Queue[str | None] = asyncio.Queue(_QUEUE)

    @endpoint("The agents' WebSocket", access=Access.AGENT, produces="websocket")
    async def get(self, *path: str) -> None:  # type: ignore[override]  # `endpoint` returns any awaitable
        """Upgrade the connection."""
        self._names = self._certified()
        await WebSocketHandler.get(self, *path)

    def open(self, *args: str, **kwargs: str) -> None:
        """Let the registry talk to it."""
        registry = self.services.control.agents
        self._serving = asyncio.ensure_future(
            registry.serve(_Connection(self), self.caller.token, self._names)
        )
        self._serving.add_done_callback(self._served)

    def _certified(self) -> frozenset[str] | None:
        """Names in the agent's certificate; None where none is demanded. Raises ``Forbidden``."""
        if not self.services.agents_show_certificates:
            return None
        stream = self.request.connection.stream  # type: ignore[union-attr]  # not detached yet
        shown = self.request.get_ssl_certificate() if isinstance(stream, SSLIOStream) else None
        if isinstance(shown, dict) and shown:
            subject = [pair for part in shown.get("subject", ()) for pair in part]
            names = {value for key, value in subject if key == "commonName"}
            return frozenset(names | {value for _, value in shown.get("subjectAltName", ())})
        if self._from_this_host():
            return None
        raise Forbidden("an agent of another node must show a certificate here")

    def _from_this_host(self) -> bool:
        """Whether the socket's other end is here; headers of proxies do not count."""
        socket = self.request.connection.stream.socket  # type: ignore[union-attr]  # not detached yet
        there, here = socket.getpeername()[0], socket.getsockname()[0]
        return bool(there == here) or ip_address(there).is_loopback

    async def on_message(self, message: str | bytes) -> None:
        """Keep a frame; a full queue holds the agent back instead of losing anything."""
        await self._frames.put(
            message if isinstance(message, str) else message.decode("utf-8", "replace")
        )

    def on_close(self) -> None:
        """Tell the registry."""
        if self._frames.full():
            self._frames.get_nowait()
        self._frames.put_nowait(None)

    def _served(self, serving: asyncio.Future[Any]) -> None:
        """The registry let go of the connection, or failed."""
        if not serving.cancelled() and (error := serving.exception()) is not None:
            self.log_exception(type(error), error, error.__traceback__)
        self.close()


class _Connection:
    """The registry's view of the WebSocket."""

    def __init__(self, handler: AgentConnect) -> None:
        self._handler = handler

    async def send(self, frame: str) -> None:
        """Send one frame; raises ``ConnectionError`` when the agent is gone."""
        try:
            await self._handler.write_message(frame)
        except WebSocketClosedError as error:
            raise ConnectionError("the agent closed the connection") from error

    async def receive(self) -> str | None:
        """The next frame, or None when the connection is closed."""
        return await self._handler._frames.get()

    async def close(self, reason: str, *, refused: bool) -> None:
        """Close, telling why (123 bytes at most fit into the frame)."""
        code = CLOSED_BY_POLICY if refused else TRY_AGAIN
        self._handler.close(code, reason.encode()[:120].decode("utf-8", "ignore"))


HANDLERS = (AgentConnect,)
