"""Apps of sessions: start, end, and tunnels over WebSockets as Backend.AI's clients open them."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
from dataclasses import dataclass
from urllib.parse import parse_qsl

import msgspec
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from authenticator.principals import Scope, Via
from authenticator.problems import BadRequest, InvalidParameters
from hub.api.endpoints import endpoint
from hub.api.handler import ApiHandler, Base
from hub.api.parameters import param
from spawner.agent import preamble
from spawner.sessions.apps import TERMINAL
from spawner.sessions.opening import Streams, Wish

CHUNK = 65536
MAX_WORDS = 64
NORMAL, AWAY = 1000, 1011


@dataclass(frozen=True, slots=True)
class Starting:
    """Parameters of ``POST /session/{session}/start-service``."""

    app: str = param("Name of the app.", names=("app", "service"), max_length=64)
    port: int | None = param("One of its ports.", default=None, minimum=1, maximum=65535)
    arguments: str | None = param("JSON object: option to value.", default=None)
    envs: str | None = param("JSON object: environment variable to value.", default=None)


@dataclass(frozen=True, slots=True)
class Ending:
    """Parameters of ``POST /session/{session}/shutdown-service``."""

    service_name: str = param("Name of the app.", max_length=64)


class StartService(ApiHandler):
    """Make an app run."""

    paths = ("/session/{session}/start-service",)

    @endpoint("Start an app of a session", scope=Scope.SESSIONS, parameters=Starting)
    async def post(self, session: str, given: Starting) -> None:
        """It is reached through ``tcpproxy``; there is no proxy of its own, and so no token for one."""
        apps = self.services.control.apps
        await apps.start(self.principal, session, _wish(given))
        self.answer({"token": "", "wsproxy_addr": ""})


class ShutdownService(ApiHandler):
    """End an app."""

    paths = ("/session/{session}/shutdown-service",)

    @endpoint("End an app of a session", scope=Scope.SESSIONS, parameters=Ending, status=204)
    async def post(self, session: str, given: Ending) -> None:
        """Harmless when it does not run."""
        if not given.service_name:
            raise InvalidParameters({"service_name": "'': give the name of an app"})
        await self.services.control.apps.stop(self.principal, session, given.service_name)
        self.answer_nothing()


class Socket(Base, WebSocketHandler):
    """A WebSocket whose other end is an app."""

    _streams: Streams | None = None
    _pumping: asyncio.Task[None] | None = None

    def fields(self) -> dict[str, str]:
        """The query."""
        try:
            return dict(parse_qsl(self.request.query, errors="strict", max_num_fields=20))
        except ValueError:
            raise InvalidParameters({"query": "it cannot be read"}, "Malformed query") from None

    def require_own_page(self) -> None:
        """Pages of other origins, and of apps, hold the cookie but not the token of our pages."""
        if self.principal.via is Via.HUB_COOKIE:
            given, ours = self.fields().get("_xsrf", ""), self.xsrf_token
            if not given or given.encode() != (ours if isinstance(ours, bytes) else ours.encode()):
                raise BadRequest("the parameter _xsrf is missing or wrong")

    async def enter(self, session: str, wish: Wish) -> None:
        """Connect to the app, then upgrade: an app that is not there is told before."""
        self.require_own_page()
        self.refuse_other_origins()
        self._streams = await self.services.control.apps.connect(self.principal, session, wish)
        try:
            await WebSocketHandler.get(self, session)
        finally:
            if self.ws_connection is None:  # refused: no WebSocket
                self._streams[1].close()

    def open(self, *args: str, **kwargs: str) -> None:
        """Begin to carry what the app says."""
        self._pumping = asyncio.create_task(self._pump())

    def on_close(self) -> None:
        """The client left, and so do we."""
        if self._pumping is not None:
            self._pumping.cancel()
        if self._streams is not None:
            self._streams[1].close()

    async def _pump(self) -> None:
        assert self._streams is not None  # noqa: S101 - entered before it was opened
        code = NORMAL
        try:
            await self.show(self._streams[0])
        except OSError:
            code = AWAY
        except WebSocketClosedError:
            return
        self.close(code)

    async def show(self, reader: asyncio.StreamReader) -> None:
        """Carry the app's bytes as they are."""
        while data := await reader.read(CHUNK):
            await self.write_message(data, binary=True)

    async def say(self, data: bytes) -> None:
        """Give the app bytes; waiting for it holds the client back."""
        if self._streams is not None:
            with contextlib.suppress(OSError):
                self._streams[1].write(data)
                await self._streams[1].drain()


class Tunnel(Socket):
    """Bytes to and from an app."""

    paths = ("/stream/session/{session}/tcpproxy", "/stream/session/{session}/httpproxy")

    @endpoint("Tunnel to an app over a WebSocket", scope=Scope.SESSIONS, produces="websocket")
    async def get(self, session: str) -> None:  # type: ignore[override]  # `endpoint` returns any awaitable
        """The query names the app, and a port, arguments and environment if need be."""
        given = self.fields()
        name = given.get("app") or given.get("service")
        port = given.get("port") or None
        if not name:
            raise InvalidParameters({"app": "is required"})
        if port is not None and not (port.isascii() and port.isdecimal() and len(port) < 6):
            raise InvalidParameters({"port": f"{port[:20]!r}: a port"})
        number = None if port is None else int(port)
        await self.enter(
            session, _wish(Starting(name, number, given.get("arguments"), given.get("envs")))
        )

    async def on_message(self, message: str | bytes) -> None:
        """Both kinds of frames are bytes of the app."""
        await self.say(message.encode() if isinstance(message, str) else message)


class Terminal(Socket):
    """A shell in the session."""

    paths = ("/stream/session/{session}/pty",)

    @endpoint("A terminal over a WebSocket", scope=Scope.SESSIONS, produces="websocket")
    async def get(self, session: str) -> None:  # type: ignore[override]  # `endpoint` returns any awaitable
        """Each connection has a shell of its own, which ends with it."""
        await self.enter(session, Wish(TERMINAL))

    async def on_message(self, message: str | bytes) -> None:
        """``stdin``, ``resize`` and ``ping``; what cannot be read is passed over."""
        try:
            told = msgspec.json.decode(message)
            kind = told["type"]
            if kind == "stdin":
                data = base64.b64decode(told["chars"], validate=True)
                await self.say(preamble.frame(preamble.DATA, data))
            elif kind == "resize":
                await self.say(preamble.size_frame(int(told["rows"]), int(told["cols"])))
        except (msgspec.DecodeError, KeyError, TypeError, ValueError, binascii.Error):
            return

    async def show(self, reader: asyncio.StreamReader) -> None:
        """``out`` with what the shell writes, and ``exit`` with its status at last."""
        while (found := await preamble.read_frame(reader)) is not None:
            kind, payload = found
            if kind == preamble.DATA:
                answer = {"type": "out", "data": base64.b64encode(payload).decode()}
            else:
                answer = {"type": "exit", "code": payload.decode()}
            await self.write_message(json.dumps(answer))


def _wish(given: Starting) -> Wish:
    """An app with its arguments. Raises ``InvalidParameters``."""
    arguments = [
        word
        for option, value in _words("arguments", given.arguments).items()
        for word in ((option, value) if value else (option,))
    ]
    return Wish(given.app, given.port, arguments, _words("envs", given.envs))


def _words(where: str, text: str | None) -> dict[str, str]:
    if not text:
        return {}
    try:
        value = msgspec.json.decode(text, type=dict[str, str | int | float | None])
    except (msgspec.DecodeError, ValueError) as error:
        raise InvalidParameters(
            {where: f"{text[:80]!r}: a JSON object of texts ({error})"}
        ) from None
    if len(value) > MAX_WORDS or any("\0" in f"{k}{v}" for k, v in value.items()):
        raise InvalidParameters({where: f"at most {MAX_WORDS} entries, without NUL"})
    return {key: "" if each is None else str(each) for key, each in value.items()}


HANDLERS = (StartService, ShutdownService, Tunnel, Terminal)
