"""What changed between a plan and its commit: that part alone is refused, by name, and keeps its place."""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from hub.api.views import tries
from spawner.agent.protocol import DeviceReport
from spawner.scheduler.model import Plan
from spawner.scheduler.plan import plan
from spawner.sessions import ledger
from spawner.sessions.scheduling import PassResult, apply
from spawner.sessions.snapshot import read_snapshot
from spawner.sessions.tables import AgentDeviceRow, AgentRow, SessionRow
from tests.harness.agent import FakeAgent
from tests.harness.plane import REQUEST, Rig

GPU = "cuda.device"
AMOUNTS = {"cpu": "4", "mem": "8g", GPU: "2"}


async def planned(plane: Rig, count: int, **fields: Any) -> tuple[list[str], Plan]:
    """Sessions that wait, and the plan that would start all of them; the loops stand still."""
    await plane.agent(replace(FakeAgent(), amounts=AMOUNTS))
    ada = await plane.user()
    assert plane.plane._task is not None
    plane.plane._task.cancel()
    await plane.plane.stop()
    made = [await plane.create(ada, **fields) for _ in range(count)]
    found = plan((await plane.store.read(lambda db: read_snapshot(db, plane.clock()))).snapshot)
    ids = [str(detail.session.id) for detail in made]
    assert [each.session_id for each in found.placements] == ids
    return ids, found


async def carry_out(plane: Rig, made: Plan) -> PassResult:
    return await plane.plane.journal.write(REQUEST, lambda change: apply(change, made))


async def report_again(plane: Rig, slot: str, device: str | None = None, **changes: Any) -> None:
    """What another report of the node does: as it offers now, but for one device."""

    async def work(db: AsyncSession) -> None:
        rows = await db.scalars(select(AgentDeviceRow))
        reports = [
            DeviceReport(row.slot, row.device_id, row.reported, row.numa_node) for row in rows
        ]
        changed = [
            msgspec.structs.replace(each, **changes)
            if each.slot == slot and device in (None, each.device_id)
            else each
            for each in reports
        ]
        await ledger.register(db, "node-1", changed)

    await plane.store.write(work)


async def since(plane: Rig, session_id: str) -> dt.datetime | None:
    row = await plane.store.read(lambda db: db.get_one(SessionRow, uuid.UUID(session_id)))
    return row.eligible_since


async def told(plane: Rig, session_id: str) -> list[str]:
    """Messages of the attempts that failed."""
    ada = await plane.user()
    rows = await plane.plane.sessions.history(ada, session_id)
    return [str(each["message"]) for each in tries(rows)]


@pytest.mark.parametrize("capacity", [0, 1_000_000], ids=["nothing left", "still counted"])
async def test_a_device_that_was_masked_meanwhile(plane: Rig, capacity: int) -> None:
    (first, second), made = await planned(plane, 2, slots={GPU: "1"})
    shares = made.placements[0].kernels[0].shares
    (device,) = {share.device_id for share in shares if share.slot == GPU}
    await report_again(plane, GPU, device, masked=True, capacity=capacity)
    before = await since(plane, first)
    result = await carry_out(plane, made)
    assert (result.placed, result.refused, result.refusals) == ([second], [first], ["masked"])
    assert await since(plane, first) == before, "it keeps its place"
    assert await told(plane, first) == ["not started: a device that was chosen is masked by now"]
    await plane.validate()
    await report_again(plane, GPU, device, masked=False, capacity=1_000_000)
    assert (await carry_out(plane, made)).placed == [first]
    await plane.validate()


async def test_an_amount_that_was_reserved_meanwhile(plane: Rig) -> None:
    (first, second), made = await planned(plane, 2, mem="4g")
    await report_again(plane, "mem", capacity=5 * 2**30, reserved=3 * 2**30)
    result = await carry_out(plane, made)
    assert (result.placed, result.refused, result.refusals) == ([first], [second], ["capacity"])
    await report_again(plane, "mem", capacity=2 * 2**30, reserved=6 * 2**30)
    assert (await carry_out(plane, made)).refusals == ["capacity"], (
        "what is held does not count twice"
    )
    await plane.validate()


async def test_a_device_that_went_meanwhile(plane: Rig) -> None:
    (first,), made = await planned(plane, 1, slots={GPU: "1"})

    async def gone(db: AsyncSession) -> None:
        await db.execute(delete(AgentDeviceRow).where(AgentDeviceRow.slot == GPU))

    await plane.store.write(gone)
    result = await carry_out(plane, made)
    assert (result.refused, result.refusals) == ([first], ["device"])


@pytest.mark.parametrize(
    ("limits", "name"),
    [
        ({"max_concurrent_sessions": 1}, "concurrency"),
        ({"total_resource_slots": {"cpu": 1_000_000}}, "quota"),
    ],
)
@pytest.mark.parametrize("scope", ["policy", "user_policy", "project_policy"])
async def test_a_limit_that_was_lowered_meanwhile(
    plane: Rig, scope: str, limits: dict[str, Any], name: str
) -> None:
    (first, second, third), made = await planned(plane, 3)
    await getattr(plane, scope)(**limits)
    result = await carry_out(plane, made)
    assert (result.placed, result.refused) == ([first], [second, third])
    assert result.refusals == [name, name]
    (sentence,) = await told(plane, second)
    assert sentence.startswith("not started: your ")
    await plane.validate()


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"schedulable": False}, "agent"),
        ({"status": "LOST"}, "agent"),
        ({"max_containers": 1}, "containers"),
    ],
)
async def test_a_node_that_changed_meanwhile(plane: Rig, change: dict[str, Any], name: str) -> None:
    ids, made = await planned(plane, 2)
    await plane.store.write(lambda db: db.execute(update(AgentRow).values(**change)))
    result = await carry_out(plane, made)
    assert result.refused == (ids if name == "agent" else ids[1:])
    assert set(result.refusals) == {name}
    await plane.store.write(
        lambda db: db.execute(update(AgentRow).values(schedulable=True, status="ALIVE"))
    )
