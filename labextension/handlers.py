"""The server half of the extension: routes that tell the browser about its session, and extend it.

The browser never speaks to the manager: the session's token stays on the server.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler
from jupyter_server.utils import url_path_join
from tornado import web

from perijove.session import (
    Access,
    NotExtended,
    NotInSession,
    SessionFacts,
    SessionUnknown,
    extend,
    fetch,
)

FRESH = 5.0
"""Seconds for which an answer of the manager, or its absence, serves all browser tabs."""


@dataclass(frozen=True, slots=True)
class Told:
    """What is known now: ``session`` with its age as of now, and why nothing newer is, if so."""

    session: SessionFacts | None
    problem: str | None
    outside: bool = False
    """Not in a session that may ask about itself, so that asking again is no use."""


class SessionWatch:
    """Asks the manager, at most once in ``FRESH`` seconds however many ask here; remembers the last answer."""

    def __init__(
        self,
        ask: Callable[[], SessionFacts] = lambda: fetch(Access.from_environ()),
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask, self._now = ask, now
        self._lock = asyncio.Lock()
        self._told = Told(None, None)
        self._asked_at: float | None = None
        self._told_at = 0.0

    async def look(self) -> Told:
        """What is known; never raises."""
        async with self._lock:
            if self._asked_at is None or self._now() - self._asked_at >= FRESH:
                await self._renew()
        told = self._told
        if told.session is None:
            return told
        return replace(told, session=told.session.later(self._now() - self._told_at))

    async def extend(self) -> float | None:
        """Extend the session, and ask anew at the next look. Raises as ``perijove.session.extend``."""
        try:
            return await asyncio.to_thread(lambda: extend(Access.from_environ()))
        finally:
            self._asked_at = None

    async def _renew(self) -> None:
        try:
            session = await asyncio.to_thread(self._ask)
        except NotInSession as reason:
            self._told = Told(None, str(reason), outside=True)
        except SessionUnknown as reason:
            self._told = replace(self._told, problem=str(reason))
        else:
            self._told, self._told_at = Told(session, None), self._now()
        self._asked_at = self._now()


class SessionHandler(APIHandler):
    """``GET /perijove/session``: ``{"session": facts or null, "problem": sentence or null}``.

    ``session`` without a problem is at most ``FRESH`` seconds old; with one it is the last that was
    known. 502 with ``{"message"}`` where the manager has not told anything yet.
    """

    auth_resource = "perijove"

    def initialize(self, watch: SessionWatch) -> None:
        """``watch`` is shared by all requests."""
        self.watch = watch

    @web.authenticated
    @authorized
    async def get(self) -> None:
        """Tell it."""
        told = await self.watch.look()
        self.set_header("Cache-Control", "no-store")
        if told.session is None and not told.outside:
            self.set_status(502)
            self.finish({"message": told.problem})
            return
        session = None if told.session is None else asdict(told.session)
        self.finish({"session": session, "problem": told.problem})


class ExtendHandler(APIHandler):
    """``POST /perijove/extend``: ``{"ends_in": seconds or null}`` until its end at the earliest.

    409 with ``{"message"}`` where the owner's policy does not allow it, 502 where the manager does not answer.
    """

    auth_resource = "perijove"

    def initialize(self, watch: SessionWatch) -> None:
        """``watch`` is shared by all requests."""
        self.watch = watch

    @web.authenticated
    @authorized
    async def post(self) -> None:
        """Extend it."""
        try:
            self.finish({"ends_in": await self.watch.extend()})
        except (NotExtended, SessionUnknown) as reason:
            self.set_status(409 if isinstance(reason, NotExtended) else 502)
            self.finish({"message": str(reason)})


def add_routes(app: Any) -> None:
    """Add the extension's routes to the Jupyter server's ``app``."""
    base, watch = url_path_join(app.settings["base_url"], "perijove"), {"watch": SessionWatch()}
    app.add_handlers(
        ".*$",
        [(f"{base}/session", SessionHandler, watch), (f"{base}/extend", ExtendHandler, watch)],
    )
