"""Use cases of sessions: create, look, list, rename, destroy, logs, wait, progress, history."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import AsyncIterator, Callable, Collection

from authenticator.principals import Principal
from spawner.sessions.events import Event, EventBus
from spawner.sessions.requests import Created, NewSession, ProgressEvent, SessionDetail
from spawner.sessions.states import Status
from spawner.sessions.tables import HistoryRow
from store.database import Store
from vfolder.folders import FolderService


class SessionService:
    """Sessions of users. Every method that takes a principal authorizes it."""

    def __init__(
        self, store: Store, bus: EventBus, folders: FolderService, now: Callable[[], dt.datetime]
    ) -> None:
        self._store, self._bus, self._folders, self._now = store, bus, folders, now

    async def create(
        self, actor: Principal, owner: Principal, new: NewSession, request_id: str
    ) -> Created:
        """A new session of ``owner``, durable when this returns, or the live one of that name."""
        raise NotImplementedError

    async def get(self, principal: Principal, ref: str) -> SessionDetail:
        """A session by id (also an ended one) or live name; strangers' sessions do not exist."""
        raise NotImplementedError

    async def list(
        self,
        principal: Principal,
        *,
        all_owners: bool = False,
        statuses: Collection[Status] | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> list[SessionDetail]:
        """Sessions, newest first; ``statuses`` None means all."""
        raise NotImplementedError

    async def count(
        self,
        principal: Principal,
        *,
        all_owners: bool = False,
        statuses: Collection[Status] | None = None,
    ) -> int:
        """How many sessions ``list`` would give without limit."""
        raise NotImplementedError

    async def match(self, principal: Principal, prefix: str) -> list[SessionDetail]:
        """Live sessions of the caller whose name or id begins with ``prefix``."""
        raise NotImplementedError

    async def rename(self, principal: Principal, ref: str, name: str, request_id: str) -> None:
        """Give a running session another name."""
        raise NotImplementedError

    async def destroy(
        self, principal: Principal, ref: str, *, forced: bool, request_id: str
    ) -> SessionDetail:
        """End a session; returns as soon as that is recorded."""
        raise NotImplementedError

    async def logs(self, principal: Principal, ref: str, tail: int = 1000) -> str:
        """The last ``tail`` lines of the main kernel's output."""
        raise NotImplementedError

    async def wait(
        self, session_id: uuid.UUID, statuses: frozenset[Status], timeout: float | None
    ) -> SessionDetail:
        """The session once it has one of ``statuses``, or as it is after ``timeout`` seconds."""
        raise NotImplementedError

    def progress(self, session_id: uuid.UUID, after: int = 0) -> AsyncIterator[ProgressEvent]:
        """Steps to RUNNING (or to the end), replayed from ``after``; never raises."""
        raise NotImplementedError

    def events(
        self, principal: Principal, ref: str | None = None, scope: str = "*"
    ) -> AsyncIterator[Event]:
        """Events that the caller may see; ``ref`` an id or name, ``scope`` session, kernel or ``*``."""
        raise NotImplementedError

    async def history(self, principal: Principal, ref: str) -> list[HistoryRow]:
        """Transitions of the session and its kernels, oldest first."""
        raise NotImplementedError

    async def servers(self, hub_id: str) -> list[SessionDetail]:
        """All live sessions that this hub started."""
        raise NotImplementedError

    async def server(self, hub_id: str, owner: Principal, name: str) -> SessionDetail:
        """The newest session of that name that this hub started for ``owner``, also when it ended."""
        raise NotImplementedError

    async def end_all(self, request_id: str) -> int:
        """Ask all live sessions to end (shutdown); returns how many there are."""
        raise NotImplementedError
