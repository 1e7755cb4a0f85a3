"""The manager's end of the agents' connections: what they should run goes out, what they see comes in."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from authenticator.problems import AgentUnavailable
from authenticator.tables import UserRow
from spawner.agent.protocol import (
    Ack,
    Answer,
    AnyMessage,
    Call,
    HealthCheck,
    Heartbeat,
    Hello,
    ImagePull,
    KernelSpec,
    Measures,
    Message,
    Mount,
    Port,
    ProtocolError,
    Report,
    Share,
    Wanted,
    Welcome,
    decode,
    encode,
)
from spawner.sessions import clusters, personal, registration, reports, runs, steps
from spawner.sessions.failpoints import reach
from spawner.sessions.image_rows import pull_rules
from spawner.sessions.losses import hand_over, lease_of
from spawner.sessions.retries import attempt_of
from spawner.sessions.snapshot import read_loss_rules
from spawner.sessions.states import IllegalTransition, Status
from spawner.sessions.statistics import NodeView, Statistics, keep
from spawner.sessions.tables import AgentRow, AllocationRow, KernelRow, SessionRow
from spawner.sessions.tokens import JOIN, TokenRefused, find, still_good, use
from spawner.sessions.transitions import Change, Journal
from store.database import StoreError

HELLO_TIMEOUT = 10.0
STARTING = (Status.PREPARING, Status.CREATING, Status.RESTARTING)
WANTED = (*STARTING, Status.RUNNING)
REQUEST_ID = "agent"

log = logging.getLogger(__name__)


class AgentConnection(Protocol):
    """A text-frame connection to one agent (a WebSocket in the product, memory in tests)."""

    async def send(self, frame: str) -> None:
        """Send one frame; raises ``ConnectionError`` when the agent is gone."""

    async def receive(self) -> str | None:
        """The next frame, or None when the connection is closed."""

    async def close(self, reason: str, *, refused: bool) -> None:
        """Close, telling why; ``refused`` when dialling again at once would be useless."""


class AgentLink:
    """One registered connection."""

    def __init__(self, agent_id: str, connection: AgentConnection) -> None:
        self.agent_id, self.connection = agent_id, connection
        self.changed = asyncio.Event()
        self.strays: set[tuple[str, int]] = set()
        """Runs the agent told of that should not exist: drained until it says they are gone."""
        self.handed: set[uuid.UUID] = set()
        self.token_id: uuid.UUID | None = None
        """What it dialled with."""
        self.recheck = False
        self.held_back = False
        """Whether kernels wait for others to run, so that their files fit a frame."""
        self.last_sent: Wanted | None = None
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._next_call = 0

    async def send(self, message: Message) -> None:
        """Send one message."""
        await self.connection.send(encode(message))

    async def call(self, method: str, params: dict[str, Any], timeout: float) -> Any:
        """Ask the agent. Raises ``AgentUnavailable`` when no answer comes in time."""
        self._next_call += 1
        number = self._next_call
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._calls[number] = future
        try:
            async with asyncio.timeout(timeout):
                await self.send(Call(number, method, params))
                return await future
        except (TimeoutError, ConnectionError) as error:
            raise AgentUnavailable("the session's node did not answer in time") from error
        finally:
            del self._calls[number]

    def answer(self, answer: Answer) -> None:
        """Hand an answer to who waits for it."""
        future = self._calls.get(answer.call_id)
        if future is None or future.done():
            return
        if answer.error is None:
            future.set_result(answer.value)
        else:
            future.set_exception(AgentUnavailable(answer.error))

    def fail_calls(self) -> None:
        """The connection ended: nobody will answer."""
        for future in self._calls.values():
            if not future.done():
                future.set_exception(AgentUnavailable("the session's node is not connected"))


class AgentRegistry:
    """Speaks ``spawner.agent.protocol`` with every connected agent."""

    def __init__(
        self,
        journal: Journal,
        *,
        heartbeat_interval: float,
        sync_interval: float,
        call_timeout: float,
        patience: float,
    ) -> None:
        self._journal = journal
        self._heartbeat_interval = heartbeat_interval
        self.deployment = ""
        """Id of the deployment, told to agents."""
        self._sync_interval = sync_interval
        self._call_timeout = call_timeout
        self._patience = patience
        """Seconds of silence after which an agent is lost."""
        self._links: dict[str, AgentLink] = {}
        self.statistics = Statistics()
        self._serving: set[asyncio.Task[Any]] = set()

    def is_connected(self, agent_id: str) -> bool:
        """Whether this manager has a connection of the agent."""
        return agent_id in self._links

    def wake(self, agent_ids: Iterable[str]) -> None:
        """The wanted sets of these agents may have changed."""
        for agent_id in agent_ids:
            link = self._links.get(agent_id)
            if link is not None:
                link.changed.set()

    def wake_all(self) -> None:
        """The wanted sets of any agents may have changed."""
        self.wake(tuple(self._links))

    async def call(
        self,
        agent_id: str | None,
        method: str,
        params: dict[str, Any],
        timeout: float | None = None,
    ) -> Any:
        """Ask an agent, and wait ``timeout`` seconds if that is not the usual. Raises ``AgentUnavailable``."""
        link = self._links.get(agent_id or "")
        if link is None:
            raise AgentUnavailable("the session's node is not connected")
        return await link.call(method, params, timeout or self._call_timeout)

    async def serve(
        self, connection: AgentConnection, token: str, names: frozenset[str] | None = None
    ) -> None:
        """Serve one connection until it ends; closes it with a sentence on any fault of the agent.

        ``names``: those in the agent's certificate, one of which must be its id; None: it showed none.
        """
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine always runs in a task
        self._serving.add(task)
        reason, refused = "the manager stops", False
        try:
            await self._converse(connection, token, names)
            reason = "the connection ended"
        except (ProtocolError, TokenRefused) as error:
            reason, refused = str(error), True
            log.warning("an agent's connection is closed: %s", reason)
        except StoreError as error:
            reason = "the database is not available: connect again"
            log.error("an agent's connection is closed: %s", error)
        except (SQLAlchemyError, IllegalTransition) as error:
            reason = "the manager could not record what the agent told it"
            log.exception("an agent's connection is closed: %s", type(error).__name__)
        except ConnectionError as error:
            reason = f"the connection broke: {error}"
        finally:
            self._serving.discard(task)
            with suppress(ConnectionError):
                await connection.close(reason, refused=refused)

    async def close(self) -> None:
        """End all connections; agents dial again when there is a manager."""
        tasks = [task for task in self._serving if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def recheck(self) -> None:
        """A token was revoked: look at those of all connections now."""
        for link in self._links.values():
            link.recheck = True
            link.changed.set()

    async def drop(self, agent_id: str, reason: str) -> None:
        """Close an agent's connection; it is not wanted any more."""
        link = self._links.get(agent_id)
        if link is not None:
            with suppress(ConnectionError):
                await link.connection.close(reason, refused=True)

    async def _converse(
        self, connection: AgentConnection, token: str, names: frozenset[str] | None
    ) -> None:
        """Hello, then both directions until one ends. Raises ``ProtocolError``, ``TokenRefused``."""
        now = self._journal.now()
        row = await self._journal.store.read(lambda db: find(db, token, now=now))
        if row is None:
            raise ProtocolError("the agent's token is not known here, or was revoked")
        hello = await _hello(connection)
        if names is not None and hello.agent_id not in names:
            told = ", ".join(sorted(names))[:100] or "nobody"
            raise ProtocolError(f"agent {hello.agent_id} shows a certificate of {told}")

        async def admit(change: Change) -> tuple[str | None, uuid.UUID]:
            admitted = await use(change.db, row.id, hello.agent_id, change.now)
            await registration.register(change, hello, joins=row.kind == JOIN)
            return admitted

        credential, token_id = await self._journal.write(REQUEST_ID, admit)
        link = AgentLink(hello.agent_id, connection)
        link.token_id = token_id
        old = self._links.get(hello.agent_id)
        self._links[hello.agent_id] = link
        halves: list[asyncio.Task[None]] = []
        try:
            if old is not None:
                with suppress(ConnectionError):
                    reason = "another connection of the same agent replaced this one"
                    await old.connection.close(reason, refused=True)
            log.info("agent %s connected (%s, %s)", hello.agent_id, hello.engine, hello.version)
            await link.send(
                Welcome(self._heartbeat_interval, self._sync_interval, credential, self.deployment)
            )
            halves += [
                asyncio.create_task(self._push_forever(link), name=f"push-{hello.agent_id}"),
                asyncio.create_task(self._read_forever(link), name=f"read-{hello.agent_id}"),
            ]
            done, _ = await asyncio.wait(halves, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            view: NodeView | None = None
            if self._links.get(hello.agent_id) is link:
                del self._links[hello.agent_id]
                view = self.statistics.forget(hello.agent_id)
            link.fail_calls()
            for task in halves:
                task.cancel()
            # The first fault was raised above; the other half mostly fails for the same reason.
            await asyncio.gather(*halves, return_exceptions=True)
            log.info("agent %s disconnected", hello.agent_id)
            if view is not None and view.kernels:
                with suppress(StoreError):  # the database is away, or this manager ends
                    await self._journal.store.write(
                        partial(keep, agent_id=link.agent_id, view=view)
                    )

    async def _read_forever(self, link: AgentLink) -> None:
        """Until the connection ends, or another one has its place: what it still carries is of the past."""
        while (frame := await link.connection.receive()) is not None:
            if self._links.get(link.agent_id) is not link:
                return
            await self._take(link, decode(frame))

    async def _take(self, link: AgentLink, message: AnyMessage) -> None:
        if isinstance(message, Report):
            await self._report(link, message)
        elif isinstance(message, Heartbeat):
            await self._journal.write(
                REQUEST_ID,
                lambda change: registration.heartbeat(change, link.agent_id, message),
            )
        elif isinstance(message, Measures):
            self.statistics.take(link.agent_id, message, self._journal.now())
        elif isinstance(message, Answer):
            link.answer(message)
        else:
            raise ProtocolError(f"an agent does not send {type(message).__name__} here")

    async def _report(self, link: AgentLink, report: Report) -> None:
        """Record durably, then acknowledge; what should not exist is drained."""
        await reach("report-received")
        for kernel in report.kernels:
            reports.check(kernel)

        async def work(change: Change) -> list[bool]:
            known = [
                await reports.record(change, link.agent_id, kernel) for kernel in report.kernels
            ]
            if report.whole:
                present = {(uuid.UUID(each.kernel_id), each.epoch) for each in report.kernels}
                await reports.missing(change, link.agent_id, present, link.handed)
            return known

        known = await self._journal.write(REQUEST_ID, work)
        await reach("report-recorded")
        link.handed -= {uuid.UUID(kernel.kernel_id) for kernel in report.kernels}
        before = set(link.strays)
        for kernel, fits in zip(report.kernels, known, strict=True):
            run = (kernel.kernel_id, kernel.epoch)
            if not fits:
                link.strays.add(run)
            elif kernel.status == Status.TERMINATED:
                link.strays.discard(run)
        if report.whole:
            link.strays &= {(kernel.kernel_id, kernel.epoch) for kernel in report.kernels}
        for kernel_id, epoch in link.strays - before:
            log.warning("agent %s runs stray %s/%d: draining", link.agent_id, kernel_id, epoch)
        if link.strays != before or link.held_back:
            link.changed.set()
        await link.send(Ack(report.sequence))

    async def _push_forever(self, link: AgentLink) -> None:
        """Send the wanted set at once, after each change, and on a slow tick."""
        tick = True
        while True:
            link.changed.clear()
            if tick or link.recheck:
                link.recheck = False
                await self._check_token(link)
            await self._push(link, always=tick)
            try:
                async with asyncio.timeout(min(self._sync_interval, *_renewals(link.last_sent))):
                    await link.changed.wait()
                tick = False
            except TimeoutError:
                tick = True

    async def _check_token(self, link: AgentLink) -> None:
        """Raise ``TokenRefused`` when what the agent dialled with was revoked meanwhile."""
        token_id = link.token_id
        if token_id is not None and not await self._journal.store.read(
            lambda db: still_good(db, token_id)
        ):
            raise TokenRefused("the agent's token was revoked")

    async def _push(self, link: AgentLink, *, always: bool) -> None:
        """Record which kernels are handed over before the agent can hear of them, then send."""

        async def look(db: AsyncSession) -> tuple[bool, Wanted | None]:
            status = await db.scalar(select(AgentRow.status).where(AgentRow.id == link.agent_id))
            if status != registration.ALIVE:
                return False, None  # its leases must not be renewed while it is not heard of
            waiting = await _scheduled(db, link.agent_id)
            return waiting, await wanted_set(db, link.agent_id, link.strays)

        link.held_back, wanted = await self._journal.store.read(look)
        if link.held_back and wanted is not None:
            room = personal.room(wanted.kernels)
            handed = await self._journal.write(
                REQUEST_ID, lambda change: _hand_over(change, link.agent_id, room, self._patience)
            )
            link.handed.update(handed)
            await reach("push-recorded")
            link.held_back, wanted = await self._journal.store.read(look)
        if wanted is not None and (always or wanted != link.last_sent):
            await link.send(wanted)
            link.last_sent = wanted
            await reach("push-sent")


def _renewals(wanted: Wanted | None) -> list[float]:
    """Seconds after which the leases of what was sent last should be renewed; the first stands for none."""
    leases = () if wanted is None else (each.lease for each in wanted.kernels)
    return [float("inf"), *(each / 3 for each in leases if each is not None)]


async def _hello(connection: AgentConnection) -> Hello:
    """The first frame. Raises ``ProtocolError``."""
    try:
        async with asyncio.timeout(HELLO_TIMEOUT):
            frame = await connection.receive()
    except TimeoutError:
        raise ProtocolError(f"no hello within {HELLO_TIMEOUT:g} seconds") from None
    if frame is None:
        raise ConnectionError("closed before hello")
    message = decode(frame)
    if not isinstance(message, Hello):
        raise ProtocolError(f"the first frame is {type(message).__name__}, not Hello")
    registration.check_hello(message)
    return message


async def _scheduled(db: AsyncSession, agent_id: str) -> bool:
    query = select(KernelRow.id).where(
        KernelRow.agent_id == agent_id, KernelRow.status == Status.SCHEDULED.value
    )
    return (await db.scalars(query.limit(1))).first() is not None


async def _hand_over(change: Change, agent_id: str, room: int, patience: float) -> list[uuid.UUID]:
    """SCHEDULED kernels of an agent become PREPARING; from here on only the agent can end them.

    Those whose files have no ``room`` follow when others run.
    """
    query = (
        select(KernelRow.session_id, KernelRow.id)
        .where(KernelRow.agent_id == agent_id, KernelRow.status == Status.SCHEDULED.value)
        .order_by(KernelRow.session_id)  # managers lock the sessions of several nodes in one order
    )
    handed: list[uuid.UUID] = []
    seen: dict[personal.Key, personal.Personal] = {}
    rules = await read_loss_rules(change.db)
    for session_id, kernel_id in (await change.db.execute(query)).all():
        loaded = await steps.load(change.db, session_id)
        if loaded is None:
            continue
        session, kernels = loaded
        own = await personal.read(change.db, session, seen)
        for kernel in kernels:
            mine = kernel.id == kernel_id and kernel.agent_id == agent_id
            weight = personal.weight(personal.files(session, kernel, own)) if mine else 0
            if weight > room:
                continue
            room -= weight
            if mine and kernel.status == Status.SCHEDULED and session.target == "RUNNING":
                cause = steps.CAUSES[Status.PREPARING]
                hand_over(session, rules.get(session.resource_group), patience)
                await change.move_kernel(session, kernel, Status.PREPARING, cause)
                handed.append(kernel.id)
        await steps.step(change, session, kernels)
    return handed


async def wanted_set(
    db: AsyncSession, agent_id: str, strays: Iterable[tuple[str, int]] = ()
) -> Wanted:
    """All that an agent should run, and all that it should end."""
    rows = (
        await db.execute(
            select(KernelRow, SessionRow, UserRow.username)
            .join(SessionRow, SessionRow.id == KernelRow.session_id)
            .join(UserRow, UserRow.id == SessionRow.owner_id)
            .where(
                KernelRow.agent_id == agent_id,
                KernelRow.status.in_([*(s.value for s in WANTED), Status.TERMINATING.value]),
            )
            .order_by(KernelRow.id)
        )
    ).all()
    shares: dict[tuple[uuid.UUID, int], list[Share]] = {}
    held = select(AllocationRow).where(
        AllocationRow.agent_id == agent_id, AllocationRow.freed_at.is_(None)
    )
    order = (AllocationRow.slot, AllocationRow.device_id)
    for row in await db.scalars(held.order_by(*order)):
        share = Share(row.slot, row.device_id, row.amount)
        shares.setdefault((row.kernel_id, row.epoch), []).append(share)
    pulls = await pull_rules(db, {kernel.image for kernel, _, _ in rows})
    seen: dict[personal.Key, personal.Personal] = {}
    kernels: list[KernelSpec] = []
    drain = set(strays) | await runs.lost(db, agent_id)
    for kernel, session, owner in rows:
        if kernel.status == Status.TERMINATING:
            drain.add((str(kernel.id), kernel.epoch))
        else:
            mine = shares.get((kernel.id, kernel.epoch), [])
            starts = kernel.status in STARTING
            brought = await personal.read(db, session, seen) if starts else personal.NOTHING
            pull = pulls.get(kernel.image)
            kernels.append(kernel_spec(kernel, session, owner, mine, brought, pull))
    networks = await clusters.wanted_networks(db, agent_id)
    return Wanted(tuple(kernels), tuple(sorted(drain)), networks)


def kernel_spec(
    kernel: KernelRow,
    session: SessionRow,
    owner: str,
    shares: Iterable[Share],
    brought: personal.Personal = personal.NOTHING,
    pull: ImagePull | None = None,
) -> KernelSpec:
    """Everything the agent needs for one run of a kernel."""
    spec = kernel.spec
    environ = {
        **spec.get("environ", {}),
        "PERIJOVE_SESSION_ID": str(session.id),
        "PERIJOVE_SESSION_NAME": session.name,
        "PERIJOVE_ATTEMPT": str(attempt_of(session)),
    }
    health = spec.get("health")
    return KernelSpec(
        kernel_id=str(kernel.id),
        session_id=str(session.id),
        epoch=kernel.epoch,
        session_name=session.name,
        owner=owner,
        hostname=kernel.hostname,
        image=kernel.image,
        command=tuple(spec.get("command", ())),
        environ=clusters.environ(session, kernel, environ),
        mounts=tuple(Mount(**mount) for mount in spec.get("mounts", ())),
        ports=tuple(Port(**port) for port in spec.get("ports", ())),
        shares=tuple(shares),
        shm_bytes=int(spec["shm_bytes"]),
        labels=dict(spec.get("labels", {})),
        start_timeout=float(spec.get("start_timeout", 300.0)),
        pull=pull,
        session_type=session.type,
        health=None if health is None else HealthCheck(**health),
        lease=lease_of(session),
        cluster=clusters.cluster_of(session, kernel),
        files=() if kernel.status not in STARTING else personal.files(session, kernel, brought),
        bootstrap=personal.BOOTSTRAP if personal.bootstrap_of(kernel, brought) else "",
        seccomp=spec.get("seccomp"),
    )
