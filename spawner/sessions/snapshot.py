"""Rows to the scheduler's snapshot, in a handful of queries whatever the number of sessions."""

from __future__ import annotations

import datetime as dt
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from spawner.agent.protocol import UNWELL
from spawner.scheduler.model import (
    Agent,
    Dependency,
    Device,
    GroupPolicy,
    KernelRequest,
    SessionRequest,
    Snapshot,
)
from spawner.scheduler.policies import BUILT_IN, Policies
from spawner.sessions import refusals, slotkinds
from spawner.sessions.groups import OptionsError, read_options
from spawner.sessions.holdings import read_running
from spawner.sessions.kinds import BATCH, SYSTEM
from spawner.sessions.limits import LIVE, Payer, read_quotas
from spawner.sessions.losses import Rules, read_rules
from spawner.sessions.registration import ALIVE, REMOVED
from spawner.sessions.runtimes import RunTimes, read_run_times
from spawner.sessions.states import Status, Target
from spawner.sessions.swarms import networks_of
from spawner.sessions.tables import (
    AgentDeviceRow,
    AgentRow,
    KernelRow,
    ResourceGroupRow,
    SessionRow,
)
from spawner.sessions.usage import read_usage
from spawner.sessions.wishes import Wishes, device_rules, parent_states, wishes_of

FAIR_SHARE = "fair-share"


@dataclass(frozen=True, slots=True)
class Waiting:
    """A pending session's present explanation, to see whether a new one differs."""

    status_info: str
    status_data: Mapping[str, Any]
    eligible_since: dt.datetime | None


@dataclass(frozen=True, slots=True)
class Reading:
    """A snapshot, with what its sessions are told at present."""

    snapshot: Snapshot
    waiting: Mapping[str, Waiting]
    broken: Mapping[str, str] = field(default_factory=dict)
    """Resource groups whose options cannot be used, with a sentence each; they are not in the snapshot."""


async def read_snapshot(
    db: AsyncSession,
    now: dt.datetime,
    payers: Iterable[Payer] = (),
    policies: Policies = BUILT_IN,
) -> Reading:
    """Everything a scheduling pass may know; quotas of all that wait and of ``payers``.

    A resource group whose options cannot be used is left out, and named in ``broken``.
    """
    await slotkinds.refresh(db)
    groups, broken = await read_sound_groups(db, policies)
    run_times = await read_run_times(db)
    pending, waiting = await _pending(db, groups, run_times, now)
    whose = {Payer(p.access_key, p.project_id, p.domain, p.owner_id) for p in pending} | set(payers)
    half_lives = {name: policy.half_life for name, policy in groups.items()}
    fair = any(policy.sequencer == FAIR_SHARE for policy in groups.values())
    snapshot = Snapshot(
        now=now.timestamp(),
        groups=tuple(groups.values()),
        agents=await _agents(db, now),
        pending=tuple(pending),
        quotas=await read_quotas(db, whose),
        running=await read_running(db, now, run_times) if whose else (),
        usage=await read_usage(db, now, half_lives) if fair and whose else (),
    )
    return Reading(snapshot, waiting, broken)


async def read_groups(db: AsyncSession, policies: Policies) -> dict[str, GroupPolicy]:
    """How each active resource group orders and places. Raises ``OptionsError``."""
    return {
        row.name: read_options(row.name, row.options, policies).policy for row in await _groups(db)
    }


async def read_sound_groups(
    db: AsyncSession, policies: Policies
) -> tuple[dict[str, GroupPolicy], dict[str, str]]:
    """Active resource groups whose options can be used, and a sentence for each of the others."""
    sound: dict[str, GroupPolicy] = {}
    broken: dict[str, str] = {}
    for row in await _groups(db):
        try:
            sound[row.name] = read_options(row.name, row.options, policies).policy
        except OptionsError as error:
            broken[row.name] = str(error)
    return sound, broken


async def _groups(db: AsyncSession) -> list[ResourceGroupRow]:
    query = select(ResourceGroupRow).where(ResourceGroupRow.is_active)
    return list(await db.scalars(query.order_by(ResourceGroupRow.name)))


async def read_loss_rules(db: AsyncSession) -> dict[str, Rules]:
    """What each resource group that says so does with sessions of lost nodes."""
    rows = await db.execute(select(ResourceGroupRow.name, ResourceGroupRow.options))
    return {
        name: read_rules(options["lost_after"])
        for name, options in rows
        if options.get("lost_after") is not None
    }


async def _agents(db: AsyncSession, now: dt.datetime) -> tuple[Agent, ...]:
    devices: dict[str, list[Device]] = defaultdict(list)
    columns = (
        AgentDeviceRow.agent_id,
        AgentDeviceRow.slot,
        AgentDeviceRow.device_id,
        AgentDeviceRow.capacity,
        AgentDeviceRow.used,
        AgentDeviceRow.numa_node,
        AgentDeviceRow.attributes,
    )
    for agent, slot, device, capacity, used, numa, told in await db.execute(select(*columns)):
        made = Device(slot, device, capacity, capacity - used, numa)
        devices[agent].append(_told(made, told) if told else made)
    counts = await db.execute(
        select(KernelRow.agent_id, func.count())
        .where(KernelRow.status.in_(LIVE))
        .group_by(KernelRow.agent_id)
    )
    containers = {agent: int(count) for agent, count in counts}
    present = select(AgentRow).where(AgentRow.status != REMOVED).order_by(AgentRow.id)
    rows = list(await db.scalars(present))
    networks = networks_of(rows)
    return tuple(
        Agent(
            row.id,
            row.resource_group,
            row.architecture,
            tuple(sorted(devices[row.id], key=lambda d: (d.slot, d.device_id))),
            containers=containers.get(row.id, 0),
            max_containers=row.max_containers,
            schedulable=row.schedulable
            and not (row.features or {}).get(UNWELL)
            and not refusals.closes(row.features, now),
            alive=row.status == ALIVE,
            images=frozenset(row.images),
            networks=networks.get(row.id, frozenset()),
        )
        for row in rows
    )


def _told(device: Device, attributes: Mapping[str, Any]) -> Device:
    """``device`` with what its agent says beyond amounts; what cannot be understood is left out.

    What is reserved is no part of the capacity that agents report, so nothing is taken off here.
    """
    links, quantum = attributes.get("links"), attributes.get("quantum")
    return replace(
        device,
        links=frozenset(map(str, links)) if isinstance(links, list) else frozenset(),
        masked=attributes.get("masked") is True,
        quantum=quantum if type(quantum) is int and quantum > 0 else None,
    )


async def _pending(
    db: AsyncSession, groups: Mapping[str, GroupPolicy], run_times: RunTimes, now: dt.datetime
) -> tuple[list[SessionRequest], dict[str, Waiting]]:
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
        kernels[session.id].append(_kernel(session, kernel))
    wishes = {row.id: wishes_of(row.scheduling) for row in sessions.values()}
    parents = {parent for each in wishes.values() for parent in each.dependencies}
    states = await parent_states(db, parents)
    requests = [
        _request(row, tuple(kernels[row.id]), wishes[row.id], groups, run_times, states, now)
        for row in sessions.values()
    ]
    told = {
        str(row.id): Waiting(row.status_info, row.status_data, row.eligible_since)
        for row in sessions.values()
    }
    return requests, told


async def request_of(
    db: AsyncSession,
    row: SessionRow,
    kernels: Iterable[KernelRow],
    snapshot: Snapshot,
    now: dt.datetime,
) -> SessionRequest:
    """A session as a pass over ``snapshot`` would read it, though its rows need not be in the database."""
    wishes = wishes_of(row.scheduling)
    return _request(
        row,
        tuple(_kernel(row, each) for each in kernels),
        wishes,
        {policy.name: policy for policy in snapshot.groups},
        await read_run_times(db),
        await parent_states(db, wishes.dependencies),
        now,
    )


def _kernel(session: SessionRow, kernel: KernelRow) -> KernelRequest:
    slots = {slot: int(amount) for slot, amount in kernel.slots.items()}
    shared = int(kernel.spec.get("shm_bytes", 0))
    return KernelRequest(
        str(kernel.id), slots, kernel.image, session.architecture, shared_memory=shared
    )


def _request(
    row: SessionRow,
    kernels: tuple[KernelRequest, ...],
    wishes: Wishes,
    groups: Mapping[str, GroupPolicy],
    run_times: RunTimes,
    parents: Mapping[str, Dependency],
    now: dt.datetime,
) -> SessionRequest:
    group = groups.get(row.resource_group) or GroupPolicy(row.resource_group)
    learned = run_times.get((str(row.owner_id), row.image)) if row.type == BATCH else None
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
        designation=wishes.designation,
        run_time=learned if wishes.run_time is None else wishes.run_time,
        dependencies=tuple(parents[each] for each in wishes.dependencies),
        failed_parents=wishes.failed_parents,
        session_group=wishes.session_group,
        devices=device_rules(group.devices, row.resource_opts),
        preemptible=wishes.preemptible and row.type != SYSTEM,
        unlimited=row.type == SYSTEM,
        eligible_since=(row.eligible_since or now).timestamp(),
    )
