"""The level-triggered loop: brings every session from its status towards its target, and watches agents.

Most steps happen in the write that caused them; this loop starts with all live sessions after a
restart, repeats what failed with back-off, and looks again at everything on a slow tick.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import uuid
from functools import partial

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from spawner.sessions import ledger, registration, steps
from spawner.sessions.metrics import Metrics
from spawner.sessions.states import FINAL, IllegalTransition
from spawner.sessions.tables import AgentRow, ResourceGroupRow, SessionRow
from spawner.sessions.transitions import Change, Journal
from spawner.sessions.workqueue import WorkQueue
from store.database import StoreError

REQUEST_ID = "reconciler"
WATCH_SHARE = 8.0
"""Agents are looked at this many times within their timeout."""

log = logging.getLogger(__name__)


class Reconciler:
    """Works on sessions one by one; watches agents; repairs the ledger."""

    def __init__(
        self, journal: Journal, metrics: Metrics, *, tick: float, agent_timeout: float
    ) -> None:
        self._journal, self._metrics = journal, metrics
        self._tick, self._timeout = tick, agent_timeout
        self.queue: WorkQueue[uuid.UUID] = WorkQueue()
        self._leads_since: dt.datetime | None = None

    async def run(self) -> None:
        """Work until cancelled."""
        self._leads_since = self._journal.now()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._work_forever())
                group.create_task(self._tick_forever())
                group.create_task(self._watch_forever())
        finally:
            self.queue.close()

    async def sweep(self) -> None:
        """Repair the ledger, then look at every session that has not ended."""
        drifts = await self._journal.write(
            REQUEST_ID, lambda change: ledger.repair(change.db, change.now)
        )
        for drift in drifts:
            log.error("the ledger had drifted, now repaired: %s", drift)
        self._metrics.repaired(len(drifts))
        for session_id in await self._journal.store.read(_live_sessions):
            self.queue.put(session_id)

    async def watch_agents(self) -> None:
        """Mark agents LOST that were not heard of; end what waits for them beyond ``lost_after``."""
        now = self._journal.now()
        limit = now - dt.timedelta(seconds=self._timeout)
        grace = self._leads_since is None or self._leads_since <= limit
        agents = await self._journal.store.read(_watched)
        for agent, lost_after in agents:
            if agent.status == registration.ALIVE and agent.last_seen <= limit and grace:
                agent_id = agent.id
                lost = await self._journal.write(
                    REQUEST_ID, partial(registration.lose, agent_id=agent_id, not_seen_since=limit)
                )
                if lost:
                    log.warning("agent %s is lost: last seen %s", agent_id, agent.last_seen)
            elif agent.lost_at is not None and lost_after is not None:
                await self._give_up(agent, lost_after, now)

    async def step(self, session_id: uuid.UUID) -> None:
        """One look at one session."""
        await self._journal.write(REQUEST_ID, lambda change: steps.advance(change, session_id))

    async def _give_up(self, agent: AgentRow, lost_after: float, now: dt.datetime) -> None:
        if agent.last_seen + dt.timedelta(seconds=lost_after) > now:
            return

        async def work(change: Change) -> None:
            row = await change.db.get(AgentRow, agent.id, populate_existing=True)
            if row is not None and row.status == registration.LOST:
                await registration.give_up(change, agent.id, lost_after)

        await self._journal.write(REQUEST_ID, work)

    async def _work_forever(self) -> None:
        while True:
            session_id = await self.queue.get()
            try:
                await self.step(session_id)
            except (StoreError, SQLAlchemyError, IllegalTransition) as error:
                delay = self.queue.failed(session_id)
                log.error("session %s: next look in %.2f s: %s", session_id, delay, error)
            except asyncio.CancelledError:
                self.queue.done(session_id)
                raise
            else:
                self.queue.done(session_id)

    async def _tick_forever(self) -> None:
        while True:
            try:
                await self.sweep()
            except (StoreError, SQLAlchemyError) as error:
                log.error("the sweep failed, trying again at the next tick: %s", error)
            await asyncio.sleep(self._tick)

    async def _watch_forever(self) -> None:
        while True:
            await asyncio.sleep(self._timeout / WATCH_SHARE)
            try:
                await self.watch_agents()
            except (StoreError, SQLAlchemyError) as error:
                log.error("agents could not be looked at: %s", error)


async def _live_sessions(db: AsyncSession) -> list[uuid.UUID]:
    ended = [status.value for status in FINAL]
    return list(await db.scalars(select(SessionRow.id).where(SessionRow.status.not_in(ended))))


async def _watched(db: AsyncSession) -> list[tuple[AgentRow, float | None]]:
    """Agents with their groups' ``lost_after``."""
    rows = await db.execute(
        select(AgentRow, ResourceGroupRow).join(
            ResourceGroupRow, ResourceGroupRow.name == AgentRow.resource_group
        )
    )
    return [
        (agent, float(after) if (after := group.options.get("lost_after")) is not None else None)
        for agent, group in rows
    ]
