"""Prometheus metrics of the engine; rows are the truth, so gauges are set from rows when asked for."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from spawner.scheduler.observe import Phase
from spawner.scheduler.slots import KINDS
from spawner.sessions.ledger import REFUSALS, Repair
from spawner.sessions.registration import REMOVED
from spawner.sessions.states import Status
from spawner.sessions.tables import (
    AgentDeviceRow,
    AgentRow,
    CallbackRow,
    ResourceGroupRow,
    SessionRow,
)
from store.database import Store

PHASES = ("read", "plan", "apply")
LIMITS = ("concurrency", "quota")
CALLS = ("delivered", "failed", "given-up")


class Outcome(Protocol):
    """Ids of sessions by what a pass did with them."""

    placed: list[str]
    refused: list[str]
    refusals: list[str]
    preempted: list[str]
    cancelled: list[str]


class Metrics:
    """Counters of the loops, and gauges that ``render`` reads from the database."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._pass = Histogram(
            "perijove_scheduling_pass_seconds",
            "Duration of scheduling passes, reading and applying included.",
            buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
            registry=self.registry,
        )
        self._phases = Histogram(
            "perijove_scheduling_phase_seconds",
            "Duration of each phase of a scheduling pass.",
            ("phase",),
            buckets=(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10),
            registry=self.registry,
        )
        for phase in PHASES:
            self._phases.labels(phase)
        self._group_phases = Histogram(
            "perijove_scheduling_group_phase_seconds",
            "Duration of each phase of a pass within a resource group, all of its sessions together.",
            ("group", "phase"),
            buckets=(0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5),
            registry=self.registry,
        )
        self._placements = self._counter(
            "perijove_placements", "Placements by outcome.", "outcome", ("placed", "refused")
        )
        self._refusals = self._counter(
            "perijove_placement_refusals",
            "Placements that rows refused at commit, by what had changed since the plan.",
            "reason",
            (*REFUSALS, *LIMITS, "error"),
        )
        self._ended = self._counter(
            "perijove_scheduler_ended",
            "Sessions that the scheduler ended or put back.",
            "why",
            ("preempted", "cancelled"),
        )
        self._drift = self._counter(
            "perijove_ledger_drift",
            "What repairs of the ledger found wrong: accounts of devices, rows held by nobody, rows lost.",
            "kind",
            ("account", "abandoned", "lost"),
        )
        self._calls = self._counter(
            "perijove_callbacks",
            "Posts of callbacks that arrived, that failed for now, and callbacks given up.",
            "outcome",
            CALLS,
        )
        self._make_gauges()

    def _make_gauges(self) -> None:
        """What ``render`` reads from rows."""
        self._waiting_calls = Gauge(
            "perijove_callbacks_waiting", "Callbacks not delivered yet.", registry=self.registry
        )
        self._queue = self._gauge(
            "perijove_queue_length", "Sessions that wait, by resource group.", "group"
        )
        self._sessions = self._gauge("perijove_sessions", "Sessions by status.", "status")
        self._allocated = self._gauge(
            "perijove_allocation_ratio", "Part of all capacity that is allocated.", "slot"
        )
        self._heartbeat = self._gauge(
            "perijove_agent_heartbeat_age_seconds", "Time since the agent was heard of.", "agent"
        )
        self._faulty = self._gauge("perijove_agent_faulty_devices", "Broken devices.", "agent")
        for status in Status:
            self._sessions.labels(status.value)
        for slot in KINDS:
            self._allocated.labels(slot)

    def scheduled(
        self,
        phases: Mapping[str, float],
        outcome: Outcome,
        within: Mapping[tuple[str, Phase], float],
    ) -> None:
        """Count a pass: seconds of each of ``PHASES`` and of those ``within`` groups, and what came of it."""
        self._pass.observe(sum(phases.values()))
        for phase, seconds in phases.items():
            self._phases.labels(phase).observe(seconds)
        for (group, part), seconds in within.items():
            self._group_phases.labels(group, part).observe(seconds)
        self._placements.labels("placed").inc(len(outcome.placed))
        self._placements.labels("refused").inc(len(outcome.refused))
        for reason in outcome.refusals:
            self._refusals.labels(reason).inc()
        self._ended.labels("preempted").inc(len(outcome.preempted))
        self._ended.labels("cancelled").inc(len(outcome.cancelled))

    def repaired(self, repair: Repair) -> None:
        """Count what a repair found wrong."""
        self._drift.labels("account").inc(len(repair.drifts))
        self._drift.labels("abandoned").inc(repair.freed)
        self._drift.labels("lost").inc(repair.restored)

    def called(self, outcome: str) -> None:
        """Count what came of a callback: one of ``CALLS``."""
        self._calls.labels(outcome).inc()

    async def render(self, store: Store, now: dt.datetime) -> bytes:
        """The text format, with gauges as of now."""
        await store.read(lambda db: self._refresh(db, now))
        return generate_latest(self.registry)

    async def _refresh(self, db: AsyncSession, now: dt.datetime) -> None:
        counts = await db.execute(
            select(SessionRow.status, func.count()).group_by(SessionRow.status)
        )
        by_status = {status: int(count) for status, count in counts}
        for status in Status:
            self._sessions.labels(status.value).set(by_status.get(status.value, 0))
        waiting = await db.execute(
            select(ResourceGroupRow.name, func.count(SessionRow.id))
            .outerjoin(
                SessionRow,
                (SessionRow.resource_group == ResourceGroupRow.name)
                & (SessionRow.status == Status.PENDING.value),
            )
            .group_by(ResourceGroupRow.name)
        )
        for group, count in waiting:
            self._queue.labels(group).set(count)
        totals = await db.execute(
            select(
                AgentDeviceRow.slot,
                func.sum(AgentDeviceRow.used),
                func.sum(AgentDeviceRow.capacity),
            ).group_by(AgentDeviceRow.slot)
        )
        for slot, used, capacity in totals:
            self._allocated.labels(slot).set(float(used) / float(capacity) if capacity else 0.0)
        self._waiting_calls.set(await db.scalar(select(func.count(CallbackRow.number))) or 0)
        broken = AgentDeviceRow.attributes["fault"].as_string().is_not(None)
        faulty = await db.execute(
            select(AgentDeviceRow.agent_id, func.count())
            .where(broken)
            .group_by(AgentDeviceRow.agent_id)
        )
        self._faulty.clear()
        for agent, count in faulty:
            self._faulty.labels(agent).set(count)
        # Others render meanwhile: from here on nobody comes in between.
        seen = await db.execute(
            select(AgentRow.id, AgentRow.last_seen).where(AgentRow.status != REMOVED)
        )
        self._heartbeat.clear()
        for agent, at in seen:
            self._heartbeat.labels(agent).set((now - at).total_seconds())

    def _gauge(self, name: str, text: str, label: str) -> Gauge:
        return Gauge(name, text, (label,), registry=self.registry)

    def _counter(self, name: str, text: str, label: str, values: Sequence[str]) -> Counter:
        counter = Counter(name, text, (label,), registry=self.registry)
        for value in values:
            counter.labels(value)
        return counter
