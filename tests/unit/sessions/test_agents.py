"""Agents that are lost, come back, lie, or are not agents at all."""

import asyncio
from dataclasses import replace

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from authenticator.principals import Role
from authenticator.problems import AgentUnavailable, Forbidden, InvalidParameters, NotFound
from spawner.agent.protocol import Ack, Heartbeat, KernelReport, Report, encode
from spawner.sessions.states import Status
from spawner.sessions.tables import AgentRow, HistoryRow, ResourceGroupRow
from tests.harness.agent import FakeAgent, SlowAgent, Wire
from tests.harness.plane import FINISHED, PATIENCE, REQUEST, TOKEN, Rig, device, until


async def test_a_lost_agent_keeps_its_sessions_and_they_say_so(plane: Rig) -> None:
    agent = await plane.agent()
    ada = await plane.user()
    detail = await plane.run(ada)
    await agent.disconnect()
    plane.clock.forward(30)
    await plane.plane.reconciler.watch_agents()
    assert (await plane.agent_row()).status == "ALIVE"
    plane.clock.forward(11)
    await plane.plane.reconciler.watch_agents()
    assert (await plane.agent_row()).status == "LOST"
    found = await plane.plane.sessions.get(ada, detail.session.name)
    assert found.status is Status.RUNNING
    assert found.unreachable_since is not None
    assert found.session.status_info.startswith("unreachable since ")
    assert found.occupied
    await plane.validate()
    await plane.connect(agent)
    found = await plane.plane.sessions.get(ada, detail.session.name)
    assert (found.status, found.unreachable_since) == (Status.RUNNING, None)
    assert found.session.status_info == "its node answers again"
    assert len(agent.starts) == 1


async def test_a_session_that_its_node_never_heard_of_goes_elsewhere(plane: Rig) -> None:
    agent, ada = await plane.agent(), await plane.user()
    await agent.disconnect()
    detail = await plane.create(ada)
    await plane.wait(detail, Status.SCHEDULED)
    plane.clock.forward(60)
    await plane.plane.reconciler.watch_agents()
    waits = await plane.wait(detail, Status.PENDING)
    assert waits.occupied == {}
    await plane.validate()
    other = await plane.agent(FakeAgent("node-2"))
    assert (await plane.wait(detail)).status is Status.RUNNING
    assert len(other.starts) == 1
    await plane.connect(agent)
    assert agent.starts == []


@pytest.mark.parametrize("removed", [False, True])
async def test_an_agent_comes_back_in_another_group(plane: Rig, removed: bool) -> None:
    agent, root = await plane.agent(), await plane.user("root", role=Role.SUPERADMIN)
    await plane.plane.administration.create(root, "resource-groups", {"name": "gpu"}, REQUEST)
    await agent.disconnect()
    plane.clock.forward(60)
    await plane.plane.reconciler.watch_agents()
    token = TOKEN
    if removed:
        await plane.plane.nodes.remove(root, "node-1", forced=False, request_id=REQUEST)
        token, _ = await plane.plane.tokens.create("again", lifetime=60)
    agent.group = "gpu"
    await agent.connect(plane.plane.agents, token)
    row = await until(plane.agent_row, lambda found: found.status == "ALIVE")
    assert row.resource_group == "gpu"


async def test_ending_a_session_of_a_lost_agent_waits_for_it(plane: Rig) -> None:
    agent = await plane.agent()
    ada = await plane.user()
    detail = await plane.run(ada)
    await agent.disconnect()
    plane.clock.forward(60)
    await plane.plane.reconciler.watch_agents()
    ending = await plane.destroy(ada, detail, forced=True)
    assert ending.status is Status.TERMINATING
    assert "waiting for its node" in ending.session.status_info
    assert ending.occupied
    with pytest.raises(AgentUnavailable):
        await plane.plane.sessions.logs(ada, str(detail.session.id))
    await plane.validate()
    await plane.connect(agent)
    ended = await plane.wait(detail, *FINISHED)
    assert (ended.status, ended.occupied) == (Status.TERMINATED, {})
    assert agent.kernels == {}


async def test_lost_after_ends_sessions_but_their_devices_stay_accounted(plane: Rig) -> None:
    agent = await plane.agent()
    ada = await plane.user()
    detail = await plane.run(ada)
    await plane.store.write(_lost_after)
    await agent.disconnect()
    plane.clock.forward(60)
    await plane.plane.reconciler.watch_agents()
    await plane.plane.reconciler.watch_agents()
    found = await plane.plane.sessions.get(ada, detail.session.name)
    assert found.status is Status.RUNNING
    plane.clock.forward(600)
    await plane.plane.reconciler.watch_agents()
    ended = await plane.plane.sessions.get(ada, str(detail.session.id))
    assert ended.status is Status.TERMINATED
    assert "unreachable for more than 600 seconds" in ended.session.status_info
    assert ended.occupied == {"cpu": 1_000_000, "mem": 1024**3}
    await plane.validate()
    await plane.connect(agent)

    async def held() -> object:
        return (await plane.plane.sessions.get(ada, str(detail.session.id))).occupied

    await until(held, lambda amounts: amounts == {})
    assert agent.kernels == {}


async def test_a_manager_that_was_suspended_listens_before_it_gives_up_anybody(plane: Rig) -> None:
    agent, ada = await plane.agent(), await plane.user()
    detail = await plane.run(ada)
    await plane.store.write(_lost_after)
    watch = plane.plane.reconciler
    await agent.disconnect()
    plane.clock.forward(60)
    await watch.watch_agents()
    assert (await plane.agent_row()).status == "LOST"
    plane.clock.forward(5000)
    watch.resume()
    await watch.watch_agents()
    assert (await plane.wait(detail)).status is Status.RUNNING
    await plane.connect(agent)
    plane.clock.forward(3600)
    watch.resume()
    await watch.watch_agents()
    assert (await plane.agent_row()).status == "ALIVE"
    plane.clock.forward(60)
    await watch.watch_agents()
    assert (await plane.agent_row()).status == "LOST"
    assert (await plane.wait(detail)).status is Status.RUNNING


async def test_a_silent_agent_that_answers_again_without_reconnecting(plane: Rig) -> None:
    agent = await plane.agent()
    plane.clock.forward(60)
    await plane.plane.reconciler.watch_agents()
    assert (await plane.agent_row()).status == "LOST"
    agent.beat()

    async def status() -> str:
        return (await plane.agent_row()).status

    assert await until(status, lambda text: text == "ALIVE")
    story = await plane.store.read(_agent_story)
    assert story == ["ALIVE", "LOST", "ALIVE"]


async def test_a_second_connection_replaces_the_first(plane: Rig) -> None:
    agent = await plane.agent()
    first = agent.wire
    ada = await plane.user()
    await plane.run(ada)
    await plane.connect(agent)
    assert first is not None
    assert first.closed == "another connection of the same agent replaced this one"
    await plane.run(ada)
    assert len(agent.starts) == 2


class StuckWire(Wire):
    """Takes nothing any more once it is ``stuck``; breaks at the first frame when it is ``broken``."""

    stuck = broken = False

    async def send(self, frame: str) -> None:
        if self.broken:
            raise ConnectionError("the agent closed the connection")
        if self.stuck:
            await asyncio.Event().wait()
        await super().send(frame)


async def test_an_agent_that_leaves_before_its_welcome_is_not_connected(plane: Rig) -> None:
    agent, wire = FakeAgent(), StuckWire()
    wire.broken = True
    wire.agent_sends(encode(agent.hello()))
    await plane.plane.agents.serve(wire, TOKEN)
    assert wire.closed == "the connection broke: the agent closed the connection"
    assert not plane.plane.agents.is_connected("node-1")


async def test_a_call_over_a_connection_that_takes_nothing_ends_in_time(plane: Rig) -> None:
    agent, wire = FakeAgent(), StuckWire()
    wire.agent_sends(encode(agent.hello()))
    serving = asyncio.create_task(plane.plane.agents.serve(wire, TOKEN))

    async def connected() -> bool:
        return plane.plane.agents.is_connected("node-1")

    await until(connected, bool)
    wire.stuck = True
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(AgentUnavailable):
            await plane.plane.agents.call("node-1", "logs", {}, timeout=0.01)
    wire.hang_up()
    await serving


class LateWire(Wire):
    """The manager's farewell does not get through, and what was sent on it arrives late."""

    async def close(self, reason: str, *, refused: bool) -> None:
        self.closed = self.closed or reason


async def test_what_a_replaced_connection_still_carries_is_of_the_past(plane: Rig) -> None:
    agent, late, ada = FakeAgent(), LateWire(), await plane.user()
    late.agent_sends(encode(agent.hello()))
    serving = asyncio.create_task(plane.plane.agents.serve(late, TOKEN))
    await asyncio.wait_for(late.agent_receives(), 5)  # the welcome
    await plane.agent(agent)
    assert late.closed == "another connection of the same agent replaced this one"
    detail = await plane.run(ada)
    late.agent_sends(encode(Report(1, (), whole=True)))  # it ran nothing then
    await asyncio.wait_for(serving, 5)
    await plane.plane.reconciler.step(detail.session.id)
    assert (await plane.wait(detail)).status is Status.RUNNING
    assert [epoch for _, epoch in agent.starts] == [1]


async def test_devices_that_shrink_or_vanish_keep_what_is_held(plane: Rig) -> None:
    agent = await plane.agent()
    ada = await plane.user()
    detail = await plane.run(ada, cpu="3")
    gib = 1024**3
    agent.beat(devices=(device("cpu", "cpu", 2_000_000), device("mem", "mem", 8 * gib)))
    admin = await plane.user("root", Role.SUPERADMIN)

    async def capacity() -> int:
        view = (await plane.plane.nodes.list(admin))[0]
        return view.capacity["cpu"]

    await until(capacity, lambda amount: amount == 3_000_000)
    await plane.validate()
    await plane.destroy(ada, detail)
    await plane.wait(detail, *FINISHED)
    await until(capacity, lambda amount: amount == 2_000_000)


FAULTS = [
    ("not json", "not understood"),
    (encode(Ack(1)), "does not send Ack"),
    (encode(Report(9, (KernelReport("x", "x", 1, "RUNNING"),))), "not a UUID"),
    (encode(Report(9, (KernelReport("x", "x", 1, "DANCING"),))), "'DANCING' is not one of"),
    (encode(Report(9, (KernelReport("x", "x", 1, "RUNNING", started_at=1e30),))), "1e+30 seconds"),
    (encode(Heartbeat()).replace("heartbeat", "unheard-of"), "not understood"),
    ('{"kind":"report","sequence":1,"kernels":[{"kernel_id":7}]}', "kernel_id"),
]


@pytest.mark.parametrize(("frame", "sentence"), FAULTS)
async def test_a_malformed_frame_closes_the_connection_and_changes_nothing(
    plane: Rig, frame: str, sentence: str
) -> None:
    agent = await plane.agent()
    wire = agent.wire
    assert wire is not None
    before = await plane.store.read(_history_size)
    wire.agent_sends(frame)

    async def closed() -> str | None:
        return wire.closed

    assert sentence in (await until(closed, bool) or "")
    assert await plane.store.read(_history_size) == before


async def test_a_hello_is_checked(plane: Rig) -> None:
    registry = plane.plane.agents
    plain, token_id = await plane.plane.tokens.create("bound", "node-7")
    wrong = [
        (FakeAgent("node-7"), "x" * 30, "token is not known"),
        (FakeAgent("node-8"), plain, "another agent than node-8"),
        (FakeAgent("../etc"), TOKEN, "agent id"),
        (FakeAgent("node-9", group="nowhere"), TOKEN, "no resource group 'nowhere'"),
        (FakeAgent("node-9", protocol=99), TOKEN, "protocol 99"),
    ]
    for agent, token, sentence in wrong:
        wire = await agent.connect(registry, token)
        await asyncio.wait(agent._tasks)
        assert sentence in (wire.closed or "")
        assert not registry.is_connected(agent.agent_id)
    right = FakeAgent("node-7")
    await right.connect(registry, plain)

    async def known() -> bool:
        return registry.is_connected("node-7")

    await until(known, bool)
    await right.disconnect()
    await plane.plane.tokens.revoke(token_id)
    wire = await right.connect(registry, plain)
    await asyncio.wait(right._tasks)
    assert "revoked" in (wire.closed or "")
    assert [row.note for row in await plane.plane.tokens.list()] == [
        "made with the deployment",
        "bound",
    ]
    with pytest.raises(NotFound):
        await plane.plane.tokens.revoke((await plane.user()).user_id)
    with pytest.raises(InvalidParameters):
        await plane.plane.tokens.ensure_token("short", "")


async def test_the_first_frame_must_be_a_hello(plane: Rig) -> None:
    wire = Wire()
    wire.agent_sends(encode(Heartbeat()))
    await plane.plane.agents.serve(wire, TOKEN)
    assert wire.closed == "the first frame is Heartbeat, not Hello"


async def test_a_cordoned_agent_takes_nothing_new_and_keeps_what_it_has(plane: Rig) -> None:
    await plane.agent()
    ada = await plane.user()
    admin = await plane.user("root", Role.SUPERADMIN)
    running = await plane.run(ada)
    with pytest.raises(Forbidden):
        await plane.plane.nodes.set_schedulable(ada, "node-1", False, "r")
    view = await plane.plane.nodes.set_schedulable(admin, "node-1", False, "r")
    assert not view.schedulable
    assert [item.owner for item in view.sessions] == ["ada"]
    waiting = await plane.create(ada)
    result = await plane.plane.scheduler.run_once()
    assert result.placed == []
    await plane.plane.nodes.set_schedulable(admin, "node-1", True, "r")
    assert (await plane.wait(waiting)).status is Status.RUNNING
    assert (await plane.wait(running)).status is Status.RUNNING
    with pytest.raises(NotFound):
        await plane.plane.nodes.set_schedulable(admin, "node-x", True, "r")


async def test_a_call_that_nobody_answers_ends(plane: Rig) -> None:
    agent = await plane.agent(SlowAgent())
    ada = await plane.user()
    detail = await plane.create(ada)
    await plane.wait(detail, Status.PREPARING)
    plane.plane.agents._call_timeout = 0.01
    agent.deaf = True
    with pytest.raises(AgentUnavailable):
        await plane.plane.sessions.logs(ada, detail.session.name)


async def test_a_full_agent_takes_no_further_container(plane: Rig) -> None:
    await plane.agent(replace(FakeAgent(), max_containers=1))
    ada = await plane.user()
    await plane.run(ada)
    second = await plane.create(ada)

    async def told() -> str:
        return (await plane.plane.sessions.get(ada, second.session.name)).session.status_info

    assert await until(told, lambda text: "room for one more container" in text)


async def _history_size(db: AsyncSession) -> int:
    return len((await db.scalars(select(HistoryRow))).all())


async def _agent_story(db: AsyncSession) -> list[str]:
    query = select(HistoryRow.to_status).where(HistoryRow.kind == "agent")
    rows = list(await db.scalars(query.order_by(HistoryRow.id)))
    assert await db.get(AgentRow, "node-1") is not None
    return rows


async def test_an_agent_whose_engine_is_unwell_takes_nothing_new(plane: Rig) -> None:
    agent = await plane.agent()
    ada, root = await plane.user(), await plane.user("root", role=Role.SUPERADMIN)
    there = await plane.run(ada)
    agent.beat(features={"unwell": "the engine does not answer"})

    async def unwell() -> str | None:
        return (await plane.plane.nodes.list(root))[0].unwell

    await until(unwell, lambda told: told == "the engine does not answer")
    waiting = await plane.create(ada)

    async def why() -> str:
        return (await plane.plane.sessions.get(ada, waiting.session.name)).session.status_info

    await until(why, lambda told: "closed for new sessions" in told)
    assert (await plane.wait(there)).status is Status.RUNNING
    agent.beat(features={})
    assert (await plane.wait(waiting)).status is Status.RUNNING
    assert await unwell() is None


async def _lost_after(db: AsyncSession) -> None:
    (await db.scalars(select(ResourceGroupRow))).one().options = {"lost_after": 600}
