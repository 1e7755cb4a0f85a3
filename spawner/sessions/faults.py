"""Devices that break or go away: the history of their node says so, and those who hold them are told."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select

from spawner.agent.protocol import DeviceReport
from spawner.scheduler.slots import kind_of
from spawner.sessions.ledger import FAULT_LENGTH, GONE
from spawner.sessions.states import FINAL
from spawner.sessions.tables import AgentDeviceRow, AgentRow, AllocationRow, KernelRow, SessionRow
from spawner.sessions.transitions import Change

Device = tuple[str, str]
"""Slot and id."""


async def note(change: Change, row: AgentRow, devices: Sequence[DeviceReport]) -> None:
    """Write down what broke, went away or got well on a node that offers ``devices`` now.

    To be called before the ledger hears of them: what it knows is how things were.
    """
    known = {
        (device.slot, device.device_id): device
        for device in await change.db.scalars(
            select(AgentDeviceRow).where(AgentDeviceRow.agent_id == row.id)
        )
    }
    now = {(each.slot, each.device_id): each.fault[:FAULT_LENGTH] for each in devices}
    now |= {key: GONE for key, device in known.items() if device.used and key not in now}
    for key, fault in sorted(now.items()):
        device = known.get(key)
        before = str(device.attributes.get("fault", "")) if device is not None else ""
        if fault == before:
            continue
        name = f"{key[0]} {key[1]}"
        told = f"{name} is out of order: {fault}" if fault else f"{name} is well again"
        change.note_agent(row.id, row.status, row.status, told)
        if device is not None and device.used:
            await _tell_holders(change, row.id, key, fault)


async def _tell_holders(change: Change, agent_id: str, key: Device, fault: str) -> None:
    """They go on: whether what they do still works is for their owners to see."""
    what = kind_of(key[0]).human_name
    told = f"{what} of it is out of order: {fault}" if fault else f"{what} of it is well again"
    for session in await _holders(change, agent_id, key):
        session.status_info = told
        change.note(session, told)


async def _holders(change: Change, agent_id: str, key: Device) -> list[SessionRow]:
    """Sessions that hold something of a device, locked."""
    kernels = (
        select(KernelRow.session_id)
        .join(AllocationRow, AllocationRow.kernel_id == KernelRow.id)
        .where(
            AllocationRow.agent_id == agent_id,
            AllocationRow.freed_at.is_(None),
            AllocationRow.slot == key[0],
            AllocationRow.device_id == key[1],
        )
    )
    query = (
        select(SessionRow)
        .where(SessionRow.id.in_(kernels), SessionRow.status.not_in([s.value for s in FINAL]))
        .order_by(SessionRow.id)
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    return list(await change.db.scalars(query))
