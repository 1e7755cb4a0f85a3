"""A plan is committed while another manager's store lowers a limit or masks a device.

Whichever of the two comes first, what the plan places agrees with the rows that were there before it,
and what it does not place is refused by name. It can be placed later.
"""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncSession

from authenticator.tables import UserPolicyRow
from spawner.scheduler.model import Plan
from spawner.scheduler.plan import plan
from spawner.sessions.scheduling import PassResult, apply
from spawner.sessions.snapshot import read_snapshot
from spawner.sessions.tables import AgentDeviceRow
from store.database import Store
from tests.harness.agent import FakeAgent
from tests.harness.plane import REQUEST, Rig, rig

pytestmark = pytest.mark.integration
ROUNDS = 6
GPU = "cuda.device"


async def limit(db: AsyncSession, most: int | None) -> None:
    """What an administrator says of the default policy."""
    await db.execute(update(UserPolicyRow).values(max_concurrent_sessions=most))


async def mask(db: AsyncSession, masked: bool) -> None:
    """What the node says of its devices."""
    gpus = update(AgentDeviceRow).where(AgentDeviceRow.slot == GPU)
    await db.execute(gpus.values(attributes={"masked": masked}))


async def planned(plane: Rig) -> Plan:
    """What would start now."""
    reading = await plane.store.read(lambda db: read_snapshot(db, plane.clock()))
    return plan(reading.snapshot)


async def commit(plane: Rig, made: Plan, turns: int = 0) -> PassResult:
    """Commit after so many turns of the loop, so that either writer may be the first."""
    for _ in range(turns):
        await asyncio.sleep(0)
    return await plane.plane.journal.write(REQUEST, lambda change: apply(change, made))


@pytest.mark.parametrize("what", ["limit", "mask"])
async def test_what_changes_while_a_plan_is_committed(
    database_url: str, tmp_path: Path, what: str
) -> None:
    async with AsyncExitStack() as stack:
        store, other = Store(database_url), Store(database_url)
        stack.push_async_callback(store.close)
        plane = await stack.enter_async_context(rig(store, tmp_path))
        await other.open()
        stack.push_async_callback(other.close)
        await plane.agent(replace(FakeAgent(), amounts={"cpu": "64", "mem": "64g", GPU: "8"}))
        ada = await plane.user()
        assert plane.plane._task is not None
        plane.plane._task.cancel()
        await plane.plane.stop()
        running = 0
        for turn in range(ROUNDS):
            slots = {GPU: "1"} if what == "mask" else {}
            wanted = [
                str((await plane.create(ada, slots=slots if number else {})).session.id)
                for number in range(2)
            ]
            made = await planned(plane)
            change = (
                partial(limit, most=running + 1) if what == "limit" else partial(mask, masked=True)
            )
            writing = asyncio.create_task(other.write(change))
            if turn == ROUNDS - 1:
                await writing
            result = await commit(plane, made, turn * 8)
            await writing
            assert result.placed + result.refused == wanted, "the first can always start"
            assert set(result.refusals) <= {"concurrency" if what == "limit" else "masked"}
            await other.write(partial(limit, most=None))
            await other.write(partial(mask, masked=False))
            late = await commit(plane, await planned(plane))
            assert late.placed == result.refused, "it kept its place"
            running += 2
        assert result.refused, "what changed before the commit counts"
        await plane.validate()
