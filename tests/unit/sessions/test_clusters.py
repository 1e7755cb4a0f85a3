"""Sessions of several containers: rows, environment, keys, networks, and what becomes of a lost part."""

from typing import Any

import pytest
from msgspec import structs
from sqlalchemy import update

from authenticator.principals import Principal, Role, Via
from authenticator.problems import InvalidParameters, NotFound, QuotaExceeded
from hub.api import views
from spawner.agent.protocol import KernelSpec, Network
from spawner.sessions import steps
from spawner.sessions.clusters import deployment_id
from spawner.sessions.requests import SessionDetail
from spawner.sessions.states import Status
from spawner.sessions.tables import ResourceGroupRow, SessionRow
from tests.harness.agent import FakeAgent, SlowAgent
from tests.harness.plane import FINISHED, REQUEST, Rig, hub_launch, until

DEGRADED = Status.RUNNING_DEGRADED
ROOT, HUB = Role.SUPERADMIN, Via.HUB


def node(number: int, swarm: str | None = "m1", *, control: bool = False, **more: Any) -> FakeAgent:
    """A node of a swarm with one manager, or of none."""
    features: dict[str, Any] = {"clusters": True}
    if swarm is not None:
        features["swarm"] = {"node": f"n{number}", "control": control, "managers": [swarm]}
    return FakeAgent(agent_id=f"node-{number}", features=features, **more)


async def swarm(plane: Rig, count: int = 2) -> list[FakeAgent]:
    """Nodes of one CPU each, the first one with control of their swarm."""
    amounts = {"cpu": "1", "mem": "2g"}
    return [
        await plane.agent(node(n, control=n == 1, amounts=amounts)) for n in range(1, count + 1)
    ]


async def user(plane: Rig) -> Principal:
    await plane.policy(max_containers_per_session=8)
    return await plane.user()


async def status(plane: Rig, owner: Principal, detail: SessionDetail) -> SessionDetail:
    return await plane.plane.sessions.get(owner, str(detail.session.id))


def specs(*agents: FakeAgent) -> dict[str, KernelSpec]:
    """What the agents run, by host name."""
    return {k.spec.hostname: k.spec for agent in agents for k in agent.kernels.values()}


async def test_three_containers_on_one_node(plane: Rig) -> None:
    agent = await plane.agent(node(1, None))
    ada = await user(plane)
    found = await plane.run(ada, cluster_size=3, slots={"cpu": "1"}, environ={"RANK": "mine"})
    assert [(k.cluster_role, k.cluster_index, k.hostname) for k in found.kernels] == [
        ("main", 1, "main1"),
        ("sub", 1, "sub1"),
        ("sub", 2, "sub2"),
    ]
    assert found.occupied == {"cpu": 3_000_000, "mem": 3 * 2**30}
    ran = specs(agent)
    assert ran["sub2"].command == ("sleep", "infinity")
    assert not ran["sub2"].ports
    assert ran["main1"].ports
    name = f"perijove-{found.session.id}-1"
    network = Network(name, str(found.session.id), "bridge")
    cluster = ran["sub1"].cluster
    assert cluster is not None
    assert (cluster.size, cluster.role, cluster.index) == (3, "sub", 1)
    assert cluster.hostnames == ("main1", "sub1", "sub2")
    assert cluster.network == network
    assert agent.wanted is not None
    assert agent.wanted.networks == (network,)
    environ = ran["sub2"].environ
    assert environ["BACKENDAI_CLUSTER_REPLICAS"] == "main:1,sub:2"
    assert environ["PERIJOVE_CLUSTER_HOSTS"] == "main1,sub1,sub2"
    assert (environ["WORLD_SIZE"], environ["RANK"], environ["WORLD_RANK"]) == ("3", "mine", "2")
    assert environ["BACKENDAI_CLUSTER_LOCAL_RANK"] == "2"
    await plane.destroy(ada, found)
    await plane.wait(found, Status.TERMINATED)

    async def removed() -> bool:
        return agent.wanted is not None and not agent.wanted.networks

    await until(removed, bool)


async def test_one_container_knows_that_it_is_alone(plane: Rig) -> None:
    agent = await plane.agent()
    await plane.run(await user(plane))
    spec = specs(agent)["main1"]
    assert spec.cluster is None
    assert not spec.files
    assert spec.environ["BACKENDAI_CLUSTER_SIZE"] == "1"
    assert "WORLD_SIZE" not in spec.environ


async def test_keys_reach_the_containers_and_nobody_else(plane: Rig) -> None:
    agent = await plane.agent(node(1, None))
    ada = await user(plane)
    found = await plane.run(ada, cluster_size=2)
    files = {each.path: each for each in specs(agent)["main1"].files}
    assert files == {each.path: each for each in specs(agent)["sub1"].files}
    private = files["ssh/id_cluster"].content
    assert private.startswith("-----BEGIN OPENSSH PRIVATE KEY-----")
    assert files["ssh/id_cluster"].mode == 0o600
    assert files["ssh/known_hosts"].content.startswith("[main1]:2200,[sub1]:2200 ssh-ed25519 ")
    assert files["hostfile"].content == "main1 slots=1\nsub1 slots=1\n"
    other = await plane.run(ada, cluster_size=2)
    keys = {
        spec.files for spec in specs(agent).values() if spec.session_id == str(other.session.id)
    }
    assert private not in str(keys)
    secret = private.splitlines()[1]
    for detail in (found, await status(plane, ada, found)):
        assert detail.session.cluster_keys is None
        told = str(views.session_info(detail, plane.clock()))
        assert secret not in told
        assert "PRIVATE KEY" not in told
    spec = specs(agent)["main1"]
    assert secret not in str((spec.environ, spec.labels, spec.command))
    await plane.destroy(ada, found)
    await plane.wait(found, Status.TERMINATED)
    row = await plane.store.read(lambda db: db.get_one(SessionRow, found.session.id))
    assert row.cluster_keys is None


async def test_a_session_over_nodes_of_one_swarm(plane: Rig) -> None:
    first, second = await swarm(plane)
    ada = await user(plane)
    found = await plane.run(ada, cluster_size=2, cluster_mode="multi-node")
    assert len(specs(first)) == len(specs(second)) == 1
    for spec in specs(first, second).values():
        assert spec.cluster is not None
        assert spec.cluster.network is not None
        assert spec.cluster.network.driver == "overlay"
    assert first.wanted is not None
    assert [network.driver for network in first.wanted.networks] == ["overlay"]
    assert second.wanted is not None
    assert not second.wanted.networks, "only a node with control makes it"
    second.features = {
        **second.features,
        "swarm": {"node": "n2", "control": True, "managers": ["m1", "n2"]},
    }
    second.beat(features=dict(second.features))

    async def taken_over() -> bool:
        return second.wanted is not None and bool(second.wanted.networks)

    await until(taken_over, bool)
    assert found.session.requested_slots == {"cpu": 2_000_000, "mem": 2 * 2**30}


async def test_nodes_that_no_network_connects_do_not_share_a_session(plane: Rig) -> None:
    amounts = {"cpu": "1", "mem": "2g"}
    await plane.agent(node(1, "m1", control=True, amounts=amounts))
    await plane.agent(node(2, "m2", control=True, amounts=amounts))
    await plane.agent(node(3, None, amounts=amounts))
    ada = await user(plane)
    waits = await plane.create(ada, cluster_size=2, cluster_mode="multi-node")
    await plane.plane.scheduler.run_once()
    found = await status(plane, ada, waits)
    assert found.status is Status.PENDING
    reasons = found.session.status_data["scheduler"]["reasons"]
    assert any(each["name"] in ("network", "cluster") for each in reasons), reasons
    await plane.agent(node(4, "m2", amounts=amounts))
    running = await plane.wait(waits)
    agents = {k.spec["network"]["driver"] for k in running.kernels}
    assert agents == {"overlay"}


async def test_a_swarm_that_nobody_controls_connects_nothing(plane: Rig) -> None:
    amounts = {"cpu": "1", "mem": "2g"}
    await plane.agent(node(1, amounts=amounts))
    await plane.agent(node(2, amounts=amounts))
    ada = await user(plane)
    waits = await plane.create(ada, cluster_size=2, cluster_mode="multi-node")
    await plane.plane.scheduler.run_once()
    assert (await status(plane, ada, waits)).status is Status.PENDING
    one = await plane.run(ada, cluster_size=2, cluster_mode="multi-node", slots={"cpu": "0.5"})
    assert {k.spec["network"]["driver"] for k in one.kernels} == {"bridge"}


async def test_limits_count_all_containers(plane: Rig) -> None:
    await plane.agent(node(1, None))
    ada = await user(plane)
    with pytest.raises(QuotaExceeded, match="at most 8 containers"):
        await plane.create(ada, cluster_size=9)
    await plane.policy(total_resource_slots={"cpu": 3_000_000})
    too_much = await plane.create(ada, cluster_size=4, slots={"cpu": "1"})
    await plane.plane.scheduler.run_once()
    told = (await status(plane, ada, too_much)).session.status_info
    assert "your limit of 3 CPUs is less than it needs" in told
    await plane.policy(max_pending_resource_slots={"cpu": 5_000_000})
    with pytest.raises(QuotaExceeded, match="5 CPUs together"):
        await plane.create(ada, cluster_size=2, slots={"cpu": "1"})


async def test_nodes_that_cannot_connect_containers_say_so(plane: Rig) -> None:
    await plane.agent()
    gone = await plane.agent(node(2, None))
    admin = await plane.user("root", role=ROOT)
    await plane.plane.nodes.remove(admin, gone.agent_id, forced=False, request_id=REQUEST)
    ada = await user(plane)
    with pytest.raises(InvalidParameters) as refused:
        await plane.create(ada, cluster_size=2)
    assert refused.value.fields == {
        "clusterSize": "2: the nodes of default cannot connect containers: 1 is allowed"
    }
    with pytest.raises(InvalidParameters) as refused:
        await plane.create(ada, cluster_size=2, cluster_mode="ring")
    assert "clusterMode" in refused.value.fields


async def test_a_lost_sub_degrades_and_the_session_goes_on(plane: Rig) -> None:
    first, second = await swarm(plane)
    ada = await user(plane)
    found = await plane.run(ada, cluster_size=2, cluster_mode="multi-node")
    sub = next(k for k in found.kernels if k.hostname == "sub1")
    holder = next(a for a in (first, second) if "sub1" in specs(a))
    holder.end(str(sub.id), 137, "oom-killed")
    degraded = await plane.wait(found, DEGRADED)
    assert degraded.session.status_info.startswith("sub1 is lost: it was killed because")
    assert degraded.occupied == {"cpu": 1_000_000, "mem": 2**30}
    await plane.validate()
    info = views.session_info(degraded, plane.clock())
    assert [each["status"] for each in info["containers"]] == ["RUNNING", "TERMINATED"]
    assert views.server(degraded)["url"]
    await plane.destroy(ada, degraded)
    await plane.wait(degraded, Status.TERMINATED)


async def test_the_main_container_takes_the_others_along(plane: Rig) -> None:
    agent = await plane.agent(node(1, None))
    ada = await user(plane)
    found = await plane.run(ada, cluster_size=3)
    agent.end(str(found.main.id), 0)
    ended = await plane.wait(found, *FINISHED)
    assert ended.status is Status.TERMINATED
    assert not agent.kernels


@pytest.mark.parametrize(("hostname", "code", "result"), [
    ("main1", 0, "success"), ("main1", 1, "failure"), ("sub1", 0, "failure"),
])  # fmt: skip
async def test_a_batch_cluster_ends_with_any_of_its_containers(
    plane: Rig, hostname: str, code: int, result: str
) -> None:
    agent = await plane.agent(node(1, None))
    ada = await user(plane)
    found = await plane.run(ada, cluster_size=2, type="batch", startup_command="true")
    kernel = next(k for k in found.kernels if k.hostname == hostname)
    agent.end(str(kernel.id), code)
    ended = await plane.wait(found, *FINISHED)
    assert ended.session.result == result
    assert not agent.kernels


async def test_a_part_out_of_reach_comes_back(plane: Rig) -> None:
    first, second = await swarm(plane)
    ada = await user(plane)
    found = await plane.run(ada, cluster_size=2, cluster_mode="multi-node")
    holder = next(a for a in (first, second) if "sub1" in specs(a))
    other = first if holder is second else second
    holder.deaf = True
    plane.clock.forward(plane.settings.agent_timeout + 1)
    other.beat()
    plane.plane.reconciler._leads_since = None

    async def look() -> SessionDetail:
        other.beat()
        await plane.plane.reconciler.watch_agents()
        return await status(plane, ada, found)

    away = await until(look, lambda detail: detail.status is DEGRADED)
    assert away.session.status_info == "sub1 is out of reach: its node does not answer"
    holder.deaf = False
    holder.beat()
    back = await plane.wait(found, Status.RUNNING)
    assert back.session.status_info == "all containers are there again"


async def test_a_part_that_stays_lost_is_let_go(plane: Rig) -> None:
    first, second = await swarm(plane)
    await plane.plane.administration.update(
        await plane.user("root", role=ROOT), "resource-groups", "default",
        {"options": {"lost_after": "100s"}}, REQUEST,
    )  # fmt: skip
    ada = await user(plane)
    found = await plane.run(ada, cluster_size=2, cluster_mode="multi-node")
    holder = next(a for a in (first, second) if "sub1" in specs(a))
    other = first if holder is second else second
    await holder.disconnect()
    plane.plane.reconciler._leads_since = None
    plane.clock.forward(1000)

    async def look() -> SessionDetail:
        other.beat()
        await plane.plane.reconciler.watch_agents()
        return await status(plane, ada, found)

    gone = await until(look, lambda d: d.kernels[1].status == "TERMINATING")
    assert gone.status is DEGRADED
    assert gone.occupied["cpu"] == 2_000_000, "accounted until its node says that it is gone"
    await plane.connect(holder)
    let_go = await until(look, lambda d: d.kernels[1].status == "TERMINATED")
    assert let_go.status is DEGRADED
    assert let_go.occupied["cpu"] == 1_000_000
    assert not holder.kernels


async def test_a_service_of_several_containers_is_as_well_as_its_main_one(plane: Rig) -> None:
    agent = await plane.agent(node(1, None))
    ada = await user(plane)
    service = {"port": 8000, "health_check": {"path": "/health"}}
    fields = {"type": "inference", "startup_command": "serve", "service": service}
    found = await plane.run(ada, cluster_size=2, **fields)
    kernels = {each.spec.hostname: each for each in agent.kernels.values()}
    assert kernels["main1"].spec.health is not None
    assert kernels["sub1"].spec.health is None, "it has no port"

    async def looked_at() -> SessionDetail:
        """After somebody looked at the session for another reason."""
        await plane.plane.journal.write(
            REQUEST, lambda change: steps.advance(change, found.session.id)
        )
        return await status(plane, ada, found)

    agent.move(kernels["main1"], "RUNNING", healthy=False, progress="GET /health fails")
    await plane.wait(found, DEGRADED)
    sick = await looked_at()
    assert (sick.status, sick.session.status_info) == (DEGRADED, "GET /health fails")
    agent.end(kernels["sub1"].spec.kernel_id, 1)
    both = await until(looked_at, lambda detail: detail.kernels[1].status == "TERMINATED")
    assert both.session.status_info.startswith("sub1 is lost: ")
    assert both.session.status_info.endswith("; GET /health fails")
    agent.move(kernels["main1"], "RUNNING", healthy=True, progress="")
    less = await until(looked_at, lambda detail: "/health" not in detail.session.status_info)
    assert less.status is DEGRADED, "its other container is lost still"
    await plane.destroy(ada, found)
    await plane.wait(found, Status.TERMINATED)


async def test_a_restart_restarts_every_container_in_its_place(plane: Rig) -> None:
    agent = await plane.agent(node(1, None))
    ada = await user(plane)
    found = await plane.run(ada, cluster_size=3)
    before = specs(agent)
    await plane.plane.sessions.restart(ada, str(found.session.id), REQUEST)

    async def again() -> bool:
        return [spec.epoch for spec in specs(agent).values()] == [2, 2, 2]

    await until(again, bool)
    await plane.wait(found, Status.RUNNING)
    own = Network(f"perijove-{found.session.id}-2", str(found.session.id), "bridge")
    for name, spec in specs(agent).items():
        old = before[name].cluster
        assert old is not None
        assert (spec.cluster, spec.shares) == (
            structs.replace(old, network=own),
            before[name].shares,
        )
        assert spec.files == before[name].files
    await plane.validate()


async def test_a_restart_brings_a_lost_part_back(plane: Rig) -> None:
    first, second = await swarm(plane)
    ada = await user(plane)
    found = await plane.run(ada, cluster_size=2, cluster_mode="multi-node")
    old = {each.cluster for each in specs(first, second).values()}
    sub = next(k for k in found.kernels if k.hostname == "sub1")
    holder = next(a for a in (first, second) if "sub1" in specs(a))
    holder.end(str(sub.id), 137, "oom-killed")
    await plane.wait(found, DEGRADED)
    told = await plane.plane.sessions.restart(ada, str(found.session.id), REQUEST)
    assert told.status is Status.RESTARTING
    assert [k.status for k in told.kernels] == ["TERMINATING", "PENDING"]
    await plane.validate()
    back = await plane.wait(found, Status.RUNNING)
    assert back.occupied == {"cpu": 2_000_000, "mem": 2 * 2**30}
    assert {each.epoch for each in specs(first, second).values()} == {2}
    assert not old & {each.cluster for each in specs(first, second).values()}, "a new network"
    attempts = await plane.plane.sessions.attempts(ada, str(found.session.id))
    assert sorted(each.cause for each in attempts) == ["oom", "restarted"]
    await plane.validate()


async def test_a_restart_leaves_a_part_out_of_reach_behind(plane: Rig) -> None:
    nodes = await swarm(plane, 3)
    ada = await user(plane)
    found = await plane.run(ada, cluster_size=2, cluster_mode="multi-node")
    holder = next(a for a in nodes if "sub1" in specs(a))
    others = [each for each in nodes if each is not holder]
    holder.deaf = True
    plane.clock.forward(plane.settings.agent_timeout + 1)
    plane.plane.reconciler._leads_since = None

    async def look() -> SessionDetail:
        for each in others:
            each.beat()
        await plane.plane.reconciler.watch_agents()
        return await status(plane, ada, found)

    for each in others:
        each.beat()
    await until(look, lambda detail: detail.status is DEGRADED)
    await plane.plane.sessions.restart(ada, str(found.session.id), REQUEST)
    await until(look, lambda detail: detail.status is Status.RUNNING)
    assert sorted(specs(*others)) == ["main1", "sub1"]
    await plane.validate()
    holder.deaf = False
    holder.beat()

    async def left() -> bool:
        return not holder.kernels

    await until(left, bool)
    assert (await status(plane, ada, found)).status is Status.RUNNING
    await plane.validate()


async def test_nodes_that_are_emptied_or_removed_while_a_part_is_lost(plane: Rig) -> None:
    first, second = await swarm(plane)
    root = await plane.user("root", role=ROOT)
    await plane.plane.administration.update(
        root, "resource-groups", "default", {"options": {"lost_after": "100s"}}, REQUEST
    )
    ada = await user(plane)
    found = await plane.run(ada, cluster_size=2, cluster_mode="multi-node")
    holder = next(a for a in (first, second) if "sub1" in specs(a))
    other = first if holder is second else second
    await holder.disconnect()
    plane.plane.reconciler._leads_since = None
    plane.clock.forward(1000)

    async def look() -> SessionDetail:
        other.beat()
        await plane.plane.reconciler.watch_agents()
        return await status(plane, ada, found)

    await until(look, lambda detail: detail.kernels[1].status == "TERMINATING")
    nodes = plane.plane.nodes
    await nodes.remove(root, holder.agent_id, forced=True, request_id=REQUEST)
    left = await status(plane, ada, found)
    assert (left.status, left.kernels[1].status) == (DEGRADED, "TERMINATED")
    assert left.occupied["cpu"] == 1_000_000
    await plane.validate()
    await plane.destroy(ada, left)
    await until(look, lambda detail: detail.status is Status.TERMINATED)

    third = await plane.agent(node(3, amounts={"cpu": "1", "mem": "2g"}))
    again = await plane.run(ada, cluster_size=2, cluster_mode="multi-node")
    away, stays = (third, other) if "sub1" in specs(third) else (other, third)
    await away.disconnect()
    plane.clock.forward(1000)

    async def seen() -> SessionDetail:
        stays.beat()
        await plane.plane.reconciler.watch_agents()
        return await status(plane, ada, again)

    await until(seen, lambda detail: detail.kernels[1].status == "TERMINATING")
    await nodes.drain(root, stays.agent_id, "0s", REQUEST)
    await until(seen, lambda detail: detail.kernels[0].status == "TERMINATED")


async def test_all_or_nothing_while_starting(plane: Rig) -> None:
    agent = SlowAgent(agent_id="node-1", features={"clusters": True})
    await plane.agent(agent)
    ada = await user(plane)
    found = await plane.create(ada, cluster_size=2)

    async def started() -> int:
        return len(agent.kernels)

    await until(started, lambda count: count == 2)
    names = {k.spec.hostname: k for k in agent.kernels.values()}
    first_network = names["main1"].spec.cluster
    agent.move(names["sub1"], "TERMINATED", failure="create-failed", progress="no space")

    async def again() -> bool:
        agent.finish()
        return (await status(plane, ada, found)).status is Status.RUNNING

    await until(again, bool)
    second_network = specs(agent)["main1"].cluster
    assert first_network is not None
    assert second_network is not None
    assert first_network.network != second_network.network, "each run has its own"


async def test_logs_of_each_container(plane: Rig) -> None:
    await plane.agent(node(1, None))
    ada = await user(plane)
    found = await plane.run(ada, cluster_size=2)
    sessions, ref = plane.plane.sessions, str(found.session.id)
    sub = found.kernels[1]
    for name in ("sub1", str(sub.id)):
        assert str(sub.id) in await sessions.logs(ada, ref, 1, kernel=name)
    for main in (None, ref, "main1"):
        assert str(found.main.id) in await sessions.logs(ada, ref, 1, kernel=main)
    with pytest.raises(NotFound, match="no container 'sub7'"):
        await sessions.logs(ada, ref, 1, kernel="sub7")


async def test_a_server_of_the_hub_may_be_a_cluster(plane: Rig) -> None:
    agent = await plane.agent(node(1, None))
    ada = await plane.identity.principal_by_username("ada", HUB, create=True)
    await plane.policy(max_containers_per_session=8)
    await plane.run(ada, cluster_size=2, hub=hub_launch())
    assert specs(agent)["main1"].command == ("jupyterhub-singleuser",)
    assert specs(agent)["sub1"].command == ("sleep", "infinity")


async def test_the_deployment_has_one_id(plane: Rig) -> None:
    agent = await plane.agent()
    assert agent.welcome is not None
    assert agent.welcome.deployment == await deployment_id(plane.store, plane.clock())
    assert len(agent.welcome.deployment) == 36


async def preempting(plane: Rig) -> None:
    options = {"preemption": {"action": "requeue"}}
    await plane.store.write(lambda db: db.execute(update(ResourceGroupRow).values(options=options)))


async def test_a_cluster_over_nodes_preempts_on_all_of_them(plane: Rig) -> None:
    first, second = await swarm(plane)
    ada = await user(plane)
    await preempting(plane)
    victims = [await plane.run(ada, name=name, priority=1) for name in ("first", "second")]
    urgent = await plane.create(ada, cluster_size=2, cluster_mode="multi-node", priority=10)
    found = await plane.wait(urgent)
    assert found.status is Status.RUNNING
    assert len(specs(first)) == len(specs(second)) == 1
    for victim in victims:
        assert (await plane.wait(victim, Status.PENDING)).session.status_data.get("end") is None
    await plane.destroy(ada, found)
    for victim in victims:
        assert (await plane.wait(victim)).status is Status.RUNNING, "it went on waiting"


async def test_a_degraded_cluster_ends_on_all_of_its_nodes_for_a_victor(plane: Rig) -> None:
    """It cannot go back to the queue as it is: it ends, and what it held on both nodes is free."""
    first, second = await swarm(plane)
    ada = await user(plane)
    await preempting(plane)
    victim = await plane.run(ada, cluster_size=2, cluster_mode="multi-node", priority=1)
    sub = next(k for k in victim.kernels if k.hostname == "sub1")
    holder = next(a for a in (first, second) if "sub1" in specs(a))
    holder.end(str(sub.id), 137, "oom-killed")
    await plane.wait(victim, DEGRADED)
    other = await plane.run(ada, name="other", priority=10)
    urgent = await plane.create(ada, name="urgent", priority=10)
    assert (await plane.wait(urgent)).status is Status.RUNNING
    assert (await plane.wait(victim, Status.TERMINATED)).status is Status.TERMINATED
    assert (await status(plane, ada, other)).status is Status.RUNNING
