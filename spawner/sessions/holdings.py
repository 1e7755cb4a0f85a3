"""Sessions that hold devices, as the scheduler sees them: two queries whatever their number."""

from __future__ import annotations

import datetime as dt
import uuid
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from spawner.scheduler.model import DeviceShare, KernelPlacement, RunningSession
from spawner.sessions import ledger
from spawner.sessions.kinds import SYSTEM
from spawner.sessions.limits import LIVE
from spawner.sessions.runtimes import RunTimes
from spawner.sessions.states import Target
from spawner.sessions.tables import AllocationRow, KernelRow, SessionRow
from spawner.sessions.wishes import Wishes, wishes_of

CLAIM = "preempted_for"
"""In a victim's ``status_data``: the waiting session that gets what it holds."""


async def read_running(
    db: AsyncSession, now: dt.datetime, run_times: RunTimes
) -> tuple[RunningSession, ...]:
    """All sessions with a kernel that holds devices, in the order of their ids."""
    placed = await _placements(db)
    rows = await db.execute(
        select(
            SessionRow.id,
            SessionRow.owner_id,
            SessionRow.project_id,
            SessionRow.domain,
            SessionRow.resource_group,
            SessionRow.priority,
            SessionRow.type,
            SessionRow.image,
            SessionRow.target,
            SessionRow.status_data,
            SessionRow.scheduling,
            SessionRow.ends_at,
            SessionRow.scheduled_at,
            SessionRow.started_at,
            SessionRow.created_at,
        )
        .where(SessionRow.id.in_(select(KernelRow.session_id).where(KernelRow.status.in_(LIVE))))
        .order_by(SessionRow.id)
    )
    return tuple(_session(row, placed.get(row.id, ()), now, run_times) for row in rows)


async def _placements(db: AsyncSession) -> Mapping[uuid.UUID, tuple[KernelPlacement, ...]]:
    rows = await db.execute(
        select(
            KernelRow.session_id,
            KernelRow.id,
            AllocationRow.agent_id,
            AllocationRow.slot,
            AllocationRow.device_id,
            AllocationRow.amount,
        )
        .join(KernelRow, KernelRow.id == AllocationRow.kernel_id)
        .where(AllocationRow.freed_at.is_(None), ledger.of_present_run())
        .order_by(AllocationRow.kernel_id, AllocationRow.slot, AllocationRow.device_id)
    )
    shares: dict[tuple[uuid.UUID, uuid.UUID, str], list[DeviceShare]] = defaultdict(list)
    for session_id, kernel_id, agent_id, slot, device_id, amount in rows:
        shares[(session_id, kernel_id, agent_id)].append(DeviceShare(slot, device_id, amount))
    placed: dict[uuid.UUID, tuple[KernelPlacement, ...]] = {}
    for (session_id, kernel_id, agent_id), held in shares.items():
        kernel = KernelPlacement(str(kernel_id), agent_id, tuple(held))
        placed[session_id] = (*placed.get(session_id, ()), kernel)
    return placed


def _session(
    row: Any, kernels: tuple[KernelPlacement, ...], now: dt.datetime, run_times: RunTimes
) -> RunningSession:
    wishes = wishes_of(row.scheduling)
    started = row.started_at or row.scheduled_at or row.created_at
    claim = row.status_data.get(CLAIM)
    return RunningSession(
        session_id=str(row.id),
        owner_id=str(row.owner_id),
        project_id=str(row.project_id),
        domain=row.domain,
        resource_group=row.resource_group,
        priority=row.priority,
        started_at=started.timestamp(),
        ends_at=_ends_at(row, wishes, started.timestamp(), now, run_times),
        kernels=kernels,
        preemptible=wishes.preemptible and row.type != SYSTEM,
        ending=row.target == Target.TERMINATED or claim is not None,
        claimed_by=claim,
        session_group=wishes.session_group,
    )


def _ends_at(
    row: Any, wishes: Wishes, started: float, now: dt.datetime, run_times: RunTimes
) -> float | None:
    """The end of its limit, or the probable one; None once it runs longer than was probable."""
    if row.ends_at is not None:
        return float(row.ends_at.timestamp())
    if wishes.run_time is not None:
        return started + wishes.run_time
    learned = run_times.get((str(row.owner_id), row.image)) if row.type == "batch" else None
    if learned is None or started + learned <= now.timestamp():
        return None
    return started + learned
