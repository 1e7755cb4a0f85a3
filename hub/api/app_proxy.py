"""Web apps of sessions in the browser, below ``/services/perijove-apps/SESSION/APP/``, for their owners.

A service of the hub of its own, so that its cookie goes nowhere else and that of the session API never comes
here. Requests of other sites' pages are refused, since an app's own pages know no token of ours.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any, cast

import aiohttp
from jupyterhub.services.auth import HubOAuth
from tornado.http1connection import HTTP1Connection
from tornado.httputil import HTTPHeaders, HTTPServerRequest
from tornado.iostream import StreamClosedError
from tornado.routing import PathMatches, Rule
from tornado.web import Finish, HTTPError, RequestHandler, stream_request_body
from tornado.websocket import WebSocketClosedError, WebSocketHandler
from yarl import URL

from authenticator.problems import AgentUnavailable, AuthFailed, Forbidden, NotFound, Unavailable
from hub.api.app_doors import AppDoors
from hub.api.app_headers import Headers, from_app, to_app
from hub.api.authentication import bearer
from hub.api.handler import Base, problem_of
from hub.api.pages import POLICY, OAuthCallback, render
from spawner.sessions.apps import WEB
from spawner.sessions.opening import Opened

CHUNK = 65536
MAX_MESSAGE = 32 * 1024 * 1024
"""Bytes of one message of a WebSocket; bodies of requests have no bound, they are never held."""
NO_BOUND = 1 << 62
PATIENCE = 1.0
"""Seconds after which who opens an app is shown that it starts."""
IN_FLIGHT = 4
"""Pieces of a body that are held while the app is slow."""
NOT_TWICE = ("POST", "PATCH")
"""Methods that may have had their effect although no answer came."""
SAME_SITE = ("same-origin", "none")
GONE = 1001


class _AppHandler(Base):
    """Knows the user, and which app is meant."""

    user: dict[str, Any]

    def initialize(self) -> None:
        """As the apps' OAuth client."""
        self.hub_auth: HubOAuth = self.settings["apps_login"]
        self.doors: AppDoors = self.settings["app_doors"]

    async def prepare(self) -> None:
        """Find out who comes; browsers are sent to log in.

        A browser has the cookie, and what an app's page says besides is meant for the app.
        """
        cookie = self.get_secure_cookie(self.hub_auth.cookie_name)
        token = bearer(self.request.headers.get("Authorization", ""))
        if cookie is not None or token is None:
            self._refuse_other_sites()
        model = None if cookie is None else await self._known(cookie.decode("ascii", "replace"))
        if model is None and token is not None:
            model = await self._known(token)
        if model is None:
            if not self.navigates:
                raise AuthFailed("Unauthorized access")
            self.redirect(str(self.get_login_url()))  # type: ignore[no-untyped-call]  # JupyterHub's
            return
        allowed = self.hub_auth.check_scopes(self.hub_auth.access_scopes, model)
        if model.get("kind") != "user" or not allowed:
            raise Forbidden(f"{model.get('name')} may not open apps")
        self.user = model

    async def _known(self, token: str) -> dict[str, Any] | None:
        session = self.hub_auth.get_session_id(self)
        try:
            found = await self.hub_auth.user_for_token(token, session_id=session, sync=False)
        except HTTPError as error:
            raise Unavailable("The hub does not answer now; try again.") from error
        return None if found is None else dict(found)

    def _refuse_other_sites(self) -> None:
        """Raise ``Forbidden`` for what a page of another site asks for, but for links to an app."""
        headers = self.request.headers
        if headers.get("Sec-Fetch-Site", "none") not in SAME_SITE and not self.navigates:
            raise Forbidden("pages of other sites may not ask this")
        self.refuse_other_origins()

    @property
    def navigates(self) -> bool:
        """Whether a person goes to a page."""
        headers = self.request.headers
        to_page = headers.get("Sec-Fetch-Mode", "navigate") == "navigate"
        return self.request.method == "GET" and to_page and "text/html" in headers.get("Accept", "")

    @property
    def named(self) -> tuple[str, str, int | None]:
        """Session, app and port that the path names. Raises ``NotFound``."""
        session, app = self.path_args[:2]
        name, _, port = app.partition(":")
        if not name or (port and not (port.isascii() and port.isdecimal() and len(port) < 6)):
            raise NotFound("app service", f"{app[:80]!r}: APP or APP:PORT")
        return session, name, int(port) if port else None

    @property
    def split(self) -> tuple[str, str]:
        """The path that the app is under, as it was asked for, and what follows it."""
        path = self.services.control.apps.path
        session, _, after = (self.request.uri or "").removeprefix(path).partition("/")
        app = re.split(r"[/?]", after, maxsplit=1)[0]
        return f"{path}{session}/{app}/", after[len(app) + 1 :]

    @property
    def origin(self) -> str:
        """Where browsers find us."""
        return f"{self.request.protocol}://{self.request.host}"

    def address(self, opened: Opened) -> URL:
        """What to ask the relay for."""
        base, rest = self.split
        scheme = "https" if opened.protocol == "https" else "http"
        host = f"[{opened.host}]" if ":" in opened.host else opened.host
        path = f"{base}{rest}" if opened.keeps_path else f"/{rest}"
        return URL(f"{scheme}://{host}:{opened.port}{path}", encoded=True)

    def asked(self, opened: Opened) -> Headers:
        """The request's headers for the app."""
        client = self.request.remote_ip or ""
        headers = to_app(self.request.headers.get_all(), self.split[0], self.origin, client)
        if opened.authorization is not None:
            headers.append(("Authorization", opened.authorization))
        return headers

    async def opened(self) -> Opened:
        """The app, which is started if need be. Raises ``Problem``."""
        opened = await asyncio.shield(self.doors.opening(self.user, *self.named))
        if opened.protocol not in WEB:
            raise NotFound("web app", f"browsers cannot open {self.named[1]}: {opened.protocol}")
        return opened

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """A page for people, a problem for programs."""
        error = kwargs.get("exc_info", (None, None))[1]
        if error is None or not self.navigates:
            super().write_error(status_code, **kwargs)
            return
        problem = problem_of(error, self.request.path)
        self.set_status(problem.status)
        self.show(problem.problem_title, problem.message or "", waits=False)

    def show(self, title: str, message: str, *, waits: bool) -> None:
        """Finish with a page of ours."""
        facts = {"title": title, "message": message, "waits": waits}
        places = {"prefix": self.services.prefix, "hub_prefix": self.services.hub_prefix}
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.set_header("Content-Security-Policy", POLICY)
        self.finish(render("app.html", **facts, **places))


@stream_request_body
class AppProxy(_AppHandler):
    """Requests; bodies are carried both ways as they come."""

    _carrying: asyncio.Task[None] | None = None
    _pieces: asyncio.Queue[bytes | None] | None = None
    _begun = False

    def initialize(self) -> None:
        """Nobody has taken anything yet."""
        super().initialize()
        self._taken = asyncio.Event()

    async def prepare(self) -> None:
        """Begin to ask the app, before the body comes."""
        await super().prepare()
        if self._finished:
            return
        connection = cast(HTTP1Connection, self.request.connection)
        connection.set_max_body_size(NO_BOUND)
        if len(self.path_args) < 3:
            base, _ = self.split
            query = f"?{self.request.query}" if self.request.query else ""
            self.redirect(base + query)  # type: ignore[no-untyped-call]  # JupyterHub's
            return
        starting = self.doors.opening(self.user, *self.named)
        if self.navigates and not starting.done():
            await asyncio.wait({starting}, timeout=PATIENCE)
            if not starting.done():
                self.show(f"{self.named[1]} is starting", "It opens by itself.", waits=True)
                return
        opened = await self.opened()
        headers = self.request.headers
        if headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in headers:
            self._pieces = asyncio.Queue(IN_FLIGHT)
        self._carrying = asyncio.create_task(self._carry(opened))
        self._carrying.add_done_callback(self._carried)

    async def data_received(self, chunk: bytes) -> None:
        """Hand a piece on; who sends it is held back while the app is slow."""
        await self._put(chunk)

    async def _put(self, piece: bytes | None) -> None:
        if self._pieces is None or self._taken.is_set():
            return
        put = asyncio.ensure_future(self._pieces.put(piece))
        enough = asyncio.ensure_future(self._taken.wait())
        await asyncio.wait({put, enough}, return_when=asyncio.FIRST_COMPLETED)
        put.cancel()
        enough.cancel()

    async def _body(self) -> AsyncIterator[bytes]:
        try:
            while self._pieces is not None and (piece := await self._pieces.get()) is not None:
                yield piece
        finally:
            self._taken.set()

    async def _answer(self, *_: str) -> None:
        """The body is complete."""
        await self._put(None)
        if self._carrying is not None:
            await self._carrying

    get = head = post = put = patch = delete = options = _answer

    async def _carry(self, opened: Opened) -> None:
        """Ask the app, and pass its answer on. Raises ``AgentUnavailable`` where there is none."""
        try:
            await self._ask(opened)
        except aiohttp.ClientError as error:
            if self._begun:
                cast(HTTP1Connection, self.request.connection).close()  # it is not whole
                raise Finish from error
            self.doors.forget(self.user, *self.named)
            if self._pieces is not None or self.request.method in NOT_TWICE:
                raise _unreachable(error) from error
            try:  # with a new relay: the agent was started again, or the app was
                await self._ask(await self.opened())
            except aiohttp.ClientError as again:
                raise _unreachable(again) from again
        except StreamClosedError as error:
            raise Finish from error

    def _carried(self, carrying: asyncio.Task[None]) -> None:
        """Nobody takes what is left of the body."""
        self._taken.set()
        if not carrying.cancelled():
            carrying.exception()  # told by `_answer`, unless the client left

    async def _ask(self, opened: Opened) -> None:
        body = None if self._pieces is None else self._body()
        asking = self.doors.client.request(
            self.request.method or "GET",
            self.address(opened),
            headers=self.asked(opened),
            data=body,
            allow_redirects=False,
        )
        async with asking as answer:
            given = [(k.decode("latin1"), v.decode("latin1")) for k, v in answer.raw_headers]
            self._head(answer.status, answer.reason, self._for_browser(given, opened))
            await self.flush()
            async for piece in answer.content.iter_chunked(CHUNK):
                self.write(piece)
                await self.flush()
        await self.finish()

    def _for_browser(self, given: Headers, opened: Opened) -> Headers:
        return from_app(given, self.split[0], self.origin, stripped=not opened.keeps_path)

    def _head(self, status: int, reason: str | None, headers: Headers) -> None:
        """Status and headers as the app says, none of ours."""
        self.set_status(status, reason or "Unknown")
        self._headers = HTTPHeaders()
        for name, value in headers:
            self.add_header(name, value)
        self._begun = True

    def on_connection_close(self) -> None:
        """Nobody waits any more."""
        super().on_connection_close()
        if self._carrying is not None:
            self._carrying.cancel()

    def on_finish(self) -> None:
        """An answer that came before the whole body ends the request."""
        self._taken.set()


class AppSocket(_AppHandler, WebSocketHandler):
    """WebSockets, message by message."""

    _theirs: aiohttp.ClientWebSocketResponse | None = None
    _pumping: asyncio.Task[None] | None = None
    _closing: asyncio.Task[bool] | None = None

    @property
    def max_message_size(self) -> int:
        """More than what agents may send."""
        return MAX_MESSAGE

    async def get(self, *path: str) -> None:
        """Connect to the app, then upgrade."""
        opened = await self.opened()
        offered = self.request.headers.get("Sec-WebSocket-Protocol", "")
        protocols = [each.strip() for each in offered.split(",") if each.strip()]
        try:
            self._theirs = await self.doors.client.ws_connect(
                self.address(opened),
                headers=self.asked(opened),
                protocols=protocols,
                max_msg_size=MAX_MESSAGE,
            )
        except aiohttp.WSServerHandshakeError as error:
            raise HTTPError(error.status if 400 <= error.status < 500 else 502) from error
        except aiohttp.ClientError as error:
            self.doors.forget(self.user, *self.named)
            raise _unreachable(error) from error
        try:
            await WebSocketHandler.get(self, *path)
        finally:
            if self._closing is None:  # it was no WebSocket, or the browser had left before
                self.on_close()

    def check_origin(self, origin: str) -> bool:
        """It was checked before."""
        return True

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        """What the app chose."""
        return None if self._theirs is None else self._theirs.protocol

    def open(self, *args: str, **kwargs: str) -> None:
        """Begin to carry what the app says."""
        self._pumping = asyncio.create_task(self._pump())

    async def _pump(self) -> None:
        assert self._theirs is not None  # noqa: S101 - connected before it was opened
        try:
            async for message in self._theirs:
                if message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
                    binary = message.type is aiohttp.WSMsgType.BINARY
                    await self.write_message(message.data, binary=binary)
        except WebSocketClosedError:
            return
        code = self._theirs.close_code
        self.close(code if code is not None and _sendable(code) else GONE)

    async def on_message(self, message: str | bytes) -> None:
        """Waiting for the app holds the browser back."""
        if self._theirs is None:
            return
        try:
            if isinstance(message, str):
                await self._theirs.send_str(message)
            else:
                await self._theirs.send_bytes(message)
        except (aiohttp.ClientError, ConnectionError):
            self.close(GONE)

    def on_close(self) -> None:
        """The browser left, and so do we."""
        if self._pumping is not None:
            self._pumping.cancel()
        if self._theirs is not None:
            code = self.close_code
            self._closing = asyncio.create_task(
                self._theirs.close(code=code if code is not None and _sendable(code) else GONE)
            )


def _sendable(code: int) -> bool:
    """Whether a close frame may carry the code; others are made up where a connection just broke."""
    return code >= 3000 or (1000 <= code <= 1011 and code not in (1004, 1005, 1006))


def _unreachable(error: Exception) -> AgentUnavailable:
    return AgentUnavailable(f"The app does not answer: {error}")


class AppsCallback(OAuthCallback):
    """Where the hub sends browsers back to after log-in."""

    def initialize(self) -> None:
        """As the apps' OAuth client."""
        self.hub_auth = self.settings["apps_login"]


class ToSessions(RequestHandler):
    """The place of all apps has no page of its own."""

    def get(self) -> None:
        """The page of sessions lists apps."""
        self.redirect(self.settings["services"].prefix)


class _Upgrades(PathMatches):
    """Requests that want to become WebSockets."""

    def match(self, request: HTTPServerRequest) -> dict[str, Any] | None:
        """The path's parts, if it is one."""
        upgrade = request.headers.get("Upgrade", "").lower() == "websocket"
        return super().match(request) if upgrade else None


def app_routes(path: str) -> list[Rule]:
    """Tornado's routes for the apps below ``path`` (with slashes around)."""
    return [
        Rule(PathMatches(f"{path}?"), ToSessions),
        Rule(PathMatches(f"{path}oauth_callback"), AppsCallback),
        Rule(_Upgrades(f"{path}([^/]+)/([^/]+)(/.*)"), AppSocket),
        Rule(PathMatches(f"{path}([^/]+)/([^/]+)(/.*)"), AppProxy),
        Rule(PathMatches(f"{path}([^/]+)/([^/]+)"), AppProxy),
    ]
