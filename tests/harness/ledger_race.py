"""Many writers at one ledger: the same race for SQLite and PostgreSQL, in one or several stores."""

from __future__ import annotations

import asyncio
import datetime as dt
import uuid
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from spawner.agent.protocol import DeviceReport
from spawner.scheduler.model import DeviceShare
from spawner.sessions import ledger
from spawner.sessions.tables import (
    AgentDeviceRow,
    AgentRow,
    AllocationRow,
    KernelRow,
    ResourceGroupRow,
)
from store.database import Store

NOW = dt.datetime(2026, 11, 23, tzinfo=dt.UTC)
NODE = "node-1"


async def add_node(db: AsyncSession, *devices: DeviceReport, node: str = NODE) -> None:
    """An agent with devices, in the default group."""
    if await db.get(ResourceGroupRow, "default") is None:
        db.add(
            ResourceGroupRow(
                name="default", is_active=True, is_default=True, options={}, created_at=NOW
            )
        )
        await db.flush()
    db.add(
        AgentRow(
            id=node,
            resource_group="default",
            status="ALIVE",
            schedulable=True,
            architecture="x86_64",
            engine="fake",
            version="0",
            address="",
            images=[],
            first_contact=NOW,
            last_seen=NOW,
        )
    )
    await db.flush()
    await ledger.register(db, node, devices)


async def race(
    stores: Sequence[Store], kernels: Sequence[uuid.UUID], amount: int
) -> list[uuid.UUID]:
    """Every kernel tries to take ``amount`` of the only device at once; returns those that got it."""

    async def attempt(number: int, kernel: uuid.UUID) -> uuid.UUID | None:
        share = DeviceShare("cuda.shares", "gpu-0", amount)
        store = stores[number % len(stores)]
        try:
            await store.write(lambda db: ledger.allocate(db, kernel, 1, NODE, [share], NOW))
        except ledger.AllocationRefused:
            return None
        return kernel

    found = await asyncio.gather(*(attempt(n, kernel) for n, kernel in enumerate(kernels)))
    return [kernel for kernel in found if kernel is not None]


async def release(stores: Sequence[Store], kernels: Sequence[uuid.UUID]) -> int:
    """Every kernel is freed by every store at once; returns how many rows were freed."""
    jobs = [
        store.write(partial(ledger.free, kernel_id=kernel, now=NOW))
        for kernel in kernels
        for store in stores
    ]
    return sum(await asyncio.gather(*jobs))


async def account(db: AsyncSession) -> tuple[int, int]:
    """``used`` of the device, and the sum of its live rows."""
    used = await db.scalar(select(AgentDeviceRow.used).where(AgentDeviceRow.device_id == "gpu-0"))
    held = await db.scalar(
        select(func.sum(AllocationRow.amount)).where(AllocationRow.freed_at.is_(None))
    )
    return int(used or 0), int(held or 0)


async def kernel_ids(db: AsyncSession) -> list[uuid.UUID]:
    """All kernels."""
    return list(await db.scalars(select(KernelRow.id)))


class Interrupted(Exception):
    """The writer is gone in the middle of its work."""


async def interrupted(store: Store, kernel: uuid.UUID, amount: int) -> None:
    """Take ``amount`` and free it again in one write that is never committed."""
    share = DeviceShare("cuda.shares", "gpu-0", amount)

    async def work(db: AsyncSession) -> None:
        await ledger.allocate(db, kernel, 1, NODE, [share], NOW)
        await ledger.free(db, kernel, NOW)
        raise Interrupted

    with suppress(Interrupted, ledger.AllocationRefused):
        await store.write(work)


async def churn(store: Store, kernel: uuid.UUID, amount: int, rounds: int) -> int:
    """Take and free again and again, each free two times; returns how often there was something to take."""
    share = DeviceShare("cuda.shares", "gpu-0", amount)
    taken = 0
    for epoch in range(2, 2 + rounds):
        try:
            await store.write(
                partial(
                    ledger.allocate,
                    kernel_id=kernel,
                    epoch=epoch,
                    agent_id=NODE,
                    shares=[share],
                    now=NOW,
                )
            )
        except ledger.AllocationRefused:
            continue
        taken += 1
        for _ in range(2):
            await store.write(partial(ledger.free, kernel_id=kernel, now=NOW))
    return taken


async def spoil(db: AsyncSession, used: int) -> None:
    """Make the account of the device wrong, as a bug or a hand in the database would."""
    await db.execute(
        update(AgentDeviceRow).where(AgentDeviceRow.device_id == "gpu-0").values(used=used)
    )
