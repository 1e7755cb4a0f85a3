"""Use cases of nodes: list, close, empty, remove. A node here is an agent and the host that it runs on."""

from __future__ import annotations

import datetime as dt
import logging
from collections import defaultdict
from collections.abc import Callable

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from authenticator.principals import Principal, Scope, require
from authenticator.problems import BadRequest, InvalidParameters, NotFound
from authenticator.tables import UserRow
from spawner.agent.protocol import UNWELL
from spawner.sessions import degraded, runs, steps
from spawner.sessions.durations import seconds_of
from spawner.sessions.limits import LIVE
from spawner.sessions.registration import ALIVE, LOST, REMOVED, sessions_on
from spawner.sessions.requests import AgentSession, AgentView
from spawner.sessions.states import FINAL, Status, Target
from spawner.sessions.tables import (
    AgentDeviceRow,
    AgentRow,
    AgentTokenRow,
    KernelRow,
    SessionRow,
)
from spawner.sessions.transitions import Change, Journal
from spawner.sessions.wishes import wishes_of

EMPTIED = "its node is being emptied"
"""What owners of sessions are told that may go on until their node's grace is over."""
Views = list[AgentView]
log = logging.getLogger(__name__)


class NodeService:
    """Nodes, for superadmins; every method demands ``Scope.ADMIN``."""

    def __init__(self, journal: Journal, is_connected: Callable[[str], bool]) -> None:
        self._journal, self._is_connected = journal, is_connected
        self._store = journal.store

    async def list(self, principal: Principal) -> list[AgentView]:
        """All nodes that were not removed, with devices, usage and sessions."""
        require(principal, Scope.ADMIN)
        return await self._store.read(lambda db: self._views(db, None))

    async def set_schedulable(
        self, principal: Principal, agent_id: str, schedulable: bool, request_id: str
    ) -> AgentView:
        """Cordon (false) or uncordon (true) a node; the latter ends a drain too."""
        require(principal, Scope.ADMIN)

        async def work(change: Change) -> None:
            row = await _row(change.db, agent_id)
            if row.schedulable is not schedulable or row.drain is not None:
                row.schedulable = schedulable
                if schedulable and row.drain is not None:
                    row.drain = None
                    await _stay(change, agent_id)
                word = "opened for" if schedulable else "closed to"
                _note(change, row, f"{word} new sessions by {principal.username}")

        await self._journal.write(request_id, work)
        return await self._view(agent_id)

    async def drain(
        self, principal: Principal, agent_id: str, grace: object, request_id: str
    ) -> AgentView:
        """Empty a node: nothing new comes; batch sessions and starts go back to the queue at once.

        Others are told, and end after ``grace`` (a duration; None: when they like). Sessions that must not
        be preempted count among the others. Harmless when repeated, with another grace too.
        """
        require(principal, Scope.ADMIN)
        try:
            seconds = None if grace is None else seconds_of(grace)
        except ValueError as error:
            raise InvalidParameters({"grace": str(error)}) from error

        async def work(change: Change) -> None:
            row = await _row(change.db, agent_id)
            deadline = None if seconds is None else change.now + dt.timedelta(seconds=seconds)
            row.schedulable = False
            row.drain = {
                "since": change.now.isoformat(),
                "deadline": None if deadline is None else deadline.isoformat(),
            }
            _note(change, row, f"being emptied by {principal.username}")
            await empty(change, row)

        await self._journal.write(request_id, work)
        log.info("%s drains the node %s", principal.username, agent_id)
        return await self._view(agent_id)

    async def remove(
        self, principal: Principal, agent_id: str, *, forced: bool, request_id: str
    ) -> None:
        """Take a node out of the cluster: its tokens are worth nothing, it comes back with a new one only.

        Raises ``BadRequest`` while it holds sessions; ``forced`` ends those of a node that is lost for ever, but
        clusters that can do without their part there.
        """
        require(principal, Scope.ADMIN)

        async def work(change: Change) -> None:
            row = await _row(change.db, agent_id)
            held = await sessions_on(change, agent_id)
            kernels = await _held(change.db, agent_id)
            if kernels and not (forced and row.status == LOST):
                hint = (
                    "drain it first" if row.status == ALIVE else "say forced if it is lost for ever"
                )
                raise BadRequest(f"{len(kernels)} containers are on {agent_id}: {hint}")
            cause = f"its node was removed by {principal.username}"
            for session in held:
                loaded = await steps.load(change.db, session.id)
                if loaded is not None and await degraded.let_go(change, *loaded, agent_id, cause):
                    continue
                steps.ask_to_end(session, steps.AGENT_TERMINATED, cause)
                await steps.advance(change, session.id)
            for kernel in await _held(change.db, agent_id):
                session = await change.db.get_one(SessionRow, kernel.session_id)
                for status in (Status.TERMINATING, Status.TERMINATED):
                    await change.move_kernel(session, kernel, status, cause)
                await steps.advance(change, session.id)
            await runs.missing(change, agent_id, present=())
            await change.db.execute(
                delete(AgentDeviceRow).where(AgentDeviceRow.agent_id == agent_id)
            )
            tokens = select(AgentTokenRow).where(AgentTokenRow.agent_id == agent_id)
            for token in await change.db.scalars(tokens):
                token.revoked_at = token.revoked_at or change.now
            change.note_agent(agent_id, row.status, REMOVED, f"removed by {principal.username}")
            row.status, row.schedulable, row.drain, row.images = REMOVED, False, None, []
            change.schedule = True

        await self._journal.write(request_id, work)
        log.info("%s removed the node %s", principal.username, agent_id)

    async def _view(self, agent_id: str) -> AgentView:
        return (await self._store.read(lambda db: self._views(db, agent_id)))[0]

    async def _views(self, db: AsyncSession, only: str | None) -> Views:
        query = select(AgentRow).where(AgentRow.status != REMOVED).order_by(AgentRow.id)
        agents = await db.scalars(query if only is None else query.where(AgentRow.id == only))
        devices: dict[str, list[AgentDeviceRow]] = defaultdict(list)
        order = (AgentDeviceRow.slot, AgentDeviceRow.device_id)
        for device in await db.scalars(select(AgentDeviceRow).order_by(*order)):
            devices[device.agent_id].append(device)
        held: dict[str, list[AgentSession]] = defaultdict(list)
        rows = await db.execute(
            select(KernelRow, SessionRow, UserRow.username)
            .join(SessionRow, SessionRow.id == KernelRow.session_id)
            .join(UserRow, UserRow.id == SessionRow.owner_id)
            .where(KernelRow.status.in_(LIVE))
            .order_by(SessionRow.created_at)
        )
        for kernel, session, owner in rows:
            item = AgentSession(session.id, session.name, owner, kernel.status, kernel.slots)
            held[kernel.agent_id or ""].append(item)
        return [
            _agent_view(row, devices[row.id], held[row.id], self._is_connected(row.id))
            for row in agents
        ]


async def empty(change: Change, row: AgentRow) -> None:
    """One look at a node that is being emptied: who can goes, who must ends, the others are told when."""
    deadline = (row.drain or {}).get("deadline")
    over = deadline is not None and dt.datetime.fromisoformat(deadline) <= change.now
    for session in await sessions_on(change, row.id):
        if session.target == Target.TERMINATED:
            continue
        loaded = await steps.load(change.db, session.id)
        if loaded is None or Status(loaded[0].status) in (*FINAL, Status.PREEMPTED):
            continue
        held, kernels = loaded
        movable = held.type == "batch" and wishes_of(held.scheduling).preemptible
        if any(k.status == Status.TERMINATING and k.agent_id == row.id for k in kernels):
            continue  # it is on its way already
        if movable or held.status not in (Status.RUNNING, Status.RUNNING_DEGRADED):
            cause = "put back to the queue: its node is being emptied"
            await steps.put_back(change, held, kernels, cause, steps.AGENT_DRAINED)
        elif over:
            steps.ask_to_end(held, steps.AGENT_DRAINED, "its node was emptied")
            await steps.step(change, held, kernels)
        else:
            when = "" if deadline is None else f": it ends at {deadline[:16].replace('T', ' ')} UTC"
            told = f"{EMPTIED}{when}"
            if held.status_info != told:
                held.status_info = told
                change.note(held, told)


async def _stay(change: Change, agent_id: str) -> None:
    """The node is not emptied after all: whoever was told that a session ends learns that it does not."""
    for session in await sessions_on(change, agent_id):
        if session.status_info.startswith(EMPTIED) and session.target == Target.RUNNING:
            session.status_info = "its node is not being emptied any more"
            change.note(session, session.status_info)


async def drained(db: AsyncSession) -> list[str]:
    """Nodes that are being emptied and still hold something."""
    query = select(AgentRow.id).where(
        AgentRow.drain.is_not(None),
        AgentRow.id.in_(select(KernelRow.agent_id).where(KernelRow.status.in_(LIVE))),
    )
    return list(await db.scalars(query))


def _note(change: Change, row: AgentRow, cause: str) -> None:
    change.note_agent(row.id, row.status, row.status, cause)
    change.schedule = True


async def _row(db: AsyncSession, agent_id: str) -> AgentRow:
    row = await db.get(AgentRow, agent_id, with_for_update=True, populate_existing=True)
    if row is None or row.status == REMOVED:
        raise NotFound("agent", f"there is no agent {agent_id[:80]!r}")
    return row


async def _held(db: AsyncSession, agent_id: str) -> list[KernelRow]:
    query = select(KernelRow).where(KernelRow.agent_id == agent_id, KernelRow.status.in_(LIVE))
    return list(await db.scalars(query))


def _agent_view(
    row: AgentRow, devices: list[AgentDeviceRow], sessions: list[AgentSession], connected: bool
) -> AgentView:
    capacity: dict[str, int] = defaultdict(int)
    used: dict[str, int] = defaultdict(int)
    for device in devices:
        capacity[device.slot] += device.capacity
        used[device.slot] += device.used
    return AgentView(
        id=row.id,
        resource_group=row.resource_group,
        status=row.status,
        schedulable=row.schedulable,
        connected=connected and row.status == ALIVE,
        architecture=row.architecture,
        engine=row.engine,
        version=row.version,
        address=row.address,
        first_contact=row.first_contact,
        last_seen=row.last_seen,
        lost_at=row.lost_at,
        capacity=dict(capacity),
        used=dict(used),
        devices=tuple(
            {
                "slot": device.slot,
                "device_id": device.device_id,
                "model": device.model,
                "numa_node": device.numa_node,
                "capacity": device.capacity,
                "used": device.used,
                "attributes": dict(device.attributes),
            }
            for device in devices
        ),
        sessions=tuple(sessions),
        images=tuple(row.images),
        drain=row.drain,
        unwell=(row.features or {}).get(UNWELL),
    )
