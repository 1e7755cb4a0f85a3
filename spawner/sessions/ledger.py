"""The ledger: who holds how much of which device. Never more than there is, whoever asks and when.

``agent_devices.used`` is raised by conditional updates only (``used + amount <= capacity``, with a CHECK
constraint behind it) and lowered by exactly what an allocation row says, once. All statements are
plain SQL, so that a refused allocation can be taken back by a savepoint without touching loaded rows.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self, cast

from sqlalchemy import (
    ColumnElement,
    CursorResult,
    Select,
    Update,
    case,
    delete,
    exists,
    false,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncSession

from spawner.agent.protocol import DeviceReport
from spawner.scheduler.model import DeviceShare, Reason
from spawner.sessions.states import HOLDS
from spawner.sessions.tables import (
    AgentDeviceRow,
    AgentRow,
    AllocationRow,
    KernelRow,
    LostRunRow,
)

FAULT_LENGTH = 255
GONE = "it is not there any more"
"""The fault of a device that is held and that its agent does not list."""
Key = tuple[str, str, str]
"""Agent, slot, device."""
MASKED = func.coalesce(AgentDeviceRow.attributes["masked"].as_boolean(), false())
"""Whether the agent says that a device is never to be given out. What it reserves is no part of ``capacity``."""


REFUSALS = {
    "agent": "the node that was chosen takes no sessions any more",
    "containers": "the node that was chosen has as many containers as it may have by now",
    "device": "a device that was chosen is not offered any more",
    "masked": "a device that was chosen is masked by now",
    "capacity": "a device that was chosen has not enough free any more",
}
"""What can have changed between a plan and its commit, besides limits; told to owners, so without names."""


class AllocationRefused(Exception):
    """What was planned does not hold any more; ``reason`` says why, in words for the session's owner."""

    def __init__(self, reason: Reason, agent_id: str, share: DeviceShare | None = None) -> None:
        place = agent_id if share is None else f"{agent_id}, {share.slot} of {share.device_id}"
        super().__init__(f"{reason.name} ({place}): {reason.message}")
        self.reason, self.agent_id, self.share = reason, agent_id, share

    @classmethod
    def named(cls, name: str, agent_id: str, share: DeviceShare | None = None) -> Self:
        """For one of ``REFUSALS``."""
        return cls(Reason(name, REFUSALS[name]), agent_id, share)


@dataclass(frozen=True, slots=True)
class Drift:
    """A device whose ``used`` was not the sum of its live allocation rows."""

    agent_id: str
    slot: str
    device_id: str
    was: int
    should: int


@dataclass(frozen=True, slots=True)
class Repair:
    """What ``repair`` found and set right."""

    drifts: tuple[Drift, ...]
    freed: int
    """Rows of kernels that hold nothing (any more)."""
    restored: int
    """Rows that were freed although their kernel still holds them."""

    def __bool__(self) -> bool:
        return bool(self.drifts or self.freed or self.restored)


async def allocate(
    db: AsyncSession,
    kernel_id: uuid.UUID,
    epoch: int,
    agent_id: str,
    shares: Iterable[DeviceShare],
    now: dt.datetime,
) -> None:
    """Take ``shares`` for one run of a kernel.

    Raises ``AllocationRefused``; the caller then rolls its savepoint back.
    """
    for share in sorted(shares, key=lambda s: (s.slot, s.device_id)):
        if share.amount <= 0:
            continue
        willing = exists().where(
            AgentRow.id == agent_id, AgentRow.status == "ALIVE", AgentRow.schedulable
        )
        taken = await _run(
            db,
            update(AgentDeviceRow)
            .where(
                *_device(agent_id, share.slot, share.device_id),
                AgentDeviceRow.used + share.amount <= AgentDeviceRow.capacity,
                ~MASKED,
                willing,
            )
            .values(used=AgentDeviceRow.used + share.amount),
        )
        if taken != 1:
            raise await _refusal(db, agent_id, share)
        await db.execute(
            insert(AllocationRow).values(
                kernel_id=kernel_id,
                epoch=epoch,
                agent_id=agent_id,
                slot=share.slot,
                device_id=share.device_id,
                amount=share.amount,
                allocated_at=now,
                uncharged_since=now,
            )
        )


async def _refusal(db: AsyncSession, agent_id: str, share: DeviceShare) -> AllocationRefused:
    """Why the conditional update changed nothing, as far as can be seen now."""
    agent = await db.execute(
        select(AgentRow.status, AgentRow.schedulable).where(AgentRow.id == agent_id)
    )
    if agent.one_or_none() != ("ALIVE", True):
        return AllocationRefused.named("agent", agent_id, share)
    device = select(MASKED).where(*_device(agent_id, share.slot, share.device_id))
    masked = await db.scalar(device)
    name = "device" if masked is None else "masked" if masked else "capacity"
    return AllocationRefused.named(name, agent_id, share)


async def free(db: AsyncSession, kernel_id: uuid.UUID, now: dt.datetime) -> int:
    """Give back all that ``kernel_id`` holds, exactly as its rows say; returns the rows freed.

    Harmless when repeated, also by two writers at once: the one that marks a row lowers ``used``. Runs
    that were given up with their node hold on: ``free_run``.
    """
    return await _free_where(db, now, AllocationRow.kernel_id == kernel_id, ~of_lost_run())


async def free_run(
    db: AsyncSession, kernel_id: uuid.UUID, epoch: int, agent_id: str, now: dt.datetime
) -> int:
    """Give back what one run held on one agent."""
    return await _free_where(
        db,
        now,
        AllocationRow.kernel_id == kernel_id,
        AllocationRow.epoch == epoch,
        AllocationRow.agent_id == agent_id,
    )


async def _free_where(db: AsyncSession, now: dt.datetime, *which: ColumnElement[bool]) -> int:
    query = (
        select(AllocationRow)
        .where(AllocationRow.freed_at.is_(None), *which)
        .order_by(AllocationRow.agent_id, AllocationRow.slot, AllocationRow.device_id)
    )
    return sum([await _free_row(db, row, now) for row in await db.scalars(query)])


def of_present_run() -> ColumnElement[bool]:
    """An allocation of the run that its kernel is in now, not of one that was given up with its node."""
    return (KernelRow.epoch == AllocationRow.epoch) & (KernelRow.agent_id == AllocationRow.agent_id)


def of_lost_run() -> ColumnElement[bool]:
    """An allocation of a run that was given up with its node and not heard to be gone."""
    return exists().where(
        LostRunRow.kernel_id == AllocationRow.kernel_id,
        LostRunRow.epoch == AllocationRow.epoch,
        LostRunRow.agent_id == AllocationRow.agent_id,
    )


async def register(db: AsyncSession, agent_id: str, devices: Sequence[DeviceReport]) -> bool:
    """Make the account of ``agent_id`` match what it offers; returns whether anything changed.

    A device that shrank, or is gone, keeps as capacity what is held of it until kernels leave.
    """
    known = {
        (row.slot, row.device_id): row
        for row in await db.scalars(
            select(AgentDeviceRow)
            .where(AgentDeviceRow.agent_id == agent_id)
            .with_for_update()
            .execution_options(populate_existing=True)
        )
    }
    changed = False
    for device in devices:
        row = known.pop((device.slot, device.device_id), None)
        if row is None:
            db.add(_new_row(agent_id, device))
            changed = True
            continue
        changed = changed or row.reported != device.capacity
        row.reported, row.capacity = device.capacity, max(device.capacity, row.used)
        row.numa_node, row.model = device.numa_node, device.model[:128]
        row.attributes = facts_of(device)
    for row in known.values():
        changed = changed or row.reported != 0
        if row.used == 0:
            await db.delete(row)
        else:
            row.reported, row.capacity = 0, row.used
            row.attributes = {**row.attributes, "fault": GONE}
    await db.flush()
    return changed


async def repair(db: AsyncSession, now: dt.datetime) -> Repair:
    """Make the account and the kernels agree again; harmless at any time, beside any other writer.

    Rows of kernels that hold nothing are freed, rows that were freed under a kernel that still holds
    them come back, and then every ``used`` is made the sum of its live rows.
    """
    freed = 0
    for row in await db.scalars(_abandoned()):
        freed += await _free_row(db, row, now)
    restored = 0
    for row in await db.scalars(_robbed()):
        restored += await _hold_again(db, row)
    drifts: list[Drift] = []
    for key in await _suspects(db):
        drift = await _mend(db, key)
        if drift is not None:
            drifts.append(drift)
    await db.flush()
    return Repair(tuple(drifts), freed, restored)


async def _suspects(db: AsyncSession) -> list[Key]:
    """Devices whose account differs from the sum of their rows, as far as two reads can tell."""
    held = await held_amounts(db)
    columns = (
        AgentDeviceRow.agent_id,
        AgentDeviceRow.slot,
        AgentDeviceRow.device_id,
        AgentDeviceRow.used,
    )
    found: set[Key] = set()
    for agent_id, slot, device_id, used in await db.execute(select(*columns)):
        if used != held.pop((agent_id, slot, device_id), 0):
            found.add((agent_id, slot, device_id))
    return sorted(found | set(held))


async def _mend(db: AsyncSession, key: Key) -> Drift | None:
    """Look again at one device while nobody else can change it, and set it right."""
    used = await db.scalar(
        select(AgentDeviceRow.used).where(*_device(*key)).with_for_update().limit(1)
    )
    agent_id, slot, device_id = key
    total = await db.scalar(
        select(func.sum(AllocationRow.amount)).where(
            AllocationRow.agent_id == agent_id,
            AllocationRow.slot == slot,
            AllocationRow.device_id == device_id,
            AllocationRow.freed_at.is_(None),
        )
    )
    should = int(total or 0)
    if used is not None and used == should:
        return None
    if used is None:
        if not should:
            return None
        db.add(_new_row(agent_id, DeviceReport(slot, device_id, 0), used=should))
    else:
        await _set_used(db, key, should)
    return Drift(agent_id, slot, device_id, used or 0, should)


async def held_amounts(db: AsyncSession) -> dict[Key, int]:
    """Sum of live allocation rows by agent, slot and device."""
    rows = await db.execute(
        select(
            AllocationRow.agent_id,
            AllocationRow.slot,
            AllocationRow.device_id,
            func.sum(AllocationRow.amount),
        )
        .where(AllocationRow.freed_at.is_(None))
        .group_by(AllocationRow.agent_id, AllocationRow.slot, AllocationRow.device_id)
    )
    return {(agent, slot, device): int(total) for agent, slot, device, total in rows}


def _abandoned() -> Select[Any]:
    """Live allocation rows of kernels that hold nothing, or of an earlier run or another agent."""
    return (
        select(AllocationRow)
        .join(KernelRow, KernelRow.id == AllocationRow.kernel_id)
        .where(
            AllocationRow.freed_at.is_(None),
            ~of_lost_run(),
            KernelRow.status.not_in([status.value for status in HOLDS])
            | (KernelRow.epoch != AllocationRow.epoch)
            | KernelRow.agent_id.is_(None)
            | (KernelRow.agent_id != AllocationRow.agent_id),
        )
    )


def _robbed() -> Select[Any]:
    """Freed allocation rows of the present run of a kernel that still holds its devices."""
    return (
        select(AllocationRow)
        .join(KernelRow, KernelRow.id == AllocationRow.kernel_id)
        .where(
            AllocationRow.freed_at.is_not(None),
            KernelRow.status.in_([status.value for status in HOLDS]),
            KernelRow.epoch == AllocationRow.epoch,
            KernelRow.agent_id == AllocationRow.agent_id,
        )
    )


async def _hold_again(db: AsyncSession, row: AllocationRow) -> int:
    """Take a freed row back; the account follows when it is mended."""
    await _lock_account(db, row)
    return await _run(
        db,
        update(AllocationRow)
        .where(*_row(row), AllocationRow.freed_at.is_not(None))
        .values(freed_at=None, uncharged_since=row.freed_at),
    )


def _row(row: AllocationRow) -> tuple[ColumnElement[bool], ...]:
    return (
        AllocationRow.kernel_id == row.kernel_id,
        AllocationRow.epoch == row.epoch,
        AllocationRow.agent_id == row.agent_id,
        AllocationRow.slot == row.slot,
        AllocationRow.device_id == row.device_id,
    )


async def _lock_account(db: AsyncSession, row: AllocationRow) -> None:
    """Keep others from the device of ``row``: everybody locks the account first and its rows second."""
    device = _device(row.agent_id, row.slot, row.device_id)
    await db.execute(select(AgentDeviceRow.used).where(*device).with_for_update())


async def _free_row(db: AsyncSession, row: AllocationRow, now: dt.datetime) -> int:
    await _lock_account(db, row)
    mine = await _run(
        db,
        update(AllocationRow)
        .where(*_row(row), AllocationRow.freed_at.is_(None))
        .values(freed_at=now),
    )
    if mine == 1:
        left = case(  # an account that drifted must not keep a kernel from ending
            (AgentDeviceRow.used >= row.amount, AgentDeviceRow.used - row.amount), else_=0
        )
        await _run(
            db,
            update(AgentDeviceRow)
            .where(*_device(row.agent_id, row.slot, row.device_id))
            .values(used=left, capacity=_greater(AgentDeviceRow.reported, left)),
        )
        await db.execute(
            delete(AgentDeviceRow)
            .where(
                *_device(row.agent_id, row.slot, row.device_id),
                AgentDeviceRow.reported == 0,
                AgentDeviceRow.used == 0,
                AgentDeviceRow.attributes["fault"].as_string() == GONE,
            )
            .execution_options(synchronize_session=False)
        )
    return mine


async def _set_used(db: AsyncSession, key: Key, used: int) -> None:
    await _run(
        db,
        update(AgentDeviceRow)
        .where(*_device(*key))
        .values(used=used, capacity=_greater(AgentDeviceRow.reported, used)),
    )


def _new_row(agent_id: str, device: DeviceReport, used: int = 0) -> AgentDeviceRow:
    return AgentDeviceRow(
        agent_id=agent_id,
        slot=device.slot,
        device_id=device.device_id,
        reported=device.capacity,
        capacity=max(device.capacity, used),
        used=used,
        numa_node=device.numa_node,
        model=device.model[:128],
        attributes=facts_of(device),
    )


def facts_of(device: DeviceReport) -> dict[str, Any]:
    """What is kept of a device besides its amounts: its attributes, and what the scheduler must know."""
    facts = dict(device.attributes)
    if device.links:
        facts["links"] = list(device.links)
    if device.masked:
        facts["masked"] = True
    if device.reserved:
        facts["reserved"] = device.reserved
    if device.fault:
        facts["fault"] = device.fault[:FAULT_LENGTH]
    return facts


def _device(agent_id: str, slot: str, device_id: str) -> tuple[ColumnElement[bool], ...]:
    return (
        AgentDeviceRow.agent_id == agent_id,
        AgentDeviceRow.slot == slot,
        AgentDeviceRow.device_id == device_id,
    )


def _greater(one: Any, other: Any) -> ColumnElement[int]:
    """The larger of two columns, in words that SQLite and PostgreSQL share."""
    return case((one > other, one), else_=other)


async def _run(db: AsyncSession, statement: Update) -> int:
    """Execute and tell how many rows it changed."""
    answer = await db.execute(statement.execution_options(synchronize_session=False))
    return cast("CursorResult[Any]", answer).rowcount
