"""The scheduler loop: wake, read a snapshot, plan, and apply the plan in one write that checks it again."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from spawner.scheduler.check import Accounts
from spawner.scheduler.model import (
    Explanation,
    KernelPlacement,
    Placement,
    Plan,
    Preemption,
    Reason,
    SessionRequest,
    Snapshot,
)
from spawner.scheduler.observe import Observer, unobserved
from spawner.scheduler.plan import plan
from spawner.scheduler.policies import BUILT_IN, Policies
from spawner.sessions import clusters, ledger, steps, telling
from spawner.sessions.failpoints import reach
from spawner.sessions.limits import LIVE, Payer, payable, read_quotas, summed
from spawner.sessions.metrics import Metrics
from spawner.sessions.registration import ALIVE
from spawner.sessions.snapshot import Reading, read_snapshot
from spawner.sessions.states import IllegalTransition, Status, Target
from spawner.sessions.stopwatch import Stopwatch
from spawner.sessions.tables import AgentRow, HistoryRow, KernelRow, SessionRow
from spawner.sessions.telling import Telling
from spawner.sessions.transitions import Change, Journal

DEBOUNCE = 0.002
"""Seconds in which further wake-ups join a pass. One rests as long as it took, so that passes take half the time."""
THREAD_SIZE = 2_000
"""From so many pending sessions times agents on, the plan is made in a thread."""
MAX_REFUSALS = 5
"""Passes in a row that follow a refused placement at once; after that the slow tick is awaited."""
RETRY = 1.0
"""Seconds before the next pass after one that failed; they double with each further one, up to the slow tick."""
COUNTED_EVERY = 60.0
"""Seconds after which the counts of passes are kept although nothing else is to be written."""
REQUEST_ID = "scheduler"
UNEXPECTED = Reason("error", "its start could not be recorded; it will be tried again")
"""For a part of a plan that failed by itself; what failed is in the log, for administrators."""

T = TypeVar("T")
Planner = Callable[[Snapshot, Policies, Observer], Plan]
Committing = Callable[[str], None]
"""Told of the waiting session whose part of the plan is carried out next; of ``""`` when that is over."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class PassResult:
    """What one pass did."""

    placed: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    """Sessions for which the plan did not hold any more; they keep their places."""
    refusals: list[str] = field(default_factory=list)
    """The names of the reasons."""
    preempted: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    waiting: int = 0


class SchedulerLoop:
    """Runs a pass after each wake-up, and on a slow tick."""

    def __init__(
        self,
        journal: Journal,
        metrics: Metrics,
        tick: float,
        policies: Policies = BUILT_IN,
        planner: Planner = plan,
    ) -> None:
        self._journal, self._metrics, self._tick = journal, metrics, tick
        self._policies, self._planner = policies, planner
        self._woken = asyncio.Event()
        self._next_start: float | None = None
        self._rests_until = 0.0
        self._uncounted: dict[str, int] = {}
        """Passes by resource group that are not in rows yet."""
        self._counted_at = 0.0

    def wake(self) -> None:
        """Something changed that may let a session start."""
        self._woken.set()

    async def run(self) -> None:
        """Pass after pass until cancelled; one that fails is logged and made again, ever more patiently."""
        refusals, failures = 0, 0
        self.wake()
        while True:
            await self._wait()
            self._woken.clear()
            try:
                result = await self.run_once()
            except Exception as error:
                failures += 1
                delay = min(self._tick, RETRY * 2 ** (failures - 1))
                log.exception("a scheduling pass failed, again in %g s: %s", delay, error)
                await asyncio.sleep(delay)
                self.wake()
                continue
            failures = 0
            refusals = refusals + 1 if result.refused else 0
            if 0 < refusals <= MAX_REFUSALS:
                self.wake()

    async def run_once(self) -> PassResult:
        """One pass."""
        started = time.perf_counter()
        reading, counts = await self._journal.store.read(self._read)
        snapshot = reading.snapshot
        watch = Stopwatch()
        read = time.perf_counter()
        if len(snapshot.pending) * max(1, len(snapshot.agents)) >= THREAD_SIZE:
            planned = await asyncio.to_thread(self._plan, reading, watch)
        else:
            planned = self._plan(reading, watch)
        decided = time.perf_counter()
        if planned.placements:
            await reach("schedule-planned")
        self._next_start = min(
            (each.starts_at for each in snapshot.pending if (each.starts_at or 0) > snapshot.now),
            default=None,
            key=lambda at: at or 0.0,
        )
        for group in {each.resource_group for each in snapshot.pending}:
            self._uncounted[group] = self._uncounted.get(group, 0) + 1
        passes = {group: counts.get(group, 0) + more for group, more in self._uncounted.items()}
        tellings = telling.to_tell(planned.waiting, reading)
        groups = {each.session_id: each.resource_group for each in snapshot.pending}
        result = await self._write(planned, tellings, passes, partial(_committing, watch, groups))
        result.waiting = len(planned.waiting)
        applied = time.perf_counter()
        self._rests_until = applied + min(applied - started, 1.0)
        phases = {"read": read - started, "plan": decided - read, "apply": applied - decided}
        self._metrics.scheduled(phases, result, watch.seconds)
        return result

    async def _read(self, db: AsyncSession) -> tuple[Reading, dict[str, int]]:
        reading = await read_snapshot(db, self._journal.now(), (), self._policies)
        counted = await telling.read_passes(db)
        return reading, {group: count for group, (count, _) in counted.items()}

    async def _write(
        self,
        planned: Plan,
        tellings: Sequence[Telling],
        passes: Mapping[str, int],
        committing: Committing,
    ) -> PassResult:
        """The plan in one write; then what people are told, in several, so that others can write between."""
        acts = bool(planned.placements or planned.preemptions or planned.cancelled)
        result = PassResult()
        now = time.monotonic()
        if acts or tellings or (passes and now - self._counted_at > COUNTED_EVERY):

            async def work(change: Change) -> PassResult:
                await telling.count_passes(change.db, passes, change.now)
                return await apply(change, planned, committing=committing)

            result = await self._journal.write(REQUEST_ID, work)
            self._uncounted.clear()
            self._counted_at = now
        for start in range(0, len(tellings), telling.BATCH):
            batch = tellings[start : start + telling.BATCH]
            await self._journal.write(
                REQUEST_ID, partial(telling.tell, tellings=batch, passes=passes)
            )
        if acts or tellings:
            await reach("schedule-applied")
        return result

    def _plan(self, reading: Reading, watch: Observer) -> Plan:
        """The plan; a resource group whose policy fails waits, and keeps no other from going on."""
        broken = dict(reading.broken)
        snapshot = _without(reading.snapshot, broken)
        try:
            planned = self._planner(snapshot, self._policies, watch)
        except Exception:
            for group in snapshot.groups:
                only = _only(snapshot, group.name)
                try:
                    self._planner(only, self._policies, unobserved)
                except Exception as error:
                    broken[group.name] = f"{type(error).__name__}: {error}"
                    log.exception("resource group %s cannot be scheduled", group.name)
            if len(broken) == len(reading.broken):
                raise
            planned = self._planner(_without(snapshot, broken), self._policies, watch)
        waiting = tuple(
            _not_scheduled(each)
            for each in reading.snapshot.pending
            if each.resource_group in broken
        )
        return replace(planned, waiting=(*planned.waiting, *waiting)) if waiting else planned

    async def _wait(self) -> None:
        timeout = self._tick
        if self._next_start is not None:
            due = self._next_start - self._journal.now().timestamp()
            timeout = min(timeout, max(0.0, due))
        with contextlib.suppress(TimeoutError):  # a slow tick makes up for wake-ups that got lost
            async with asyncio.timeout(timeout):
                await self._woken.wait()
            await asyncio.sleep(max(DEBOUNCE, self._rests_until - time.perf_counter()))


def _without(snapshot: Snapshot, groups: Mapping[str, str]) -> Snapshot:
    if not groups:
        return snapshot
    return replace(
        snapshot,
        groups=tuple(each for each in snapshot.groups if each.name not in groups),
        pending=tuple(each for each in snapshot.pending if each.resource_group not in groups),
    )


def _only(snapshot: Snapshot, group: str) -> Snapshot:
    return replace(
        snapshot,
        groups=tuple(each for each in snapshot.groups if each.name == group),
        pending=tuple(each for each in snapshot.pending if each.resource_group == group),
    )


def _not_scheduled(session: SessionRequest) -> Explanation:
    """For those in a resource group whose policy fails; what failed is in the log, for administrators."""
    told = (
        f"the scheduling policy of resource group {session.resource_group!r} fails:"
        " an administrator has to repair it"
    )
    return Explanation(session.session_id, 1, f"waiting: {told}", (Reason("policy", told),))


def _committing(watch: Observer, groups: Mapping[str, str], session_id: str) -> None:
    group = groups.get(session_id, "")
    watch(group, "commit" if group else "")


def _unmeasured(session_id: str) -> None:
    """Nobody wants to know."""


async def apply(
    change: Change,
    planned: Plan,
    told: Sequence[Explanation] = (),
    committing: Committing = _unmeasured,
) -> PassResult:
    """Carry a plan out: each part stands or falls alone, checked against rows as they are now.

    ``told`` are explanations to be written along.
    """
    result = PassResult()
    for reason in planned.cancelled:
        committing(str(reason.data["session_id"]))
        if await _alone(change, "cancellation", partial(_cancel, change, reason)) is True:
            result.cancelled.append(str(reason.data["session_id"]))
    for preemption in planned.preemptions:
        committing(preemption.for_session_id)
        if await _alone(change, "preemption", partial(_preempt, change, preemption)) is True:
            result.preempted.append(preemption.victim_id)
    accounts = await _accounts(change.db, planned.placements)
    for placement in planned.placements:
        committing(placement.session_id)
        outcome = await _alone(change, "placement", partial(_place, change, placement, accounts))
        if outcome is Outcome.PLACED:
            result.placed.append(placement.session_id)
        elif outcome is not Outcome.GONE:
            reason = outcome if isinstance(outcome, Reason) else UNEXPECTED
            result.refused.append(placement.session_id)
            result.refusals.append(reason.name)
            await telling.refused(change, uuid.UUID(placement.session_id), reason)
    committing("")
    await telling.tell(change, [Telling(each, "") for each in told], {})
    return result


async def _accounts(db: AsyncSession, placements: Sequence[Placement]) -> Accounts:
    """The limits of all whose sessions are to start, as they are now; they stay until the commit."""
    ids = [uuid.UUID(each.session_id) for each in placements]
    if not ids:
        return Accounts(())
    query = select(
        SessionRow.access_key, SessionRow.project_id, SessionRow.domain, SessionRow.owner_id
    ).where(SessionRow.id.in_(ids))
    payers = {
        Payer(key, str(project), domain, str(owner))
        for key, project, domain, owner in await db.execute(query)
    }
    return Accounts(await read_quotas(db, payers, hold=True))


async def _alone(change: Change, what: str, work: Callable[[], Awaitable[T]]) -> T | Reason | None:
    """Run a part of the plan in a SAVEPOINT.

    The reason when rows that changed meanwhile refused it; None when the database or a rule of the
    engine did.
    """
    kept = (list(change.events), set(change.agents), change.schedule)
    savepoint = await change.db.begin_nested()
    try:
        done = await work()
        await savepoint.commit()
    except (SQLAlchemyError, IllegalTransition, ledger.AllocationRefused) as error:
        await savepoint.rollback()
        change.events[:], change.agents, change.schedule = kept
        expected = isinstance(error, ledger.AllocationRefused)
        log.log(logging.INFO if expected else logging.ERROR, "a %s was refused: %s", what, error)
        return error.reason if isinstance(error, ledger.AllocationRefused) else None
    return done


class Outcome(enum.Enum):
    """What became of a placement."""

    PLACED = enum.auto()
    REFUSED = enum.auto()
    GONE = enum.auto()
    """The session does not wait any more: nothing to place, and nothing to try again."""


async def _place(change: Change, placement: Placement, accounts: Accounts) -> Outcome:
    loaded = await steps.load(change.db, uuid.UUID(placement.session_id))
    if loaded is None:
        return Outcome.GONE
    session, rows = loaded
    if session.status != Status.PENDING or session.target != Target.RUNNING:
        return Outcome.GONE
    kernels = {str(row.id): row for row in rows}
    if set(kernels) != {each.kernel_id for each in placement.kernels}:
        return Outcome.REFUSED
    request = payable(session, rows)
    amounts = summed(rows)
    violated, _ = accounts.violations(request, amounts)
    if violated:
        raise ledger.AllocationRefused(violated[0], placement.kernels[0].agent_id)
    here = Counter(each.agent_id for each in placement.kernels)
    for each in placement.kernels:
        await _check_agent(change.db, session, each, here[each.agent_id])
        kernel = kernels[each.kernel_id]
        await ledger.allocate(
            change.db, kernel.id, kernel.epoch + 1, each.agent_id, each.shares, change.now
        )
    for each in placement.kernels:
        kernel = kernels[each.kernel_id]
        kernel.epoch += 1
        kernel.agent_id, kernel.exit_code = each.agent_id, None
        await change.move_kernel(session, kernel, Status.SCHEDULED, "a node was chosen")
    clusters.connect(session, rows)
    kept = session.status_data.get("scheduler")
    if kept:
        change.db.add(HistoryRow(**telling.ended_attempt(session, kept, change)))
    over = ("scheduler", "retry")
    session.status_data = {k: v for k, v in session.status_data.items() if k not in over}
    await change.move_session(session, Status.SCHEDULED, "resources were found", reason="scheduled")
    accounts.charge(request, amounts)
    return Outcome.PLACED


async def _cancel(change: Change, reason: Reason) -> bool:
    """End a session that can never start because a parent failed."""
    loaded = await steps.load(change.db, uuid.UUID(str(reason.data["session_id"])))
    if loaded is None or loaded[0].status != Status.PENDING:
        return False
    steps.ask_to_end(loaded[0], steps.DEPENDENCY_FAILED, reason.message)
    await steps.step(change, *loaded)
    return True


async def _preempt(change: Change, preemption: Preemption) -> bool:
    """End a victim, unless the one that it makes room for does not wait any more."""
    waiting = await change.db.get(
        SessionRow, uuid.UUID(preemption.for_session_id), populate_existing=True
    )
    if waiting is None or waiting.status != Status.PENDING or waiting.target != Target.RUNNING:
        return False
    victim = uuid.UUID(preemption.victim_id)
    return await steps.preempt(change, victim, preemption.for_session_id, preemption.action)


async def _check_agent(
    db: AsyncSession, session: SessionRow, placement: KernelPlacement, containers: int
) -> None:
    """Refuse an agent that left, closed, moved to another group or has no room for ``containers``.

    All of a session's containers are counted at once: none of them holds its place before all do.
    """
    agent = await db.get(AgentRow, placement.agent_id, with_for_update=True, populate_existing=True)
    full = False
    if agent is not None and agent.max_containers is not None:
        count = select(func.count()).where(
            KernelRow.agent_id == agent.id, KernelRow.status.in_(LIVE)
        )
        full = (await db.scalar(count) or 0) + containers > agent.max_containers
    willing = agent is not None and agent.status == ALIVE and agent.schedulable
    if full or not willing or agent is None or agent.resource_group != session.resource_group:
        name = "containers" if full else "agent"
        raise ledger.AllocationRefused.named(name, placement.agent_id)
