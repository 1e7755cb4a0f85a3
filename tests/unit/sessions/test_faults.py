"""Devices that break, go away and get well again, with and without sessions that hold them."""

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from authenticator.principals import Role
from spawner.sessions.ledger import GONE
from spawner.sessions.states import Status
from spawner.sessions.tables import HistoryRow
from tests.harness.agent import FakeAgent
from tests.harness.plane import Rig, until

AMOUNTS = {"cpu": "4", "mem": "8g", "cuda.device": 2}
SLOTS = {"cpu": "1", "mem": "1g", "cuda.device": 1}
FAULT = "the driver reported XID 79"


async def beat(plane: Rig, agent: FakeAgent, faults: dict[str, str], *gone: str) -> None:
    """The agent lists its devices anew, and the manager has heard it."""
    devices = [
        msgspec.structs.replace(device, capacity=0, fault=faults[device.device_id])
        if device.device_id in faults
        else device
        for device in agent.devices()
        if device.device_id not in gone
    ]
    agent.beat(devices=tuple(devices))
    root = await plane.user("root", Role.SUPERADMIN)

    async def told() -> bool:
        (view,) = await plane.plane.nodes.list(root)
        now = {d["device_id"]: d["attributes"].get("fault") for d in view.devices}
        wanted = dict.fromkeys((d.device_id for d in devices), None) | faults
        return {key: value for key, value in now.items() if value != GONE} == wanted

    await until(told, bool)


def held_by(agent: FakeAgent, session: str) -> str:
    """The GPU that a session has."""
    (device,) = (
        share.device_id
        for kernel in agent.kernels.values()
        if kernel.spec.session_name == session
        for share in kernel.spec.shares
        if share.slot == "cuda.device"
    )
    return device


async def history(plane: Rig) -> list[str]:
    """What was written of the node's devices."""

    async def causes(db: AsyncSession) -> list[str]:
        query = select(HistoryRow.cause).where(HistoryRow.kind == "agent").order_by(HistoryRow.id)
        return [cause for cause in await db.scalars(query) if "cuda" in cause]

    return await plane.store.read(causes)


async def test_a_broken_device_is_given_to_nobody_and_its_holder_is_told(plane: Rig) -> None:
    agent = await plane.agent(FakeAgent(amounts=AMOUNTS))
    ada = await plane.user()
    await plane.run(ada, name="first", slots=SLOTS)
    held = held_by(agent, "first")
    (other,) = {"cuda.device-0", "cuda.device-1"} - {held}
    await beat(plane, agent, {held: FAULT, other: FAULT})
    found = await plane.plane.sessions.get(ada, "first")
    assert (found.status, found.session.status_info) == (
        Status.RUNNING,
        f"GPU of it is out of order: {FAULT}",
    )
    second = await plane.create(ada, name="second", slots=SLOTS)
    assert (await plane.plane.sessions.get(ada, "second")).status is Status.PENDING
    assert (
        'perijove_agent_faulty_devices{agent="node-1"} 2.0'
        in (await plane.plane.render_metrics()).decode()
    )
    await beat(plane, agent, {held: FAULT})
    await plane.wait(second)
    assert held_by(agent, "second") == other
    await beat(plane, agent, {})
    found = await plane.plane.sessions.get(ada, "first")
    assert found.session.status_info == "GPU of it is well again"
    assert await history(plane) == [
        f"cuda.device cuda.device-0 is out of order: {FAULT}",
        f"cuda.device cuda.device-1 is out of order: {FAULT}",
        f"cuda.device {other} is well again",
        f"cuda.device {held} is well again",
    ]


async def test_a_broken_device_stays_in_sight_when_its_holder_is_gone(plane: Rig) -> None:
    agent = await plane.agent(FakeAgent(amounts=AMOUNTS))
    ada = await plane.user()
    detail = await plane.run(ada, name="first", slots=SLOTS)
    held = held_by(agent, "first")
    await beat(plane, agent, {held: FAULT})
    await plane.destroy(ada, detail)
    await plane.wait(detail, Status.TERMINATED)
    (view,) = await plane.plane.nodes.list(await plane.user("root", Role.SUPERADMIN))
    found = {
        d["device_id"]: d["attributes"].get("fault") for d in view.devices if "cuda" in d["slot"]
    }
    assert found == {"cuda.device-0": None, "cuda.device-1": None} | {held: FAULT}
    await beat(plane, agent, {})
    assert (await history(plane))[-1] == f"cuda.device {held} is well again"


async def test_a_device_that_goes_away_stays_accounted_and_is_told_of(plane: Rig) -> None:
    agent = await plane.agent(FakeAgent(amounts=AMOUNTS))
    ada = await plane.user()
    await plane.run(ada, name="first", slots=SLOTS)
    held = held_by(agent, "first")
    await beat(plane, agent, {}, held)
    found = await plane.plane.sessions.get(ada, "first")
    assert found.session.status_info == f"GPU of it is out of order: {GONE}"
    await beat(plane, agent, {})
    found = await plane.plane.sessions.get(ada, "first")
    assert found.session.status_info == "GPU of it is well again"
