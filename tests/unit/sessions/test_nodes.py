"""How nodes join, are emptied, and leave."""

from __future__ import annotations

import pytest

from authenticator.principals import Principal, Role
from authenticator.problems import BadRequest, Forbidden, InvalidParameters, NotFound
from spawner.sessions.states import Status
from spawner.sessions.tables import AgentTokenRow
from tests.harness.agent import FakeAgent
from tests.harness.plane import REQUEST, Rig, until

BATCH = {"type": "batch", "startup_command": "sleep 1"}


async def root(plane: Rig) -> Principal:
    return await plane.user("root", role=Role.SUPERADMIN)


async def dial(plane: Rig, agent: FakeAgent, token: str) -> str | None:
    """Dial until the manager has welcomed the agent (None) or closed (its reason)."""
    agent.welcome = agent.wanted = None
    wire = await agent.connect(plane.plane.agents, token)
    if agent not in plane.agents:
        plane.agents.append(agent)

    async def answered() -> bool:
        return agent.wanted is not None or wire.closed is not None

    await until(answered, bool)
    return wire.closed


async def test_a_join_token_makes_one_node_a_member(plane: Rig) -> None:
    token, _ = await plane.plane.tokens.create("node 2", lifetime=60)
    agent = FakeAgent("node-2")
    assert await dial(plane, agent, token) is None
    assert agent.welcome is not None
    first = agent.welcome.credential
    assert first is not None
    # It died before it kept the credential: the same node may ask again, and the first one is void.
    await agent.disconnect()
    assert await dial(plane, agent, token) is None
    second = agent.welcome.credential
    assert second not in (None, first)
    await agent.disconnect()
    assert await dial(plane, agent, first) == "the agent's token is not known here, or was revoked"
    assert await dial(plane, agent, str(second)) is None
    assert agent.welcome.credential is None
    await agent.disconnect()
    assert "this join token was used" in str(await dial(plane, agent, token))
    thief = FakeAgent("node-3")
    assert "for another agent than node-3" in str(await dial(plane, thief, token))
    assert "for another agent than node-3" in str(await dial(plane, thief, str(second)))


async def test_a_join_token_does_not_wait_for_ever(plane: Rig) -> None:
    token, _ = await plane.plane.tokens.create("late", lifetime=60)
    plane.clock.forward(61)
    assert "not known here" in str(await dial(plane, FakeAgent("node-2"), token))


async def test_revoking_a_join_token_takes_its_node_along(plane: Rig) -> None:
    token, token_id = await plane.plane.tokens.create("node 2", lifetime=60)
    agent = FakeAgent("node-2")
    assert await dial(plane, agent, token) is None
    await plane.plane.tokens.revoke(token_id)
    plane.plane.agents.recheck()
    wire = agent.wire
    assert wire is not None

    async def closed() -> bool:
        return wire.closed is not None

    await until(closed, bool)
    assert (wire.closed, wire.refused) == ("the agent's token was revoked", True)


async def test_a_certificate_must_name_its_agent(plane: Rig) -> None:
    token, _ = await plane.plane.tokens.create("node 2", lifetime=60)
    agent = FakeAgent("node-2")
    wire = await agent.connect(plane.plane.agents, token, frozenset({"node-9"}))
    plane.agents.append(agent)

    async def closed() -> bool:
        return wire.closed is not None

    await until(closed, bool)
    assert (wire.closed, wire.refused) == ("agent node-2 shows a certificate of node-9", True)


async def test_an_emptied_node_lets_batch_go_and_ends_the_others_in_time(plane: Rig) -> None:
    await plane.agent()
    admin, ada = await root(plane), await plane.user()
    batch = await plane.run(ada, **BATCH)
    kept = await plane.run(ada, **BATCH, preemptible=False)
    notebook = await plane.run(ada)
    await plane.agent(FakeAgent("node-2"))
    view = await plane.plane.nodes.drain(admin, "node-1", "1h", REQUEST)
    assert (view.schedulable, view.drain is not None) == (False, True)

    async def moved() -> set[str]:
        views = await plane.plane.nodes.list(admin)
        return {each.name for each in next(v for v in views if v.id == "node-2").sessions}

    await until(moved, lambda names: names == {batch.session.name})
    await plane.wait(batch)  # its new node is silent from here on
    told = (await plane.plane.sessions.get(ada, str(notebook.session.id))).session.status_info
    assert told.startswith("its node is being emptied: it ends at ")
    plane.clock.forward(3601)
    plane.agents[0].beat()
    await plane.plane.reconciler.watch_agents()
    for each in (kept, notebook):
        ended = await plane.wait(each, Status.TERMINATED)
        assert ended.session.status_info == "its node was emptied"
    assert (await plane.wait(batch)).status is Status.RUNNING
    await plane.validate()


async def test_an_opened_node_is_emptied_no_more(plane: Rig) -> None:
    await plane.agent()
    admin, ada = await root(plane), await plane.user()
    notebook = await plane.run(ada)
    await plane.plane.nodes.drain(admin, "node-1", "10m", REQUEST)
    view = await plane.plane.nodes.set_schedulable(admin, "node-1", True, REQUEST)
    assert view.drain is None
    plane.clock.forward(3600)
    plane.agents[0].beat()
    await plane.plane.reconciler.watch_agents()
    found = await plane.plane.sessions.get(ada, str(notebook.session.id))
    assert found.status is Status.RUNNING
    assert found.session.status_info == "its node is not being emptied any more"


async def test_only_an_empty_node_is_removed_and_it_stays_away(plane: Rig) -> None:
    await plane.agent()
    token, _ = await plane.plane.tokens.create("node 2", lifetime=60)
    agent = FakeAgent("node-2")
    assert await dial(plane, agent, token) is None
    admin, ada = await root(plane), await plane.user()
    await plane.plane.nodes.set_schedulable(admin, "node-1", False, REQUEST)
    notebook = await plane.run(ada)
    nodes = plane.plane.nodes
    with pytest.raises(BadRequest, match="1 containers are on node-2: drain it first"):
        await nodes.remove(admin, "node-2", forced=True, request_id=REQUEST)
    await plane.destroy(ada, notebook)
    await plane.wait(notebook, Status.TERMINATED)
    await nodes.remove(admin, "node-2", forced=False, request_id=REQUEST)
    await plane.plane.agents.drop("node-2", "removed")
    assert [view.id for view in await nodes.list(admin)] == ["node-1"]
    text = (await plane.plane.render_metrics()).decode()
    assert "perijove_agent_heartbeat_age_seconds" in text
    assert 'agent="node-2"' not in text, "its age would grow for ever, and wake somebody"
    with pytest.raises(NotFound):
        await nodes.remove(admin, "node-2", forced=False, request_id=REQUEST)
    await agent.disconnect()
    assert agent.welcome is not None
    assert await dial(plane, agent, str(agent.welcome.credential)) is not None
    again, _ = await plane.plane.tokens.create("node 2 again", lifetime=60)
    assert await dial(plane, agent, again) is None
    assert {view.id for view in await nodes.list(admin)} == {"node-1", "node-2"}


async def test_a_node_that_is_lost_for_ever_gives_its_sessions_up(plane: Rig) -> None:
    agent = await plane.agent()
    admin, ada = await root(plane), await plane.user()
    notebook = await plane.run(ada)
    batch = await plane.run(ada, **BATCH)
    await agent.disconnect()
    plane.clock.forward(120)
    await plane.plane.reconciler.watch_agents()
    with pytest.raises(BadRequest, match="say forced if it is lost for ever"):
        await plane.plane.nodes.remove(admin, "node-1", forced=False, request_id=REQUEST)
    await plane.plane.nodes.remove(admin, "node-1", forced=True, request_id=REQUEST)
    for each in (notebook, batch):
        ended = await plane.wait(each, Status.TERMINATED)
        assert ended.session.status_info == "its node was removed by root"
        assert ended.occupied == {}
    await plane.validate()


async def test_strangers_do_nothing_and_wrong_values_are_named(plane: Rig) -> None:
    await plane.agent()
    ada = await plane.user()
    with pytest.raises(Forbidden):
        await plane.plane.nodes.drain(ada, "node-1", "1h", REQUEST)
    with pytest.raises(Forbidden):
        await plane.plane.nodes.remove(ada, "node-1", forced=True, request_id=REQUEST)
    with pytest.raises(InvalidParameters) as caught:
        await plane.plane.nodes.drain(await root(plane), "node-1", "soon", REQUEST)
    assert "soon" in str(caught.value.data)


async def test_secrets_are_kept_as_hashes_only(plane: Rig) -> None:
    token, token_id = await plane.plane.tokens.create("node 2", lifetime=60)
    row = await plane.store.read(lambda db: db.get_one(AgentTokenRow, token_id))
    assert token not in str(vars(row))
