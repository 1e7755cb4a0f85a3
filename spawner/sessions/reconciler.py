"""The level-triggered loop: brings every session from its status towards its target, and watches agents.

Most steps happen in the write that caused them; this loop starts with all live sessions after a
restart, repeats what failed with back-off, and looks again at everything on a slow tick.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial

from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from spawner.scheduler.policies import BUILT_IN, Policies, PolicyError
from spawner.sessions import ledger, nodes, registration, retention, retries, steps, usage
from spawner.sessions.durations import seconds_of
from spawner.sessions.idle_watch import IdleWatch
from spawner.sessions.idleness import LIFETIME, REASONS
from spawner.sessions.kinds import BATCH, INFERENCE
from spawner.sessions.losses import Rules
from spawner.sessions.metrics import Metrics
from spawner.sessions.snapshot import read_groups, read_loss_rules
from spawner.sessions.states import FINAL, IllegalTransition, Status, Target
from spawner.sessions.tables import AgentRow, ResourceGroupRow, SessionRow
from spawner.sessions.transitions import Change, Journal
from spawner.sessions.workqueue import WorkQueue
from store.database import StoreError

REQUEST_ID = "reconciler"
PRUNE_EVERY = dt.timedelta(hours=1)
ENDED = [status.value for status in FINAL]
WATCH_SHARE = 8.0
"""Agents are looked at this many times within their timeout."""
PAUSE_SHARE = 0.5
"""A manager that did not look for this part of the agents' timeout was suspended."""

log = logging.getLogger(__name__)


class Reconciler:
    """Works on sessions one by one; watches agents; repairs the ledger."""

    def __init__(
        self,
        journal: Journal,
        metrics: Metrics,
        idle: IdleWatch,
        *,
        tick: float,
        agent_timeout: float,
        history: dt.timedelta = dt.timedelta(days=90),
        policies: Policies = BUILT_IN,
    ) -> None:
        self._journal, self._metrics, self._policies = journal, metrics, policies
        self.idle = idle
        self._tick, self._timeout = tick, agent_timeout
        self.queue: WorkQueue[uuid.UUID] = WorkQueue()
        self._leads_since: dt.datetime | None = None
        self._history = history
        self._pruned: dt.datetime | None = None
        self.longest_pause = dt.timedelta(seconds=PAUSE_SHARE * agent_timeout)
        """Between two looks at agents and limits; after a longer one ``resume`` is called."""

    async def run(self) -> None:
        """Work until cancelled."""
        self.resume()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._work_forever())
                group.create_task(self._tick_forever())
                group.create_task(self._watch_forever())
        finally:
            self.queue.close()

    def resume(self) -> None:
        """Begin to watch, at first or after this process was suspended or its clock set: all it knew is old.

        Nothing is given up before whoever could not be heard meanwhile had the time to be heard of.
        """
        self._leads_since = self._journal.now()
        self.idle.begin()

    async def sweep(self) -> None:
        """Repair the ledger, forget old history, then look at every session that has not ended."""
        await self.repair()
        await self._journal.write(REQUEST_ID, self._account)
        await self._prune()
        for session_id in await self._journal.store.read(_live_sessions):
            self.queue.put(session_id)

    async def repair(self) -> ledger.Repair:
        """Repair the ledger now; whoever waits is looked at again if that changed anything."""

        async def work(change: Change) -> ledger.Repair:
            done = await ledger.repair(change.db, change.now)
            change.schedule = bool(done)
            return done

        done = await self._journal.write(REQUEST_ID, work)
        for drift in done.drifts:
            log.error("the ledger had drifted, now repaired: %s", drift)
        if done.freed or done.restored:
            log.error("%d allocations were held by nobody, %d were lost", done.freed, done.restored)
        self._metrics.repaired(done)
        return done

    async def _prune(self) -> None:
        now = self._journal.now()
        if self._pruned is not None and now - self._pruned < PRUNE_EVERY:
            return
        await self._journal.write(
            REQUEST_ID, lambda change: retention.prune(change.db, now, self._history)
        )
        self._pruned = now

    async def end_overdue(self) -> None:
        """End sessions that reached their run-time limit, and those that waited too long."""
        now = self._journal.now()
        found = await self._journal.store.read(lambda db: _overdue(db, now))
        await _all(
            partial(self._write, partial(_end, session_id=session_id, reason=reason, cause=cause))
            for session_id, reason, cause in found
        )

    async def _account(self, change: Change) -> None:
        """Charge usage, for groups that share fairly and those that may do so later."""
        groups = await read_groups(change.db, self._policies)
        half_lives = {name: policy.half_life for name, policy in groups.items()}
        await usage.settle(change.db, change.now, half_lives)

    async def watch_agents(self) -> None:
        """Mark agents LOST that were not heard of; end what waits for them beyond ``lost_after``.

        Neither before this manager has listened to them for as long as they may be silent.
        """
        now = self._journal.now()
        limit = now - dt.timedelta(seconds=self._timeout)
        heard = self._leads_since is None or self._leads_since <= limit
        agents, rules = await self._journal.store.read(_watched)
        emptied = await self._journal.store.read(nodes.drained)
        await _all(
            [
                *(partial(self._watch, agent, rules, now, limit) for agent in agents if heard),
                *(partial(self._write, partial(_empty, agent_id=agent)) for agent in emptied),
            ]
        )

    async def step(self, session_id: uuid.UUID) -> None:
        """One look at one session."""
        await self._journal.write(REQUEST_ID, lambda change: steps.advance(change, session_id))

    async def _write(self, work: Callable[[Change], Awaitable[object]]) -> None:
        await self._journal.write(REQUEST_ID, work)

    async def _watch(
        self, agent: AgentRow, rules: Mapping[str, Rules], now: dt.datetime, limit: dt.datetime
    ) -> None:
        if agent.status == registration.ALIVE and agent.last_seen <= limit:
            lose = partial(registration.lose, agent_id=agent.id, not_seen_since=limit)
            if await self._journal.write(REQUEST_ID, lose):
                log.warning("agent %s is lost: last seen %s", agent.id, agent.last_seen)
        elif agent.lost_at is not None and rules:
            silent = (now - agent.last_seen).total_seconds()
            least = [
                rule.after
                for each in rules.values()
                for rule in each.values()
                if rule.after is not None
            ]
            if silent >= min(least, default=silent + 1):
                await self._write(
                    partial(registration.give_up, agent_id=agent.id, silent=silent, rules=rules)
                )

    async def _work_forever(self) -> None:
        while True:
            session_id = await self.queue.get()
            try:
                await self.step(session_id)
            except (StoreError, SQLAlchemyError, IllegalTransition) as error:
                delay = self.queue.failed(session_id)
                log.error("session %s: next look in %.2f s: %s", session_id, delay, error)
            except Exception as error:
                delay = self.queue.failed(session_id)
                log.exception("session %s: next look in %.2f s: %s", session_id, delay, error)
            except asyncio.CancelledError:
                self.queue.done(session_id)
                raise
            else:
                self.queue.done(session_id)

    async def _tick_forever(self) -> None:
        while True:
            await _told("the sweep failed", self.sweep)
            await asyncio.sleep(self._tick)

    async def _watch_forever(self) -> None:
        looked = self._journal.now()
        while True:
            await asyncio.sleep(self._timeout / WATCH_SHARE)
            before, looked = looked, self._journal.now()
            if not dt.timedelta() <= looked - before <= self.longest_pause:
                log.warning("%s without a look at the agents: beginning anew", looked - before)
                self.resume()
            await _told("agents could not be looked at", self.watch_agents)
            await _told("limits could not be looked at", self.end_overdue)
            await _told("idle sessions could not be looked at", self.idle.look)


async def _told(what: str, work: Callable[[], Awaitable[None]]) -> None:
    """Do what is done again soon: what fails stops nothing else, and is logged."""
    try:
        await work()
    except (StoreError, SQLAlchemyError, PolicyError) as error:
        log.error("%s: %s", what, error)
    except Exception as error:
        log.exception("%s: %s", what, error)


async def _all(works: Iterable[Callable[[], Awaitable[None]]]) -> None:
    """Do all, one after the other; what fails keeps none of the others from being done, and is raised then."""
    failed: list[Exception] = []
    for work in works:
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - raised below
            failed.append(error)
    if failed:
        raise ExceptionGroup(f"{len(failed)} failed", failed)


async def _empty(change: Change, agent_id: str) -> None:
    row = await change.db.get_one(AgentRow, agent_id, with_for_update=True, populate_existing=True)
    if row.drain is not None:
        await nodes.empty(change, row)


async def _live_sessions(db: AsyncSession) -> list[uuid.UUID]:
    return list(await db.scalars(select(SessionRow.id).where(SessionRow.status.not_in(ENDED))))


async def _watched(db: AsyncSession) -> tuple[list[AgentRow], dict[str, Rules]]:
    """All agents, and what each resource group does with sessions of lost ones."""
    agents = list(await db.scalars(select(AgentRow)))
    return agents, await read_loss_rules(db)


def _seconds(group: ResourceGroupRow, option: str) -> float | None:
    value = group.options.get(option)
    return None if value is None else seconds_of(value)


async def _overdue(db: AsyncSession, now: dt.datetime) -> list[tuple[uuid.UUID, str, str]]:
    """Sessions to end, with slug and sentence; ``_end`` looks again whether they still are."""
    query = select(SessionRow.id, SessionRow.type).where(
        SessionRow.ends_at <= now,
        SessionRow.target == Target.RUNNING.value,
        SessionRow.status.not_in(ENDED),
    )
    limit = "its run-time limit was reached"
    found = [
        (each, steps.TASK_TIMEOUT if kind in (BATCH, INFERENCE) else REASONS[LIFETIME], limit)
        for each, kind in await db.execute(query)
    ]
    for group in await db.scalars(select(ResourceGroupRow)):
        timeout = _seconds(group, "pending_timeout")
        if timeout is None:
            continue
        late = select(SessionRow.id).where(
            SessionRow.resource_group == group.name,
            SessionRow.status == Status.PENDING.value,
            SessionRow.target == Target.RUNNING.value,
            func.coalesce(SessionRow.starts_at, SessionRow.created_at)
            <= now - dt.timedelta(seconds=timeout),
        )
        told = f"it waited longer than the {timeout:g} seconds that its resource group allows"
        found += [(each, steps.PENDING_TIMEOUT, told) for each in await db.scalars(late)]
    return found


async def _end(change: Change, session_id: uuid.UUID, reason: str, cause: str) -> None:
    loaded = await steps.load(change.db, session_id)
    if loaded is None or loaded[0].target == Target.TERMINATED:
        return
    session, kernels = loaded
    if reason == steps.PENDING_TIMEOUT:
        over = session.status == Status.PENDING
    else:
        over = session.ends_at is not None and session.ends_at <= change.now
    if not over:  # it started, or its owner extended it, since it was found
        return
    timeout = reason == steps.TASK_TIMEOUT
    if timeout and await retries.try_again(change, session, kernels, retries.TIMEOUT, cause):
        await steps.step(change, session, kernels)
        return
    if timeout:
        cause = retries.exhausted(session, retries.TIMEOUT, cause)
    if session.type == "batch" and session.result == "undefined":
        session.result = "failure"
    steps.ask_to_end(session, reason, cause)
    await steps.step(change, session, kernels)
