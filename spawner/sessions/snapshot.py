"""Rows to the scheduler's snapshot, in a handful of queries whatever the number of sessions."""

from __future__ import annotations

import datetime as dt
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from authenticator.tables import DomainRow, KeyPairPolicyRow, KeyPairRow, ProjectRow
from spawner.scheduler.model import (
    Agent,
    Device,
    GroupPolicy,
    KernelRequest,
    Quota,
    SessionRequest,
    Snapshot,
)
from spawner.sessions.registration import ALIVE
from spawner.sessions.states import FINAL, HOLDS, Status, Target
from spawner.sessions.tables import (
    AgentDeviceRow,
    AgentRow,
    AllocationRow,
    KernelRow,
    ResourceGroupRow,
    SessionRow,
)

LIVE = [status.value for status in HOLDS]


@dataclass(frozen=True, slots=True)
class Payer:
    """Whose limits a request counts against."""

    access_key: str
    project_id: str
    domain: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """A pending session's present explanation, to see whether a new one differs."""

    status_info: str
    status_data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Reading:
    """A snapshot, with what its sessions are told at present."""

    snapshot: Snapshot
    waiting: Mapping[str, Waiting]


async def read_snapshot(
    db: AsyncSession, now: dt.datetime, payers: Iterable[Payer] = ()
) -> Reading:
    """Everything a scheduling pass may know; quotas of all that wait and of ``payers``."""
    pending, waiting = await _pending(db)
    whose = {Payer(p.access_key, p.project_id, p.domain) for p in pending} | set(payers)
    snapshot = Snapshot(
        now=now.timestamp(),
        groups=await _groups(db),
        agents=await _agents(db),
        pending=tuple(pending),
        quotas=await _quotas(db, whose) if whose else (),
    )
    return Reading(snapshot, waiting)


async def _groups(db: AsyncSession) -> tuple[GroupPolicy, ...]:
    rows = await db.scalars(select(ResourceGroupRow).where(ResourceGroupRow.is_active))
    return tuple(group_policy(row) for row in rows)


def group_policy(row: ResourceGroupRow) -> GroupPolicy:
    """The scheduler's view of a resource group; options it lacks have the scheduler's defaults."""
    options = row.options
    default = GroupPolicy(row.name)
    return GroupPolicy(
        row.name,
        sequencer=str(options.get("sequencer", default.sequencer)),
        selector=str(options.get("selector", default.selector)),
        slot_priority=tuple(options.get("slot_priority", default.slot_priority)),
    )


async def _agents(db: AsyncSession) -> tuple[Agent, ...]:
    devices: dict[str, list[Device]] = defaultdict(list)
    columns = (
        AgentDeviceRow.agent_id,
        AgentDeviceRow.slot,
        AgentDeviceRow.device_id,
        AgentDeviceRow.capacity,
        AgentDeviceRow.used,
        AgentDeviceRow.numa_node,
    )
    for agent, slot, device, capacity, used, numa in await db.execute(select(*columns)):
        devices[agent].append(Device(slot, device, capacity, capacity - used, numa))
    counts = await db.execute(
        select(KernelRow.agent_id, func.count())
        .where(KernelRow.status.in_(LIVE))
        .group_by(KernelRow.agent_id)
    )
    containers = {agent: int(count) for agent, count in counts}
    rows = await db.scalars(select(AgentRow).order_by(AgentRow.id))
    return tuple(
        Agent(
            row.id,
            row.resource_group,
            row.architecture,
            tuple(sorted(devices[row.id], key=lambda d: (d.slot, d.device_id))),
            containers=containers.get(row.id, 0),
            max_containers=row.max_containers,
            schedulable=row.schedulable,
            alive=row.status == ALIVE,
            images=frozenset(row.images),
        )
        for row in rows
    )


async def _pending(db: AsyncSession) -> tuple[list[SessionRequest], dict[str, Waiting]]:
    rows = await db.execute(
        select(SessionRow, KernelRow)
        .join(KernelRow, KernelRow.session_id == SessionRow.id)
        .where(
            SessionRow.status == Status.PENDING.value,
            SessionRow.target == Target.RUNNING.value,
        )
        .order_by(SessionRow.created_at, SessionRow.id, KernelRow.cluster_index)
    )
    sessions: dict[uuid.UUID, SessionRow] = {}
    kernels: dict[uuid.UUID, list[KernelRequest]] = defaultdict(list)
    for session, kernel in rows:
        sessions[session.id] = session
        slots = {slot: int(amount) for slot, amount in kernel.slots.items()}
        kernels[session.id].append(
            KernelRequest(str(kernel.id), slots, kernel.image, session.architecture)
        )
    requests = [_request(row, tuple(kernels[row.id])) for row in sessions.values()]
    told = {str(row.id): Waiting(row.status_info, row.status_data) for row in sessions.values()}
    return requests, told


def _request(row: SessionRow, kernels: tuple[KernelRequest, ...]) -> SessionRequest:
    return SessionRequest(
        session_id=str(row.id),
        owner_id=str(row.owner_id),
        access_key=row.access_key,
        project_id=str(row.project_id),
        domain=row.domain,
        resource_group=row.resource_group,
        priority=row.priority,
        submitted_at=row.created_at.timestamp(),
        kernels=kernels,
        cluster_mode=row.cluster_mode,
        designated_agents=frozenset(row.designated_agents),
        failed_agents=frozenset(row.status_data.get("failed_agents", ())),
        starts_at=None if row.starts_at is None else row.starts_at.timestamp(),
    )


async def _quotas(db: AsyncSession, whose: set[Payer]) -> tuple[Quota, ...]:
    """Limits of all payers that have any, with what they hold now."""
    quotas: list[Quota] = []
    keys = sorted({payer.access_key for payer in whose})
    policies = await db.execute(
        select(
            KeyPairRow.access_key,
            KeyPairPolicyRow.total_resource_slots,
            KeyPairPolicyRow.max_concurrent_sessions,
        )
        .join(KeyPairPolicyRow, KeyPairPolicyRow.name == KeyPairRow.policy)
        .where(KeyPairRow.access_key.in_(keys))
    )
    limits = {key: (slots, count) for key, slots, count in policies}
    held, counts = await held_by(db, SessionRow.access_key, keys)
    for key, (slots, most) in limits.items():
        if slots is not None or most is not None:
            quotas.append(Quota("keypair", key, slots, held[key], most, counts[key]))
    projects = [uuid.UUID(each) for each in sorted({payer.project_id for payer in whose})]
    limited = await db.execute(
        select(ProjectRow.id, ProjectRow.total_resource_slots).where(ProjectRow.id.in_(projects))
    )
    caps = {project: slots for project, slots in limited if slots is not None}
    held, _ = await held_by(db, SessionRow.project_id, list(caps))
    quotas += [Quota("project", str(each), caps[each], held[each]) for each in caps]
    domains = await db.execute(
        select(DomainRow.name, DomainRow.total_resource_slots).where(
            DomainRow.name.in_({payer.domain for payer in whose})
        )
    )
    tops = {name: slots for name, slots in domains if slots is not None}
    held, _ = await held_by(db, SessionRow.domain, list(tops))
    quotas += [Quota("domain", name, tops[name], held[name]) for name in tops]
    return tuple(quotas)


async def held_by(
    db: AsyncSession, column: InstrumentedAttribute[Any], values: list[Any]
) -> tuple[dict[Any, dict[str, int]], dict[Any, int]]:
    """Amounts by slot, and sessions, that are held by each of ``values`` of a session column."""
    held: dict[Any, dict[str, int]] = defaultdict(dict)
    counts: dict[Any, int] = defaultdict(int)
    if not values:
        return held, counts
    amounts = await db.execute(
        select(column, AllocationRow.slot, func.sum(AllocationRow.amount))
        .join(KernelRow, KernelRow.session_id == SessionRow.id)
        .join(AllocationRow, AllocationRow.kernel_id == KernelRow.id)
        .where(
            AllocationRow.freed_at.is_(None),
            column.in_(values),
            SessionRow.status.not_in([status.value for status in FINAL]),
        )
        .group_by(column, AllocationRow.slot)
    )
    for value, slot, amount in amounts:
        held[value][slot] = int(amount)
    sessions = await db.execute(
        select(column, func.count())
        .where(SessionRow.status.in_(LIVE), column.in_(values))
        .group_by(column)
    )
    for value, count in sessions:
        counts[value] = count
    return held, counts
