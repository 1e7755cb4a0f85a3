"""The manager's API as hub-side code uses it: one HTTP client, typed answers, and a shared cache of servers.

Nothing here decides anything. A refusal of the manager is a ``Refusal`` with its status and sentence; a
manager that cannot be reached (restarting, upgrading) is ``Unreachable``, which callers take as "ask again",
never as bad news about a session.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec

FINAL = frozenset({"TERMINATED", "CANCELLED", "ERROR"})
RUNNING = frozenset({"RUNNING", "RUNNING_DEGRADED"})
MAX_LINE = 256 * 1024
HEADER_SAFE = "!#$&'()*+,/:;=?@[]|~^`{}<>"
"""User names travel percent-encoded, so that every name, and only that name, survives a header."""

T = TypeVar("T")


class Refusal(Exception):
    """The manager understood and refused: HTTP status, slug, sentence, and data (field errors)."""

    def __init__(self, status: int, slug: str, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.status = status
        self.slug = slug
        self.message = message
        self.data = data

    @property
    def fields(self) -> dict[str, str]:
        """Field errors, if the refusal names fields."""
        if not isinstance(self.data, dict):
            return {}
        return {str(name): str(reason) for name, reason in self.data.items()}


class Unreachable(Exception):
    """No usable answer: the manager is away, or answers with an error of its own. Ask again later."""


class Server(msgspec.Struct, frozen=True):
    """A session as one of a hub's servers. ``url`` is where the proxy reaches it."""

    id: str
    name: str
    status: str
    target: str
    message: str = ""
    progress: int = 0
    url: str | None = None
    exit_code: int | None = None
    server: str = ""
    user: str = ""

    @property
    def ended(self) -> bool:
        """Whether nothing of it runs, nor ever will again."""
        return self.status in FINAL

    @property
    def running(self) -> bool:
        """Whether it can be reached at ``url``."""
        return self.status in RUNNING and self.url is not None

    @property
    def ending(self) -> bool:
        """Whether it has been told to end, and has not yet."""
        return not self.ended and self.target == "TERMINATED"


class Step(msgspec.Struct, frozen=True):
    """One event of a session's progress; ``id`` grows within a session."""

    id: int
    at: str | float | None = None
    status: str = ""
    message: str = ""
    progress: int | None = None


class End(msgspec.Struct, frozen=True):
    """The last word of a session's progress: it runs (``url``), or it ended (``exit_code``)."""

    status: str
    message: str = ""
    url: str | None = None
    exit_code: int | None = None


class Verdict(msgspec.Struct, frozen=True):
    """Whether a request would start now, have to wait, or never fit, and a sentence about it."""

    verdict: str
    message: str = ""
    errors: dict[str, str] = {}


class _Servers(msgspec.Struct, frozen=True):
    servers: list[Server]


class _Created(msgspec.Struct, frozen=True, rename="camel"):
    session_id: str
    created: bool


class ManagerClient:
    """Calls the manager at ``url`` with the hub's secret, for one user at a time.

    Every method raises ``Refusal`` for a 4xx answer and ``Unreachable`` for anything that may pass.
    """

    def __init__(self, url: str, secret: str, timeout: float = 30.0) -> None:
        self.url = url.rstrip("/")
        self._secret = secret
        self._timeout = timeout
        self._http: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close connections; the client opens new ones when it is used again."""
        if self._http is not None:
            await self._http.close()
            self._http = None

    async def spawn_options(self, user: str) -> dict[str, Any]:
        """What ``user`` may choose from and what is free now (shape: docs/architecture.md)."""
        return _expect(dict[str, Any], await self._json("GET", "/internal/spawn-options", user))

    async def check(self, user: str, request: Mapping[str, Any]) -> Verdict:
        """What the scheduler would say to ``request`` now. ``Refusal`` if it is malformed."""
        return _expect(Verdict, await self._json("POST", "/internal/check", user, request))

    async def create(self, user: str, request: Mapping[str, Any]) -> tuple[str, bool]:
        """Submit a session; answers its id and whether it is new."""
        created = _expect(_Created, await self._json("POST", "/session", user, request))
        return created.session_id, created.created

    async def server(self, user: str, hub: str, name: str) -> Server | None:
        """The newest session called ``name``, also when it ended; None when there never was one."""
        path = f"/internal/servers/{quote(name, safe='')}?hub={quote(hub, safe='')}"
        try:
            return _expect(Server, await self._json("GET", path, user))
        except Refusal as refusal:
            if refusal.status == 404:
                return None
            raise

    async def servers(self, hub: str) -> dict[str, Server]:
        """All live sessions of this hub by name."""
        path = f"/internal/servers?hub={quote(hub, safe='')}"
        listed = _expect(_Servers, await self._json("GET", path, None))
        return {server.name: server for server in listed.servers}

    async def destroy(self, user: str, session_id: str, *, forced: bool = False) -> None:
        """Ask for the end of a session; harmless when it has ended or never was."""
        path = f"/session/{quote(session_id, safe='')}" + ("?forced=true" if forced else "")
        try:
            await self._json("DELETE", path, user)
        except Refusal as refusal:
            if refusal.status != 404:
                raise

    async def logs(self, user: str, session_id: str) -> str:
        """The output of the session's main kernel, as far as it is still known."""
        answer = await self._json("GET", f"/session/{quote(session_id, safe='')}/logs", user)
        result = answer.get("result") if isinstance(answer, dict) else None
        return str(result.get("logs") or "") if isinstance(result, dict) else ""

    async def progress(self, user: str, session_id: str) -> AsyncGenerator[Step | End, None]:
        """Follow a session from its first event to ``End``; ``Unreachable`` when the stream breaks off.

        The manager replays a stream from the start, so after ``Unreachable`` just follow again and
        drop the steps whose ids are known.
        """
        path = f"/session/{quote(session_id, safe='')}/progress"
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=60)
        try:
            async with self._session().get(
                self.url + path, headers=self._headers(user), timeout=timeout, allow_redirects=False
            ) as response:
                if response.status != 200:
                    await _answer(response)
                    raise Unreachable(f"the progress stream answered {response.status}")
                async for event, data in events(response.content):
                    if event == "progress":
                        yield _decode(Step, data)
                    elif event == "end":
                        yield _decode(End, data)
                        return
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unreachable(f"the progress stream broke off: {_said(error)}") from error
        raise Unreachable("the progress stream ended early")

    def _session(self) -> aiohttp.ClientSession:
        if self._http is None or self._http.closed:
            self._http = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())
        return self._http

    def _headers(self, user: str | None) -> dict[str, str]:
        headers = {"Authorization": f"Bearer {self._secret}"}
        if user is not None:
            headers["X-Perijove-User"] = quote(user, safe=HEADER_SAFE)
        return headers

    async def _json(
        self, method: str, path: str, user: str | None, body: Mapping[str, Any] | None = None
    ) -> Any:
        try:
            async with self._session().request(
                method,
                self.url + path,
                json=body,
                headers=self._headers(user),
                timeout=aiohttp.ClientTimeout(total=self._timeout),
                allow_redirects=False,
            ) as response:
                return await _answer(response)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unreachable(f"the manager does not answer: {_said(error)}") from error


class ServerCache:
    """What all spawners of one hub know of their sessions, from one call every ``max_age`` seconds.

    A spawner asks every 30 s; a thousand of them cost one request per ``max_age``. A name missing from the
    list is asked for by name, since it may be younger than the list.
    """

    def __init__(self, client: ManagerClient, hub: str, max_age: float) -> None:
        self.client = client
        self.hub = hub
        self.max_age = max_age
        self._live: dict[str, Server] = {}
        self._taken = -float("inf")
        self._taking: asyncio.Task[None] | None = None

    async def find(self, user: str, name: str) -> Server | None:
        """The session called ``name``, at most ``max_age`` seconds old while it lives.

        None when there never was one. Raises ``Unreachable`` when the manager cannot say.
        """
        if time.monotonic() - self._taken > self.max_age:
            await self._refresh()
        known = self._live.get(name)
        if known is not None:
            return known
        return await self.client.server(user, self.hub, name)

    def forget(self) -> None:
        """Ask anew next time: a session was just started or ended."""
        self._taken = -float("inf")

    async def _refresh(self) -> None:
        if self._taking is None or self._taking.done():
            self._taking = asyncio.ensure_future(self._take())
        await asyncio.shield(self._taking)

    async def _take(self) -> None:
        asked = time.monotonic()
        self._live = await self.client.servers(self.hub)
        self._taken = asked


async def events(lines: aiohttp.StreamReader) -> AsyncIterator[tuple[str, str]]:
    """Name and data of each server-sent event of a stream (WHATWG HTML, section 9.2.6)."""
    parser = EventParser()
    while chunk := await lines.readany():
        for event in parser.feed(chunk):
            yield event


class EventParser:
    """Server-sent events out of arbitrary chunks of bytes; comments and other fields are dropped."""

    def __init__(self) -> None:
        self._rest = b""
        self._name = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> list[tuple[str, str]]:
        """Events completed by ``chunk``. Raises ``Unreachable`` when a line grows beyond all bounds."""
        text = self._rest + chunk
        cut = len(text) - 1 if text.endswith(b"\r") else len(text)
        *lines, self._rest = text[:cut].replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest += text[cut:]
        if len(self._rest) > MAX_LINE:
            raise Unreachable("the progress stream sent a line without end")
        return [event for line in lines if (event := self._line(line)) is not None]

    def _line(self, line: bytes) -> tuple[str, str] | None:
        if not line:
            event = (self._name or "message", "\n".join(self._data)) if self._data else None
            self._name, self._data = "", []
            return event
        field, _, value = line.decode("utf-8", "replace").partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            self._name = value
        elif field == "data":
            self._data.append(value)
        return None


async def _answer(response: aiohttp.ClientResponse) -> Any:
    """The JSON of a good answer; ``Refusal`` for 4xx, ``Unreachable`` for the rest."""
    body = await response.read()
    try:
        content = msgspec.json.decode(body) if body else None
    except msgspec.DecodeError:
        content = None
    if 200 <= response.status < 300:
        return content
    problem = content if isinstance(content, dict) else {}
    message = str(problem.get("msg") or problem.get("title") or response.reason or "")
    if 400 <= response.status < 500 and response.status not in (408, 425, 429):
        slug = str(problem.get("type") or "").rsplit("/", 1)[-1]
        raise Refusal(response.status, slug, message, problem.get("data"))
    raise Unreachable(f"the manager answered {response.status} {message}".rstrip())


def _expect(shape: type[T], content: Any) -> T:
    try:
        return msgspec.convert(content, shape)
    except msgspec.ValidationError as error:
        raise Unreachable(f"the manager's answer is not understood: {error}") from error


def _decode(shape: type[T], data: str) -> T:
    try:
        return msgspec.json.decode(data.encode(), type=shape)
    except msgspec.DecodeError as error:
        raise Unreachable(f"the progress stream is not understood: {error}") from error


def _said(error: BaseException) -> str:
    """A short word on a failed connection, without addresses or secrets."""
    return "it took too long" if isinstance(error, TimeoutError) else type(error).__name__
