"""The scheduler loop: wake, read a snapshot, plan, and apply the plan in one write that checks it again."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from sqlalchemy import Table, bindparam, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from spawner.scheduler.model import (
    Explanation,
    KernelPlacement,
    Placement,
    Plan,
    Preemption,
    Reason,
    Snapshot,
)
from spawner.scheduler.plan import plan
from spawner.scheduler.policies import BUILT_IN, Policies, PolicyError
from spawner.scheduler.slots import human_amount
from spawner.sessions import clusters, ledger, steps
from spawner.sessions.failpoints import reach
from spawner.sessions.metrics import Metrics
from spawner.sessions.registration import ALIVE
from spawner.sessions.snapshot import LIVE, Reading, read_snapshot
from spawner.sessions.states import Status, Target
from spawner.sessions.tables import AgentRow, KernelRow, SessionRow
from spawner.sessions.transitions import Change, Journal
from store.database import StoreError

DEBOUNCE = 0.002
"""Seconds in which further wake-ups join a pass; longer after a long pass, so that passes take half the time."""
THREAD_SIZE = 2_000
"""From so many pending sessions times agents on, the plan is made in a thread."""
MAX_REFUSALS = 5
"""Passes in a row that follow a refused placement at once; after that the slow tick is awaited."""
TOLD_PLACES = 20
"""Places in line whose every move is told to the owner; others learn theirs every ``RETELL`` seconds."""
RETELL = 30.0
UNSTEADY = ("starts_at", "waits_for")
"""Parts of an explanation whose change alone is not worth a write."""
REQUEST_ID = "scheduler"

log = logging.getLogger(__name__)


@dataclass(slots=True)
class PassResult:
    """What one pass did."""

    placed: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    """Sessions whose devices or agent were not free any more; they keep their places."""
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
        planner: Callable[[Snapshot, Policies], Plan] = plan,
    ) -> None:
        self._journal, self._metrics, self._tick = journal, metrics, tick
        self._policies, self._planner = policies, planner
        self._woken = asyncio.Event()
        self._next_start: float | None = None
        self._pause = DEBOUNCE

    def wake(self) -> None:
        """Something changed that may let a session start."""
        self._woken.set()

    async def run(self) -> None:
        """Pass after pass until cancelled."""
        refusals = 0
        self.wake()
        while True:
            await self._wait()
            self._woken.clear()
            try:
                result = await self.run_once()
            except (StoreError, PolicyError) as error:
                log.error("a scheduling pass failed: %s", error)
                continue
            refusals = refusals + 1 if result.refused else 0
            if 0 < refusals <= MAX_REFUSALS:
                self.wake()

    async def run_once(self) -> PassResult:
        """One pass."""
        started = time.perf_counter()
        reading = await self._journal.store.read(
            lambda db: read_snapshot(db, self._journal.now(), (), self._policies)
        )
        snapshot = reading.snapshot
        read = time.perf_counter()
        if len(snapshot.pending) * max(1, len(snapshot.agents)) >= THREAD_SIZE:
            planned = await asyncio.to_thread(self._planner, snapshot, self._policies)
        else:
            planned = self._planner(snapshot, self._policies)
        decided = time.perf_counter()
        if planned.placements:
            await reach("schedule-planned")
        self._next_start = min(
            (each.starts_at for each in snapshot.pending if (each.starts_at or 0) > snapshot.now),
            default=None,
            key=lambda at: at or 0.0,
        )
        news, quiet = _news(planned.waiting, reading)
        result = PassResult(waiting=len(planned.waiting))
        if planned.placements or planned.preemptions or planned.cancelled or news or quiet:
            result = await self._journal.write(
                REQUEST_ID, lambda change: apply(change, planned, news, quiet)
            )
            result.waiting = len(planned.waiting)
            await reach("schedule-applied")
        applied = time.perf_counter()
        self._pause = max(DEBOUNCE, min(applied - started, 1.0))
        phases = {"read": read - started, "plan": decided - read, "apply": applied - decided}
        self._metrics.scheduled(phases, result)
        return result

    async def _wait(self) -> None:
        timeout = self._tick
        if self._next_start is not None:
            due = self._next_start - self._journal.now().timestamp()
            timeout = min(timeout, max(0.0, due))
        try:
            async with asyncio.timeout(timeout):
                await self._woken.wait()
            await asyncio.sleep(self._pause)
        except TimeoutError:
            pass  # the slow tick makes up for wake-ups that got lost


async def apply(
    change: Change,
    planned: Plan,
    news: Sequence[Explanation],
    quiet: Sequence[Explanation] = (),
) -> PassResult:
    """Carry a plan out: each placement stands or falls alone, checked against rows as they are now.

    Explanations in ``news`` are told to those who follow their session; ``quiet`` ones are only kept.
    """
    result = PassResult()
    for reason in planned.cancelled:
        if await _cancel(change, reason):
            result.cancelled.append(str(reason.data["session_id"]))
    for preemption in planned.preemptions:
        if await _preempt(change, preemption):
            result.preempted.append(preemption.victim_id)
    for placement in planned.placements:
        started = await _place(change, placement)
        (result.placed if started else result.refused).append(placement.session_id)
    for explanation in news:
        await _explain(change, explanation)
    if quiet:
        await _keep(change, quiet)
    return result


async def _place(change: Change, placement: Placement) -> bool:
    loaded = await steps.load(change.db, uuid.UUID(placement.session_id))
    if loaded is None:
        return True
    session, rows = loaded
    if session.status != Status.PENDING or session.target != Target.RUNNING:
        return True  # ended meanwhile: nothing to place, and nothing to try again
    kernels = {str(row.id): row for row in rows}
    if set(kernels) != {each.kernel_id for each in placement.kernels}:
        return False
    savepoint = await change.db.begin_nested()
    try:
        here = Counter(each.agent_id for each in placement.kernels)
        for each in placement.kernels:
            await _check_agent(change.db, session, each, here[each.agent_id])
            kernel = kernels[each.kernel_id]
            await ledger.allocate(
                change.db, kernel.id, kernel.epoch + 1, each.agent_id, each.shares, change.now
            )
    except ledger.AllocationRefused as refusal:
        await savepoint.rollback()
        log.info("placement of session %s refused: %s", placement.session_id, refusal)
        return False
    await savepoint.commit()
    for each in placement.kernels:
        kernel = kernels[each.kernel_id]
        kernel.epoch += 1
        kernel.agent_id = each.agent_id
        await change.move_kernel(session, kernel, Status.SCHEDULED, "a node was chosen")
    clusters.connect(session, rows)
    over = ("scheduler", "retry")
    session.status_data = {k: v for k, v in session.status_data.items() if k not in over}
    await change.move_session(session, Status.SCHEDULED, "resources were found", reason="scheduled")
    return True


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
    willing = agent is not None and agent.status == ALIVE and agent.schedulable and not full
    if not willing or agent is None or agent.resource_group != session.resource_group:
        share = placement.shares[0]
        raise ledger.AllocationRefused(placement.agent_id, share)


async def _explain(change: Change, explanation: Explanation) -> None:
    """Tell a waiting session why; only while it still waits."""
    session = await change.db.get(
        SessionRow, uuid.UUID(explanation.session_id), populate_existing=True
    )
    if session is None or session.status != Status.PENDING:
        return
    told = session.status_info
    session.status_info = explanation.message
    session.status_data = {**session.status_data, "scheduler": _dated(explanation, change)}
    if told != explanation.message:
        change.note(session, explanation.message)


async def _keep(change: Change, explanations: Sequence[Explanation]) -> None:
    """Write many explanations in one statement; those who read them look at the row."""
    table = cast("Table", SessionRow.__table__)
    statement = (
        update(table)
        .where(table.c.id == bindparam("session"), table.c.status == Status.PENDING.value)
        .values(status_info=bindparam("told"), status_data=bindparam("why"))
    )
    ids = [uuid.UUID(each.session_id) for each in explanations]
    data = await change.db.execute(
        select(SessionRow.id, SessionRow.status_data).where(SessionRow.id.in_(ids))
    )
    before = {session_id: dict(kept) for session_id, kept in data}
    connection = await change.db.connection()
    await connection.execute(
        statement,
        [
            {
                "session": session_id,
                "told": each.message,
                "why": {**before.get(session_id, {}), "scheduler": _dated(each, change)},
            }
            for session_id, each in zip(ids, explanations, strict=True)
        ],
    )


def _dated(explanation: Explanation, change: Change) -> dict[str, Any]:
    return {**describe(explanation), "last_try": change.now.isoformat()}


def describe(explanation: Explanation) -> dict[str, Any]:
    """The structured explanation as it is kept in ``status_data`` under ``scheduler``."""
    answer = dataclasses.asdict(explanation)
    del answer["session_id"]
    answer["msg"] = explanation.message
    answer["failed_predicates"] = [
        {"name": reason.name, "msg": reason.message} for reason in explanation.reasons
    ]
    answer["passed_predicates"] = []
    for each in answer["missing"]:
        each["human"] = human_amount(each["slot"], each["requested"] - each["available"])
    if explanation.largest is not None:
        answer["largest_human"] = {
            slot: human_amount(slot, amount) for slot, amount in explanation.largest.items()
        }
    return {name: plain(value) for name, value in answer.items()}


def plain(value: Any) -> Any:
    """JSON values of nested mappings and sequences."""
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(each) for each in value]
    return value


def _steady(described: Mapping[str, Any]) -> dict[str, Any]:
    """An explanation without what is a little different in every pass."""
    return {name: value for name, value in described.items() if name not in UNSTEADY}


def _news(
    waiting: Sequence[Explanation], reading: Reading
) -> tuple[list[Explanation], list[Explanation]]:
    """Explanations that say something else than before: to be told, and to be kept quietly."""
    news: list[Explanation] = []
    quiet: list[Explanation] = []
    for each in waiting:
        told = reading.waiting.get(each.session_id)
        kept = {} if told is None else dict(told.status_data.get("scheduler", {}))
        last = kept.pop("last_try", None)
        same = told is not None and told.status_info == each.message
        if same and _steady(kept) == _steady(describe(each)):
            continue
        if last is None or each.position <= TOLD_PLACES or each.unsatisfiable:
            news.append(each)
        elif reading.snapshot.now - dt.datetime.fromisoformat(last).timestamp() > RETELL:
            quiet.append(each)
    return news, quiet
