"""Doors to apps that browsers open: each app is started once for all who wait, and reached over pooled connections."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler

from authenticator.identity import IdentityService
from authenticator.principals import Scope, Via
from hub.api.authentication import perijove_scopes
from spawner.agent import preamble
from spawner.sessions.opening import AppService, Opened, Wish

FRESH = 10.0
"""Seconds for which an opened app, and that its owner may open it, is believed."""
TOLD = 3.0
"""Seconds for which a failure is told before the app is started again: whoever waited comes back for it."""
CONNECT_TIMEOUT = 10.0
IDLE = 15.0
"""Seconds for which an unused connection to an app is kept: it counts as use of the session."""
MAX_KEPT = 10_000
Key = tuple[str, frozenset[Scope], str, str, int | None]
"""User name, scopes, session, app and port."""


class RelayConnector(aiohttp.BaseConnector):
    """Connections to the relays of agents, which ask for their token before an app's own bytes begin."""

    def __init__(self, tokens: Mapping[tuple[str, int], str]) -> None:
        super().__init__(limit=0, keepalive_timeout=IDLE)
        self._tokens = tokens
        self._blind = ssl.create_default_context()
        # The relay leads to one port of one session, whatever certificate is shown there.
        self._blind.check_hostname, self._blind.verify_mode = False, ssl.CERT_NONE

    async def _create_connection(
        self, req: aiohttp.ClientRequest, traces: list[Any], timeout: aiohttp.ClientTimeout
    ) -> ResponseHandler:
        host, port = req.url.raw_host or "", req.url.port or 0
        secure = self._blind if req.url.scheme == "https" else None
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                _, protocol = await loop.create_connection(
                    lambda: ResponseHandler(loop=loop),
                    sock=await self._dial(host, port),
                    ssl=secure,
                    server_hostname=host if secure else None,
                )
        except OSError as error:  # TimeoutError and ssl.SSLError are some
            raise aiohttp.ClientConnectionError(str(error) or "it took too long") from error
        return protocol

    async def _dial(self, host: str, port: int) -> socket.socket:
        """A socket on which the relay let us in. Raises ``OSError``."""
        loop = asyncio.get_running_loop()
        family, kind, number, _, address = (
            await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        )[0]
        sock = socket.socket(family, kind, number)
        try:
            sock.setblocking(False)
            await loop.sock_connect(sock, address)
            await loop.sock_sendall(sock, preamble.opening(self._tokens.get((host, port), "")))
            line = b""
            while not line.endswith(b"\n") and len(line) < preamble.MAX_LINE:
                # One at a time: what follows the line is the app's.
                line += (byte := await loop.sock_recv(sock, 1))
                if not byte:
                    break
            preamble.check_answer(line)
        except BaseException:
            sock.close()
            raise
        return sock


@dataclass(slots=True)
class _Opening:
    task: asyncio.Task[Opened]
    done_at: float = 0.0


class AppDoors:
    """All apps that browsers have open; one for all handlers of a manager."""

    def __init__(
        self,
        identity: IdentityService,
        apps: AppService,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._identity, self._apps, self._clock = identity, apps, clock
        self._openings: dict[Key, _Opening] = {}
        self._client: aiohttp.ClientSession | None = None
        self._tokens: dict[tuple[str, int], str] = {}

    @property
    def client(self) -> aiohttp.ClientSession:
        """Asks apps; keeps no cookies, follows nothing, decodes nothing."""
        if self._client is None:
            self._client = aiohttp.ClientSession(
                connector=RelayConnector(self._tokens),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
                timeout=aiohttp.ClientTimeout(total=None),
                max_line_size=65536,
                max_field_size=65536,
            )
        return self._client

    async def close(self) -> None:
        """End all connections."""
        for each in self._openings.values():
            each.task.cancel()
        if self._client is not None:
            await self._client.close()

    def opening(
        self, user: dict[str, Any], session: str, app: str, port: int | None
    ) -> asyncio.Task[Opened]:
        """The start of an app for the hub's ``user``; many who ask at once wait for one task.

        The task raises as ``AppService.start``.
        """
        key = _key(user, session, app, port)
        known = self._openings.get(key)
        if known is not None and not self._is_old(known):
            return known.task
        if len(self._openings) >= MAX_KEPT:
            self._openings = {k: v for k, v in self._openings.items() if not self._is_old(v)}
        task = asyncio.create_task(self._open(key[0], key[1], session, Wish(app, port)))
        opening = self._openings[key] = _Opening(task)

        def done(task: asyncio.Task[Opened]) -> None:
            opening.done_at = self._clock()
            if not task.cancelled():
                task.exception()  # nobody may have waited for it

        task.add_done_callback(done)
        return task

    def forget(self, user: dict[str, Any], session: str, app: str, port: int | None) -> None:
        """It does not answer: whoever comes next has it started again."""
        self._openings.pop(_key(user, session, app, port), None)

    def _is_old(self, opening: _Opening) -> bool:
        if not opening.task.done():
            return False
        failed = opening.task.cancelled() or opening.task.exception() is not None
        return self._clock() - opening.done_at > (TOLD if failed else FRESH)

    async def _open(self, name: str, scopes: frozenset[Scope], session: str, wish: Wish) -> Opened:
        principal = await self._identity.principal_by_username(
            name, Via.HUB_COOKIE, scopes, create=True
        )
        opened = await self._apps.start(principal, session, wish)
        self._tokens[opened.host, opened.port] = opened.token
        return opened


def _key(user: dict[str, Any], session: str, app: str, port: int | None) -> Key:
    name = str(user["name"])
    # Administrators have no business in a page in which somebody else's program runs.
    scopes = perijove_scopes(user.get("scopes", ()), name) - {Scope.ADMIN}
    return name, scopes, session, app, port
