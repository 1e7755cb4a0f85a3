"""Dry runs of whole requests: they say what a submission and the next pass would say, and leave nothing."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import func, select, update

from authenticator.principals import Principal, Role
from authenticator.problems import Forbidden
from spawner.sessions.requests import Check
from spawner.sessions.states import Status
from spawner.sessions.tables import ResourceGroupRow, SessionRow
from tests.harness.agent import FakeAgent
from tests.harness.plane import Rig, request
from tests.unit.sessions.test_clusters import node


async def ask(plane: Rig, owner: Principal, **fields: Any) -> Check:
    return await plane.plane.offers.rehearse(owner, owner, request(**fields))


@pytest.mark.parametrize(
    ("fields", "verdict", "words"),
    [
        ({"cpu": "2"}, "now", "can start now"),
        ({"cpu": "4"}, "wait", "waiting for 1 CPU"),
        ({"cpu": "5"}, "never", "no node has more than 4 CPUs"),
        ({"starts_at": "2100-01-01T00:00:00Z"}, "never", "starts_at"),
        ({"slots": {"cpu": "x"}}, "never", "config.resources.cpu"),
        ({"image": "no/such"}, "never", "image"),
        ({"priority": 99}, "never", "priority"),
        ({"cluster_size": 2}, "never", "1 containers in a session"),
        ({"mounts": ["nothing-there"]}, "never", "config.mounts.nothing-there"),
        ({"run_time": "soon"}, "never", "runTime"),
        ({"dependencies": ["nobody"]}, "never", "dependencies.nobody"),
    ],
)
async def test_verdicts(plane: Rig, fields: dict[str, Any], verdict: str, words: str) -> None:
    await plane.agent()
    ada = await plane.user()
    await plane.run(ada)
    found = await ask(plane, ada, **fields)
    assert found.verdict == verdict, found
    assert words in found.message or words in found.errors, found
    rows = await plane.store.read(lambda db: db.scalar(select(func.count(SessionRow.id))))
    assert rows == 1


async def test_priority_decides_whom_it_stands_behind(plane: Rig) -> None:
    await plane.policy(max_priority=50)
    await plane.agent()
    ada = await plane.user()
    await plane.run(ada, cpu="2")
    await plane.create(ada, cpu="3", priority=20)
    found = {priority: await ask(plane, ada, cpu="2", priority=priority) for priority in (10, 30)}
    assert found[30].verdict == "now"
    assert found[10].verdict == "wait"
    detail = await plane.create(ada, cpu="2", priority=10)
    await plane.plane.scheduler.run_once()
    waits = await plane.plane.sessions.get(ada, str(detail.session.id))
    assert waits.session.status_info == found[10].message


async def test_a_declared_run_time_fits_before_a_reservation(plane: Rig) -> None:
    await plane.agent()
    ada = await plane.user()
    await plane.run(ada, cpu="3", run_time="1h")
    await plane.create(ada, cpu="4")
    assert (await ask(plane, ada)).verdict == "wait"
    assert (await ask(plane, ada, run_time="30m")).verdict == "now"
    assert (await plane.run(ada, run_time="30m")).status is Status.RUNNING


async def test_all_containers_of_a_cluster_have_to_fit(plane: Rig) -> None:
    await plane.policy(max_containers_per_session=8)
    await plane.agent(node(1, None))
    ada = await plane.user()
    assert (await ask(plane, ada, cluster_size=4)).verdict == "now"
    assert (await ask(plane, ada, cluster_size=5)).verdict == "never"
    wrong = await ask(plane, ada, cluster_size=2, cluster_mode="spread")
    assert "clusterMode" in wrong.errors
    assert (await ask(plane, ada, cluster_size=3, cluster_mode="multi-node")).verdict == "now"


async def test_designated_agents_are_for_administrators(plane: Rig) -> None:
    await plane.agent()
    await plane.agent(FakeAgent("node-2", {"cpu": "1", "mem": "4g"}))
    ada, root = await plane.user(), await plane.user("root", Role.SUPERADMIN)
    with pytest.raises(Forbidden):
        await ask(plane, ada, designated_agents=["node-2"])
    assert (await ask(plane, root, designated_agents=["node-2"])).verdict == "now"
    assert (await ask(plane, root, designated_agents=["node-2"], cpu="2")).verdict == "never"
    preferred = await ask(
        plane, root, designated_agents=["node-2"], cpu="2", designation="preferred"
    )
    assert preferred.verdict == "now"
    unknown = await ask(plane, root, designated_agents=["node-9"])
    assert "config.agentList" in unknown.errors


async def test_rules_about_devices_count(plane: Rig) -> None:
    amounts = {"cpu": "4", "mem": "8g", "cuda.shares": "1"}
    await plane.agent(FakeAgent("node-1", amounts))
    ada = await plane.user()
    slots = {"cuda.shares": "0.5"}
    whole = {"allow_fractional_resource_fragmentation": False}
    assert (await ask(plane, ada, slots=slots, resource_opts=whole)).verdict == "now"
    await plane.store.write(
        lambda db: db.execute(update(ResourceGroupRow).values(options={"served_slots": ["cpu"]}))
    )
    assert "config.resources.cuda.shares" in (await ask(plane, ada, slots=slots)).errors


async def test_parents_hold_it_or_end_it(plane: Rig) -> None:
    await plane.agent()
    ada = await plane.user()
    batch = {"type": "batch", "startup_command": "true"}
    parent = await plane.create(ada, **batch)
    name = parent.session.name
    held = await ask(plane, ada, dependencies=[name])
    assert held.verdict == "wait"
    await plane.destroy(ada, parent)
    await plane.wait(parent, Status.TERMINATED, Status.CANCELLED)
    gone = await ask(plane, ada, dependencies=[name], failed_parents="cancel")
    assert gone.verdict == "never"


async def test_limits_of_the_queue_and_names_in_use(plane: Rig) -> None:
    await plane.policy(max_pending_sessions=0)
    await plane.agent()
    ada = await plane.user()
    full = await ask(plane, ada)
    assert (full.verdict, full.errors) == ("never", {})
    assert "may have 0" in full.message
    await plane.policy(max_pending_sessions=None)
    live = await plane.run(ada, cpu="4")
    name = live.session.name
    assert (await ask(plane, ada, name=name)).verdict == "now"
    assert "name" in (await ask(plane, ada, name=name, reuse_if_exists=False)).errors


async def test_only_the_owner_and_superadmins_may_ask(plane: Rig) -> None:
    ada, eve = await plane.user(), await plane.user("eve")
    with pytest.raises(Forbidden):
        await plane.plane.offers.rehearse(eve, ada, request())
