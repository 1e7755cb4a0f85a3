"""Two hundred writers in three processes' worth of stores at sixteen half devices; then all free at once.

And writers that take, free twice and are interrupted, while the account is spoiled and repaired.
"""

import asyncio
import uuid
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from sqlalchemy import delete
from sqlalchemy.ext.asyncio import AsyncSession

from spawner.sessions import ledger
from spawner.sessions.tables import AllocationRow, KernelRow
from store.database import Store
from tests.harness.agent import FakeAgent
from tests.harness.ledger_race import (
    NOW,
    account,
    add_node,
    churn,
    interrupted,
    race,
    release,
    spoil,
)
from tests.harness.plane import Rig, device, rig

pytestmark = pytest.mark.integration
HALF = 500_000


async def _crowd(plane: Rig, count: int) -> list[uuid.UUID]:
    """Kernels that nobody runs: siblings of one that waits for its time."""
    await plane.agent(FakeAgent("elsewhere"))
    ada = await plane.user()
    detail = await plane.create(ada, type="batch", startup_command="x", starts_at="9d")
    pattern = await plane.kernel(detail)
    ids = [uuid.uuid4() for _ in range(count)]

    async def work(db: AsyncSession) -> None:
        for number, kernel_id in enumerate(ids):
            db.add(
                KernelRow(
                    id=kernel_id,
                    session_id=pattern.session_id,
                    cluster_role="sub",
                    cluster_index=number + 2,
                    status="PENDING",
                    image=pattern.image,
                    slots={},
                    spec=pattern.spec,
                    ports=[],
                    last_stat={},
                    created_at=pattern.created_at,
                )
            )

    await plane.store.write(work)
    return ids


async def _stores(stack: AsyncExitStack, url: str, tmp_path: Path) -> tuple[Rig, list[Store]]:
    """A control plane with a device of eight whole units, and three stores on its database."""
    store = Store(url)
    stack.push_async_callback(store.close)
    plane = await stack.enter_async_context(rig(store, tmp_path))
    stores = [store]
    for _ in range(2):
        other = Store(url)
        await other.open()
        stack.push_async_callback(other.close)
        stores.append(other)
    return plane, stores


async def _forget(db: AsyncSession) -> None:
    """Leave nothing that the invariants at the end could not explain."""
    await db.execute(delete(AllocationRow))
    await db.execute(delete(KernelRow).where(KernelRow.cluster_role == "sub"))


async def test_sixteen_halves_for_two_hundred(database_url: str, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        plane, stores = await _stores(stack, database_url, tmp_path)
        crowd = await _crowd(plane, 200)
        await plane.store.write(lambda db: add_node(db, device("cuda.shares", "gpu-0", 8_000_000)))
        for _ in range(3):
            winners = await race(stores, crowd, HALF)
            assert len(winners) == 16
            assert await plane.store.read(account) == (8_000_000, 8_000_000)
            assert await release(stores, winners) == 16
            assert await plane.store.read(account) == (0, 0)
            crowd = [kernel for kernel in crowd if kernel not in winners]
        await plane.store.write(_forget)


async def test_repeated_and_interrupted_writers_leave_a_true_account(
    database_url: str, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        plane, stores = await _stores(stack, database_url, tmp_path)
        crowd = await _crowd(plane, 12)
        await plane.store.write(lambda db: add_node(db, device("cuda.shares", "gpu-0", 2_000_000)))
        churned = await asyncio.gather(
            *(churn(stores[n % 3], kernel, HALF, 10) for n, kernel in enumerate(crowd)),
            *(interrupted(stores[n % 3], kernel, HALF) for n, kernel in enumerate(crowd)),
        )
        assert sum(taken for taken in churned if taken) >= 10
        assert await plane.store.read(account) == (0, 0)
        await plane.store.write(_forget)


@pytest.mark.parametrize("wrong", [0, 2_000_000], ids=["too low", "too high"])
async def test_a_spoiled_account_is_repaired_beside_busy_writers(
    database_url: str, tmp_path: Path, wrong: int
) -> None:
    """Whatever happens at the same time, the account ends as the sum of its rows."""
    async with AsyncExitStack() as stack:
        plane, stores = await _stores(stack, database_url, tmp_path)
        crowd = await _crowd(plane, 9)
        await plane.store.write(lambda db: add_node(db, device("cuda.shares", "gpu-0", 2_000_000)))
        busy = [asyncio.create_task(churn(stores[n % 3], k, HALF, 8)) for n, k in enumerate(crowd)]

        while not all(task.done() for task in busy):
            await stores[1].write(lambda db: spoil(db, wrong))
            await stores[2].write(lambda db: ledger.repair(db, NOW))
        await asyncio.gather(*busy)
        await plane.store.write(lambda db: spoil(db, 2_000_000 - wrong))
        await plane.store.write(lambda db: ledger.repair(db, NOW))
        used, held = await plane.store.read(account)
        assert used == held == 0
        assert not await plane.store.write(lambda db: ledger.repair(db, NOW))
        await plane.store.write(_forget)
