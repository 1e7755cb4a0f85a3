"""The ledger on SQLite: never overdrawn, freed exactly once, repaired both ways."""

import uuid

import pytest
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from spawner.scheduler.model import DeviceShare
from spawner.sessions import ledger
from spawner.sessions.invariants import InvariantBroken, validate
from spawner.sessions.states import Status
from spawner.sessions.tables import AgentDeviceRow, AgentRow, ImageRow, KernelRow
from tests.harness.agent import IMAGE, LABELS
from tests.harness.ledger_race import NODE, NOW, account, add_node, kernel_ids, race, release
from tests.harness.plane import Rig, device

HALF = 500_000


async def _kernels(plane: Rig, count: int) -> list[uuid.UUID]:
    """Kernels of sessions that no agent ever runs."""
    ada = await plane.user()
    await plane.policy(max_pending_sessions=None)
    await plane.store.write(lambda db: add_node(db, device("cuda.shares", "gpu-0", 1_000_000)))
    await _known_image(plane)
    for _ in range(count):
        await plane.create(ada, type="batch", startup_command="x", starts_at="9d")
    return await plane.store.read(kernel_ids)


async def _known_image(plane: Rig) -> None:
    async def work(db: AsyncSession) -> None:
        if await db.get(ImageRow, (IMAGE, "x86_64")) is None:
            db.add(
                ImageRow(
                    name=IMAGE, architecture="x86_64", engine="fake", labels=LABELS, created_at=NOW
                )
            )

    await plane.store.write(work)


async def test_parallel_writers_never_overdraw_a_device(plane: Rig) -> None:
    kernels = await _kernels(plane, 8)
    winners = await race([plane.store], kernels, HALF)
    assert len(winners) == 2
    assert await plane.store.read(account) == (1_000_000, 1_000_000)
    assert await release([plane.store, plane.store], winners) == 2
    assert await plane.store.read(account) == (0, 0)
    winners = await race([plane.store], kernels[4:], HALF)
    assert len(winners) == 2
    assert await release([plane.store], winners) == 2  # their kernels wait: they may hold nothing


async def test_a_refusal_takes_nothing(plane: Rig) -> None:
    kernel = (await _kernels(plane, 1))[0]
    await plane.store.write(
        lambda db: ledger.register(
            db, NODE, [device("cuda.shares", "gpu-0", 1_000_000), device("mem", "mem", 10)]
        )
    )
    shares = [DeviceShare("cuda.shares", "gpu-0", HALF), DeviceShare("mem", "mem", 11)]
    with pytest.raises(ledger.AllocationRefused) as refused:
        await plane.store.write(lambda db: ledger.allocate(db, kernel, 1, NODE, shares, NOW))
    assert refused.value.share.slot == "mem"
    assert await plane.store.read(account) == (0, 0)


@pytest.mark.parametrize("change", [{"status": "LOST"}, {"schedulable": False}])
async def test_an_agent_that_takes_nothing_gives_nothing(
    plane: Rig, change: dict[str, object]
) -> None:
    kernel = (await _kernels(plane, 1))[0]
    await plane.store.write(lambda db: db.execute(update(AgentRow).values(**change)))
    share = DeviceShare("cuda.shares", "gpu-0", HALF)
    with pytest.raises(ledger.AllocationRefused):
        await plane.store.write(lambda db: ledger.allocate(db, kernel, 1, NODE, [share], NOW))


async def test_the_database_itself_refuses_to_be_overdrawn(plane: Rig) -> None:
    await _kernels(plane, 0)
    with pytest.raises(IntegrityError):
        await plane.store.write(
            lambda db: db.execute(update(AgentDeviceRow).values(used=1_000_001))
        )
    with pytest.raises(IntegrityError):
        await plane.store.write(lambda db: db.execute(update(AgentDeviceRow).values(used=-1)))


async def test_devices_follow_what_is_reported_and_what_is_held(plane: Rig) -> None:
    kernel = (await _kernels(plane, 1))[0]
    share = DeviceShare("cuda.shares", "gpu-0", HALF)
    await plane.store.write(lambda db: ledger.allocate(db, kernel, 1, NODE, [share], NOW))

    async def register(*amounts: int) -> bool:
        offered = [device("cuda.shares", "gpu-0", amount) for amount in amounts]
        return await plane.store.write(lambda db: ledger.register(db, NODE, offered))

    async def row() -> tuple[int, int, int] | None:
        async def work(db: AsyncSession) -> tuple[int, int, int] | None:
            found = await db.get(AgentDeviceRow, (NODE, "cuda.shares", "gpu-0"))
            return found and (found.reported, found.capacity, found.used)

        return await plane.store.read(work)

    assert await register(1_000_000) is False
    assert await register(200_000)
    assert await row() == (200_000, HALF, HALF)
    assert await register()
    assert await row() == (0, HALF, HALF)
    assert await register(2_000_000)
    assert await row() == (2_000_000, 2_000_000, HALF)
    assert await register()
    await plane.store.write(lambda db: ledger.free(db, kernel, NOW))
    assert await row() is None


async def test_repair_mends_drift_both_ways_and_frees_what_nobody_holds(plane: Rig) -> None:
    agent = await plane.agent()
    ada = await plane.user()
    detail = await plane.run(ada)
    await plane.store.write(
        lambda db: db.execute(
            update(AgentDeviceRow).where(AgentDeviceRow.slot == "cpu").values(used=4_000_000)
        )
    )
    await plane.store.write(
        lambda db: db.execute(
            update(AgentDeviceRow).where(AgentDeviceRow.slot == "mem").values(used=0)
        )
    )
    with pytest.raises(InvariantBroken, match="allocations say 1000000"):
        await validate(plane.store)
    done = await plane.store.write(lambda db: ledger.repair(db, NOW))
    assert {(drift.slot, drift.was) for drift in done.drifts} == {("cpu", 4_000_000), ("mem", 0)}
    await plane.validate()
    assert not await plane.store.write(lambda db: ledger.repair(db, NOW))

    async def forget(db: AsyncSession) -> None:
        row = await db.get_one(KernelRow, detail.main.id)
        row.status = Status.TERMINATED.value

    await plane.store.write(forget)
    done = await plane.store.write(lambda db: ledger.repair(db, NOW))
    assert (done.drifts, done.freed, done.restored) == ((), 2, 0)
    used = await plane.store.read(lambda db: db.scalars(select(AgentDeviceRow.used)))
    assert set(used) == {0}

    async def remember(db: AsyncSession) -> None:
        row = await db.get_one(KernelRow, detail.main.id)
        row.status = Status.RUNNING.value

    await plane.store.write(remember)
    done = await plane.plane.reconciler.repair()
    assert done.restored == 2, "what a live kernel holds comes back"
    assert {(drift.slot, drift.was) for drift in done.drifts} == {("cpu", 0), ("mem", 0)}
    told = (await plane.plane.render_metrics()).decode()
    assert 'perijove_ledger_drift_total{kind="lost"} 2.0' in told
    assert 'perijove_ledger_drift_total{kind="account"} 2.0' in told
    await plane.validate()
    assert len(agent.kernels) == 1
