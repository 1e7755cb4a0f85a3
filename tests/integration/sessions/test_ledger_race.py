"""Two hundred writers in three processes' worth of stores at sixteen half devices; then all free at once."""

import uuid
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from sqlalchemy import delete
from sqlalchemy.ext.asyncio import AsyncSession

from spawner.sessions.tables import AllocationRow, KernelRow
from store.database import Store
from tests.harness.agent import FakeAgent
from tests.harness.ledger_race import account, add_node, race, release
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


async def test_sixteen_halves_for_two_hundred(database_url: str, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        store = Store(database_url)
        stack.push_async_callback(store.close)
        plane = await stack.enter_async_context(rig(store, tmp_path))
        crowd = await _crowd(plane, 200)
        await plane.store.write(lambda db: add_node(db, device("cuda.shares", "gpu-0", 8_000_000)))
        stores = [plane.store]
        for _ in range(2):
            other = Store(database_url)
            await other.open()
            stack.push_async_callback(other.close)
            stores.append(other)
        for _ in range(3):
            winners = await race(stores, crowd, HALF)
            assert len(winners) == 16
            assert await plane.store.read(account) == (8_000_000, 8_000_000)
            assert await release(stores, winners) == 16
            assert await plane.store.read(account) == (0, 0)
            crowd = [kernel for kernel in crowd if kernel not in winners]

        async def forget(db: AsyncSession) -> None:
            await db.execute(delete(AllocationRow))
            await db.execute(delete(KernelRow).where(KernelRow.cluster_role == "sub"))

        await plane.store.write(forget)
