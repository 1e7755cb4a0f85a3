"""The one place where sessions and kernels change status.

A ``Change`` is what one database write does: it checks each transition against the table, writes its
history row and gathers the events and wake-ups that ``Journal`` hands out after the commit.
"""

from __future__ import annotations

import copy
import datetime as dt
import json
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from spawner.sessions import ledger
from spawner.sessions.events import CALLBACK_EVENTS, KERNEL_EVENTS, SESSION_EVENTS, Event, EventBus
from spawner.sessions.states import (
    FINAL,
    HOLDS,
    REVIVAL,
    IllegalTransition,
    Status,
    check_transition,
)
from spawner.sessions.tables import CallbackRow, HistoryRow, KernelRow, SessionRow
from spawner.sessions.wishes import wishes_of
from store.database import Store
from store.hints import MAX_HINT, can_hint, hint

T = TypeVar("T")
PROGRESS = "_progress"
"""Name of the bus event that only says: look at the history again. It is not told to clients."""
RECOVERED = "session_healthy"
REQUEST_ID_LENGTH = 64
FOLLOWED = frozenset({Status.PREPARING, Status.CREATING, Status.RUNNING})
"""Statuses of a kernel that its agent has or was given: they change nothing of what it should run."""


@dataclass(slots=True)
class Change:
    """One write in progress. Everything it gathers counts only once the write is committed."""

    db: AsyncSession
    now: dt.datetime
    request_id: str
    events: list[Event] = field(default_factory=list)
    agents: set[str] = field(default_factory=set)
    """Agents whose wanted set changed."""
    schedule: bool = False
    """Whether the scheduler should look."""
    networks: bool = False
    """Whether networks between agents may have changed, which concerns all of them."""
    callbacks: bool = False
    """Whether callbacks wait to be posted."""

    async def move_session(
        self,
        session: SessionRow,
        to: Status,
        cause: str,
        *,
        reason: str = "",
        exit_code: int | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        """Give ``session`` the status ``to``; ``cause`` is a sentence for its owner, ``reason`` a slug.

        Raises ``IllegalTransition``.
        """
        old = Status(session.status)
        if old is to:
            return
        await self._check(f"session {session.id}", old, to, str(session.id))
        session.status, session.status_info = to.value, cause
        if to is Status.SCHEDULED:
            session.scheduled_at = self.now
        elif to is Status.RUNNING and session.started_at is None:
            session.started_at = self.now
            limit = wishes_of(session.scheduling).run_time
            session.ends_at = None if limit is None else self.now + dt.timedelta(seconds=limit)
        elif to is Status.PENDING:
            if session.started_at is not None:  # it had its turn; who never ran keeps its age
                session.eligible_since = None
            session.started_at = session.ends_at = None
        elif to in FINAL:
            session.terminated_at = self.now
            session.cluster_keys = None
        if to is Status.PENDING or to in FINAL:
            self.schedule = True
        self._write("session", str(session.id), session.id, old, to, cause, data)
        if old is Status.RUNNING_DEGRADED and to is Status.RUNNING:
            self.tell_session(session, RECOVERED, reason or cause)
        else:
            self._tell_session(session, to, reason or cause, exit_code)

    def enter_session(self, session: SessionRow, cause: str) -> None:
        """History and event of a session that was just added with status PENDING."""
        self.schedule = True
        self._write("session", str(session.id), session.id, None, Status.PENDING, cause, None)
        self._tell_session(session, Status.PENDING, "", None)

    async def move_kernel(
        self,
        session: SessionRow,
        kernel: KernelRow,
        to: Status,
        cause: str,
        *,
        reason: str = "",
        data: Mapping[str, Any] | None = None,
    ) -> None:
        """Give ``kernel`` the status ``to``; its allocation is freed when it holds none any more.

        Raises ``IllegalTransition``.
        """
        old = Status(kernel.status)
        if old is to:
            return
        await self._check(f"kernel {kernel.id}", old, to, str(kernel.id))
        kernel.status, kernel.status_info = to.value, cause
        where = {"agent": kernel.agent_id, "epoch": kernel.epoch} if kernel.agent_id else {}
        if kernel.agent_id is not None and to not in FOLLOWED:
            self.agents.add(kernel.agent_id)
        if session.cluster_size > 1 and (old in HOLDS) != (to in HOLDS):
            self.networks = True
        if old in HOLDS and to not in HOLDS:
            await ledger.free(self.db, kernel.id, self.now)
            self.schedule = True
        if to is Status.PENDING:
            kernel.agent_id = kernel.container_id = kernel.url = kernel.started_at = None
            kernel.ports = []
        elif to is Status.RUNNING:
            kernel.started_at = kernel.started_at or self.now
        elif to in FINAL:
            kernel.terminated_at = self.now
        about = {**where, **(data or {})}
        self._write("kernel", str(kernel.id), session.id, old, to, cause, about)
        if to in KERNEL_EVENTS:
            self.tell_kernel(session, kernel, KERNEL_EVENTS[to], reason or cause)

    def revive_kernel(self, session: SessionRow, kernel: KernelRow, cause: str) -> None:
        """A part that its cluster lost waits again, with the session that restarts."""
        old = Status(kernel.status)
        kernel.status, kernel.status_info = REVIVAL.value, cause
        kernel.agent_id = kernel.container_id = kernel.url = kernel.started_at = None
        kernel.terminated_at = kernel.exit_code = None
        self._write("kernel", str(kernel.id), session.id, old, REVIVAL, cause, None)

    def note(self, session: SessionRow, message: str) -> None:
        """Tell the followers of ``session`` something without a change of status."""
        status = Status(session.status)
        self._write("progress", str(session.id), session.id, status, status, message, None)
        self.events.append(_event(session, PROGRESS, message))

    def told(self, session: SessionRow, message: str) -> dict[str, Any]:
        """``note`` for many: the event, and the values of the history row for the caller to insert."""
        self.events.append(_event(session, PROGRESS, message))
        return {
            "kind": "progress",
            "object_id": str(session.id),
            "session_id": session.id,
            "at": self.now,
            "from_status": session.status,
            "to_status": session.status,
            "cause": message,
            "request_id": self.request_id[:REQUEST_ID_LENGTH],
            "data": {},
        }

    def record(self, session: SessionRow, kind: str, message: str, data: Mapping[str, Any]) -> None:
        """History of ``session`` that is no news to those who follow it."""
        status = session.status
        self._insert(kind, str(session.id), session.id, status, status, message, data)

    def note_agent(self, agent_id: str, old: str | None, new: str, cause: str) -> None:
        """History of an agent."""
        self._insert("agent", agent_id, None, old, new, cause, {})

    def tell_kernel(self, session: SessionRow, kernel: KernelRow, name: str, reason: str) -> None:
        """Publish a kernel event after the commit."""
        self.events.append(
            _event(
                session,
                name,
                reason,
                kernel.exit_code,
                kernel_id=kernel.id,
                cluster_role=kernel.cluster_role,
                cluster_index=kernel.cluster_index,
            )
        )

    def tell_session(
        self, session: SessionRow, name: str, reason: str, exit_code: int | None = None
    ) -> None:
        """Publish a session event after the commit, and to the session's callback URL if it has one."""
        self.events.append(_event(session, name, reason, exit_code))
        event = name.removeprefix("session_")
        if session.callback_url and event in CALLBACK_EVENTS:
            self.callbacks = True
            row = CallbackRow(
                id=uuid.uuid4(), session_id=session.id, event=event, at=self.now, due_at=self.now
            )
            self.db.add(row)

    def _tell_session(
        self, session: SessionRow, to: Status, reason: str, exit_code: int | None
    ) -> None:
        self.tell_session(session, SESSION_EVENTS.get(to, PROGRESS), reason, exit_code)

    async def _check(self, what: str, old: Status, to: Status, object_id: str) -> None:
        try:
            check_transition(what, old, to)
        except IllegalTransition:
            raise IllegalTransition(what, old, to, await story(self.db, object_id)) from None

    def _write(
        self,
        kind: str,
        object_id: str,
        session_id: uuid.UUID | None,
        old: Status | None,
        new: Status,
        cause: str,
        data: Mapping[str, Any] | None,
    ) -> None:
        before = None if old is None else old.value
        self._insert(kind, object_id, session_id, before, new.value, cause, data)

    def _insert(
        self,
        kind: str,
        object_id: str,
        session_id: uuid.UUID | None,
        old: str | None,
        new: str,
        cause: str,
        data: Mapping[str, Any] | None,
    ) -> None:
        self.db.add(
            HistoryRow(
                kind=kind,
                object_id=object_id,
                session_id=session_id,
                at=self.now,
                from_status=old,
                to_status=new,
                cause=cause,
                request_id=self.request_id[:REQUEST_ID_LENGTH],
                data=dict(data or {}),
            )
        )


Fence = Callable[[AsyncSession], Awaitable[None]]
"""Raises in a transaction that must not be committed."""


class Journal:
    """Runs changes: one durable write each, then its events and wake-ups."""

    def __init__(self, store: Store, bus: EventBus, now: Callable[[], dt.datetime]) -> None:
        self.store, self.bus, self.now = store, bus, now
        self.origin = uuid.uuid4().hex
        """Who sends its hints, so that it can leave out its own."""
        self._hints = can_hint(store.url)
        self._listeners: list[Callable[[Change], None]] = []
        self._fence: Callable[[], Fence | None] = lambda: None

    def behind(self, fence: Callable[[], Fence | None]) -> Journal:
        """The same journal, each of whose writes begins with what ``fence`` gives when it is asked for."""
        fenced = copy.copy(self)
        fenced._fence = fence
        return fenced

    def listen(self, listener: Callable[[Change], None]) -> None:
        """Call ``listener`` (which must not fail or wait) with each committed change."""
        self._listeners.append(listener)

    async def write(self, request_id: str, work: Callable[[Change], Awaitable[T]]) -> T:
        """Run ``work``; events are published when it is on disk, and not at all when it raises."""
        change: Change | None = None
        fence = self._fence()

        async def run(db: AsyncSession) -> T:
            nonlocal change
            if fence is not None:
                await fence(db)
            change = Change(db, self.now(), request_id)
            result = await work(change)
            if self._hints and (
                change.schedule or change.agents or change.networks or change.callbacks
            ):
                await hint(db, self._hint(change))
            return result

        result = await self.store.write(run)
        if change is not None:
            for event in change.events:
                self.bus.publish(event)
            for listener in self._listeners:
                listener(change)
        return result

    def _hint(self, change: Change) -> str:
        """What other managers should look at; all their agents, when the names are too many."""
        told: dict[str, Any] = {"from": self.origin}
        told |= {"schedule": change.schedule, "callbacks": change.callbacks}
        named = json.dumps({**told, "agents": sorted(change.agents), "all": change.networks})
        return named if len(named) <= MAX_HINT else json.dumps({**told, "agents": [], "all": True})


async def story(db: AsyncSession, object_id: str) -> str:
    """All that happened to a session, kernel or agent, one line each, oldest first."""
    query = select(HistoryRow).where(HistoryRow.object_id == object_id).order_by(HistoryRow.id)
    lines = [
        f"{row.at.isoformat()} {row.from_status or '-'} -> {row.to_status}: {row.cause}"
        f" [{row.request_id}]{f' {row.data}' if row.data else ''}"
        for row in await db.scalars(query)
    ]
    return "\n".join(lines) or f"nothing is known of {object_id}"


def _event(
    session: SessionRow, name: str, reason: str, exit_code: int | None = None, **kernel: Any
) -> Event:
    return Event(
        name,
        session.id,
        session.name,
        session.owner_id,
        session.access_key,
        session.domain,
        reason,
        exit_code,
        **kernel,
    )
