"""Use cases of sessions: create, look, list, rename, destroy, logs, wait, progress, history."""

from __future__ import annotations

import asyncio
import datetime as dt
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from functools import partial

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from authenticator.principals import Principal, Scope, require
from authenticator.problems import BadRequest, InvalidParameters, NotFound, SessionAlreadyExists
from spawner.sessions import admission, creation, progress, queries, restarts, retries, runs, steps
from spawner.sessions.agents import AgentRegistry
from spawner.sessions.apps import placed
from spawner.sessions.callbacks import CallbackRules
from spawner.sessions.events import Event, EventBus
from spawner.sessions.facts import Facts, read_facts
from spawner.sessions.failpoints import reach
from spawner.sessions.kinds import SYSTEM
from spawner.sessions.requests import Created, NewSession, ProgressEvent, SessionDetail
from spawner.sessions.states import FINAL, Status, Target
from spawner.sessions.tables import HistoryRow, KernelRow, RunRow, SessionRow
from spawner.sessions.transitions import Change, Journal
from vfolder.folders import FolderService

MAX_LIMIT = 1000
MAX_TAIL = 10_000
BATCH = 25
"""Sessions that one write of ``end_all`` ends: others want to write in between."""
LOOK_AGAIN = 5.0
"""Seconds after which ``wait`` looks by itself, should a wake-up get lost."""
ENDED = [status.value for status in FINAL]
Details = list[SessionDetail]
Histories = list[HistoryRow]
Attempts = list[RunRow]
Conditions = list[ColumnElement[bool]]


class SessionService:
    """Sessions of users. Every method that takes a principal authorizes it."""

    def __init__(
        self,
        journal: Journal,
        agents: AgentRegistry,
        folders: FolderService,
        now: Callable[[], dt.datetime],
        callbacks: CallbackRules,
        apps_path: str,
    ) -> None:
        self._journal, self._agents, self._folders, self._now = journal, agents, folders, now
        self._callbacks, self._apps_path = callbacks, apps_path
        self._store = journal.store

    @property
    def bus(self) -> EventBus:
        """Where events are told."""
        return self._journal.bus

    async def create(
        self, actor: Principal, owner: Principal, new: NewSession, request_id: str
    ) -> Created:
        """A new session of ``owner``, durable when this returns, or the live one of that name.

        Raises ``InvalidParameters`` with all wrong fields, ``QuotaExceeded``, ``SessionAlreadyExists``.
        """
        require(actor, Scope.SESSIONS, owner.user_id)

        async def look(db: AsyncSession) -> tuple[Facts, SessionRow | None]:
            facts = await read_facts(db, owner, new.image, new.dependencies, self._callbacks)
            if new.designated_agents:
                await admission.check_agents(db, new.designated_agents)
            return facts, await queries.live_by_name(db, owner.user_id, new.name)

        facts, live = await self._store.read(look)
        draft = creation.check(actor, owner, new, facts, self._now())
        if live is not None:
            return await self._reuse(actor, live, new, draft.image)
        mounts = await self._folders.mounts_for(owner, new.mounts, new.mount_map)
        session_id = uuid.uuid4()

        async def insert(change: Change) -> None:
            await self._folders.still_there(change.db, mounts)
            session, kernels = creation.rows(owner, new, draft, mounts, request_id, change.now)
            if new.type != SYSTEM:
                await admission.check_counts(change.db, facts, session)
            session.id = session_id
            change.db.add(session)
            await change.db.flush()
            for kernel in kernels:
                kernel.session_id = session_id
                kernel.spec = placed(kernel.spec, self._apps_path, session_id)
            change.db.add_all(kernels)
            change.enter_session(session, "submitted")
            await change.db.flush()

        try:
            await self._journal.write(request_id, insert)
        except IntegrityError:
            other = await self._store.read(
                lambda db: queries.live_by_name(db, owner.user_id, new.name)
            )
            if other is None:
                raise
            return await self._reuse(actor, other, new, draft.image)
        await reach("create-committed")
        return Created(await self._detail(session_id, actor), True)

    async def get(self, principal: Principal, ref: str) -> SessionDetail:
        """A session by id (also an ended one) or live name; strangers' sessions do not exist."""
        require(principal, Scope.SESSIONS_READ)

        async def work(db: AsyncSession) -> SessionDetail:
            row = await queries.resolve(db, principal, ref, Scope.SESSIONS_READ)
            return await _one(db, row, principal.is_superadmin)

        return await self._store.read(work)

    async def list(
        self,
        principal: Principal,
        *,
        all_owners: bool = False,
        statuses: Collection[Status] | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> Details:
        """Sessions, newest first; ``statuses`` None means all."""
        conditions = self._listing(principal, all_owners, statuses)
        if not 1 <= limit <= MAX_LIMIT or offset < 0:
            raise InvalidParameters(
                {"limit": f"{limit}, offset {offset}: 1 to {MAX_LIMIT}, offset 0 or more"}
            )

        async def work(db: AsyncSession) -> Details:
            newest = select(SessionRow).where(*conditions).order_by(*queries.NEWEST_FIRST)
            found = list(await db.scalars(newest.limit(limit).offset(offset)))
            return await queries.details(db, found, show_agents=principal.is_superadmin)

        return await self._store.read(work)

    async def count(
        self,
        principal: Principal,
        *,
        all_owners: bool = False,
        statuses: Collection[Status] | None = None,
    ) -> int:
        """How many sessions ``list`` would give without limit."""
        conditions = self._listing(principal, all_owners, statuses)
        query = select(func.count()).select_from(SessionRow).where(*conditions)
        return await self._store.read(lambda db: db.scalar(query)) or 0

    async def match(self, principal: Principal, prefix: str) -> Details:
        """Live sessions of the caller whose name or id begins with ``prefix``."""
        require(principal, Scope.SESSIONS_READ)

        async def work(db: AsyncSession) -> Details:
            found = await queries.matching(db, principal.user_id, prefix)
            return await queries.details(db, found, show_agents=principal.is_superadmin)

        return await self._store.read(work)

    async def rename(self, principal: Principal, ref: str, name: str, request_id: str) -> None:
        """Give a running session another name; the hub's servers keep theirs."""
        require(principal, Scope.SESSIONS)
        if not creation.NAME.fullmatch(name):
            raise InvalidParameters({"name": f"{name[:80]!r}: {creation.NAME_RULE}"})

        async def work(change: Change) -> None:
            row = await queries.resolve(change.db, principal, ref, Scope.SESSIONS)
            if row.status != Status.RUNNING:
                raise BadRequest(f"only running sessions can be renamed, this one is {row.status}")
            if row.origin.get("hub"):
                raise BadRequest(
                    "this session is a server of JupyterHub, which knows it by its name"
                )
            change.note(row, f"renamed from {row.name} to {name}")
            row.name = name
            change.agents.update(await _agents_of(change.db, row.id))
            await change.db.flush()

        try:
            await self._journal.write(request_id, work)
        except IntegrityError as error:
            raise SessionAlreadyExists(f"there is a live session named {name!r} already") from error

    async def destroy(
        self,
        principal: Principal,
        ref: str,
        *,
        forced: bool,
        request_id: str,
        recursive: bool = False,
    ) -> Details:
        """End a session; returns as soon as that is recorded. Harmless when repeated.

        ``recursive`` ends those that depend on it as well, and theirs; they follow in the answer.
        ``forced`` skips nothing: a node that cannot be asked keeps the session TERMINATING, and its
        devices stay accounted until it says that the container is gone.
        """
        require(principal, Scope.SESSIONS)

        async def work(change: Change) -> Sequence[uuid.UUID]:
            row = await queries.resolve(change.db, principal, ref, Scope.SESSIONS)
            if Status(row.status) in FINAL:
                raise NotFound("session", f"session {ref[:80]!r} has ended already")
            ends = [row, *(await queries.dependents(change.db, row) if recursive else ())]
            who = "you" if row.owner_id == principal.user_id else "an administrator"
            for each in ends:
                await _end(change, each, who, forced)
            return [each.id for each in ends]

        ended = await self._journal.write(request_id, work)
        await reach("destroy-committed")
        return [await self._detail(session_id, principal) for session_id in ended]

    async def restart(self, principal: Principal, ref: str, request_id: str) -> SessionDetail:
        """Restart a running session in place; returns as soon as that is recorded."""
        require(principal, Scope.SESSIONS)

        async def work(change: Change) -> uuid.UUID:
            row = await queries.resolve(change.db, principal, ref, Scope.SESSIONS)
            loaded = await steps.load(change.db, row.id)
            if loaded is not None:
                await restarts.restart(change, *loaded)
            return row.id

        return await self._detail(await self._journal.write(request_id, work), principal)

    async def attempts(self, principal: Principal, ref: str) -> Attempts:
        """Ended runs of a session, oldest first, without their output."""
        require(principal, Scope.SESSIONS_READ)

        async def work(db: AsyncSession) -> Attempts:
            row = await queries.resolve(db, principal, ref, Scope.SESSIONS_READ)
            return await runs.of_session(db, row.id)

        return await self._store.read(work)

    async def logs(
        self,
        principal: Principal,
        ref: str,
        tail: int = 1000,
        *,
        attempt: int | None = None,
        kernel: str | None = None,
    ) -> str:
        """The last ``tail`` lines of a kernel's output; after its end, what was kept of it.

        ``kernel`` is an id or a host name (``sub1``) in the session; None means the main one. ``attempt`` names
        one of several runs. Raises ``NotFound`` when there is no such kernel or run.
        """
        require(principal, Scope.SESSIONS_READ)
        if not 1 <= tail <= MAX_TAIL:
            raise InvalidParameters({"tail": f"{tail}: 1 to {MAX_TAIL} lines"})

        async def work(db: AsyncSession) -> tuple[KernelRow, bool, str | None]:
            row = await queries.resolve(db, principal, ref, Scope.SESSIONS_READ)
            chosen = await queries.kernel_of(db, row, kernel)
            ended = Status(chosen.status) in FINAL or chosen.agent_id is None
            present = not ended and attempt in (None, retries.attempt_of(row))
            return chosen, present, await runs.output(db, chosen.id, attempt)

        found, present, kept = await self._store.read(work)
        if not present:
            if kept is None and attempt is not None:
                raise NotFound("attempt", f"session {ref[:80]!r} has no attempt {attempt}")
            return "\n".join((kept or found.last_log).splitlines()[-tail:])
        answer = await self._agents.call(
            found.agent_id, "logs", {"kernel_id": str(found.id), "tail": tail}
        )
        return answer if isinstance(answer, str) else ""

    async def wait(
        self, session_id: uuid.UUID, statuses: frozenset[Status], timeout: float | None
    ) -> SessionDetail:
        """The session once it has one of ``statuses``, or as it is after ``timeout`` seconds.

        The caller has authorized: this is for the session that it just created or got.
        """
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout
        with self.bus.subscribe(lambda event: event.session_id == session_id) as subscription:
            while True:
                status = await self._store.read(
                    lambda db: db.scalar(
                        select(SessionRow.status).where(SessionRow.id == session_id)
                    )
                )
                left = LOOK_AGAIN if deadline is None else deadline - loop.time()
                if status is None or Status(status) in statuses or left <= 0:
                    return await self._detail(session_id, None)
                try:
                    if await subscription.get(min(left, LOOK_AGAIN)) is None:
                        return await self._detail(session_id, None)
                except TimeoutError:
                    continue

    def progress(self, session_id: uuid.UUID, after: int = 0) -> AsyncIterator[ProgressEvent]:
        """Steps to RUNNING (or to the end), replayed from ``after``; never raises.

        The caller has authorized by ``get``.
        """
        return progress.follow(self._store, self.bus, session_id, after)

    async def events(
        self, principal: Principal, ref: str | None = None, scope: str = "*"
    ) -> AsyncIterator[Event]:
        """Events that the caller may see; ``ref`` an id or name, ``scope`` session, kernel or ``*``.

        An unknown name is no error: nothing is told until there is such a session.
        """
        require(principal, Scope.SESSIONS_READ)
        prefixes = ("session_", "kernel_") if scope == "*" else (f"{scope}_",)
        identity = None if ref is None else queries.as_uuid(ref)

        def wanted(event: Event) -> bool:
            mine = principal.is_superadmin or event.owner_id == principal.user_id
            named = ref is None or event.session_name == ref or event.session_id == identity
            return mine and named and event.name.startswith(prefixes)

        with self.bus.subscribe(wanted) as subscription:
            async for event in subscription:
                yield event

    async def history(self, principal: Principal, ref: str) -> Histories:
        """Transitions of the session and its kernels, oldest first; agents' names for superadmins only."""
        require(principal, Scope.SESSIONS_READ)

        async def work(db: AsyncSession) -> Histories:
            session = await queries.resolve(db, principal, ref, Scope.SESSIONS_READ)
            return await queries.told(db, session.id, show_agents=principal.is_superadmin)

        return await self._store.read(work)

    async def servers(self, hub_id: str) -> Details:
        """All live sessions that this hub started (for the hub itself)."""

        async def work(db: AsyncSession) -> Details:
            found = await queries.servers(db, hub_id)
            return await queries.details(db, found, show_agents=False)

        return await self._store.read(work)

    async def server(self, hub_id: str, owner: Principal, name: str) -> SessionDetail:
        """The newest session of that name that this hub started for ``owner``, also when it ended."""

        async def work(db: AsyncSession) -> SessionDetail:
            row = await queries.server(db, hub_id, owner.user_id, name)
            if row is None:
                raise NotFound("session", f"this hub never started {name[:80]!r}")
            return await _one(db, row, False)

        return await self._store.read(work)

    async def end_all(self, request_id: str) -> int:
        """Ask all live sessions to end (the whole deployment stops); returns how many still live."""

        query = select(SessionRow.id).where(SessionRow.status.not_in(ENDED))

        async def look(db: AsyncSession) -> Sequence[uuid.UUID]:
            return (await db.scalars(query)).all()

        async def work(change: Change, ids: Sequence[uuid.UUID]) -> int:
            left = 0
            for session_id in ids:
                loaded = await steps.load(change.db, session_id)
                if loaded is None:
                    continue
                row, kernels = loaded
                if row.target != Target.TERMINATED:
                    steps.ask_to_end(row, steps.USER_REQUESTED, "the deployment shuts down")
                    await steps.step(change, row, kernels)
                left += Status(row.status) not in FINAL
            return left

        ids = await self._store.read(look)
        parts = [ids[start : start + BATCH] for start in range(0, len(ids), BATCH)]
        return sum(
            [await self._journal.write(request_id, partial(work, ids=part)) for part in parts]
        )

    async def mounted(self, volume: str, path: str) -> bool:
        """Whether a live session mounts ``path`` of ``volume`` or something under it."""
        return await self._store.read(lambda db: queries.mounted(db, volume, path))

    def _listing(
        self, principal: Principal, all_owners: bool, statuses: Collection[Status] | None
    ) -> Conditions:
        require(principal, Scope.SESSIONS_READ)
        if all_owners:
            require(principal, Scope.ADMIN)
        return queries.listing(None if all_owners else principal.user_id, statuses)

    async def _reuse(
        self, actor: Principal, live: SessionRow, new: NewSession, image: str
    ) -> Created:
        """The live session of the name that was asked for, if it may be reused."""
        admission.check_reuse(live, new, image)
        return Created(await self._detail(live.id, actor), False)

    async def _detail(self, session_id: uuid.UUID, viewer: Principal | None) -> SessionDetail:
        async def work(db: AsyncSession) -> SessionDetail:
            row = await db.get(SessionRow, session_id)
            if row is None:
                raise NotFound("session", f"there is no session {session_id}")
            return await _one(db, row, viewer is not None and viewer.is_superadmin)

        return await self._store.read(work)


async def _end(change: Change, row: SessionRow, who: str, forced: bool) -> None:
    loaded = await steps.load(change.db, row.id)
    if loaded is None or Status(row.status) in FINAL:
        return  # by itself, while others held the row
    reason = steps.FORCE_TERMINATED if forced else steps.USER_REQUESTED
    row.forced = row.forced or forced
    steps.ask_to_end(row, reason, f"ended by {who}" + (" (forced)" if forced else ""))
    await steps.step(change, *loaded)
    if row.status == Status.TERMINATING and await _out_of_reach(change.db, row.id):
        row.status_info = "waiting for its node, which does not answer, to end it"
        change.note(row, row.status_info)


async def _one(db: AsyncSession, row: SessionRow, show_agents: bool) -> SessionDetail:
    return (await queries.details(db, [row], show_agents=show_agents))[0]


async def _agents_of(db: AsyncSession, session_id: uuid.UUID) -> set[str]:
    query = select(KernelRow.agent_id).where(
        KernelRow.session_id == session_id, KernelRow.agent_id.is_not(None)
    )
    return {agent for agent in await db.scalars(query) if agent is not None}


async def _out_of_reach(db: AsyncSession, session_id: uuid.UUID) -> bool:
    agents = await _agents_of(db, session_id)
    return await queries.any_lost(db, agents)
