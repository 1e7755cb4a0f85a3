"""The server half of the extension: one route that tells the browser about its session.

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

from perijove.session import Access, NotInSession, SessionFacts, SessionUnknown, fetch

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
        age = told.session.age + self._now() - self._told_at
        return replace(told, session=replace(told.session, age=age))

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


def add_routes(app: Any) -> None:
    """Add the extension's routes to the Jupyter server's ``app``."""
    route = url_path_join(app.settings["base_url"], "perijove", "session")
    app.add_handlers(".*$", [(route, SessionHandler, {"watch": SessionWatch()})])
