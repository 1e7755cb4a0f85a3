"""What the spawn form and Backend.AI's clients are told about resources."""

import re
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from authenticator.principals import Role
from authenticator.problems import Forbidden, InvalidParameters
from hub.config.deployment import Deployment
from hub.first_start import default_images
from spawner.options import DEFAULT_IMAGE
from spawner.sessions.metrics import Metrics
from spawner.sessions.offers import NO_NODES, bootstrap
from spawner.sessions.states import Status
from spawner.sessions.tables import PresetRow, ResourceGroupRow
from tests.harness.agent import IMAGE, FakeAgent
from tests.harness.plane import Rig

GIB = 1024**3


async def test_spawn_options(plane: Rig) -> None:
    ada = await plane.user()
    empty = await plane.plane.offers.spawn_options(ada)
    assert empty["notice"] == NO_NODES
    assert empty["images"] == []
    assert empty["defaults"] == {"image": None, "resource_group": "default", "preset": "small"}
    amounts = {"cpu": "2", "mem": "8g", "cuda.device": "2"}
    await plane.agent(FakeAgent("node-1", amounts))
    await plane.agent(FakeAgent("node-2", {"cpu": "3", "mem": "2g"}))
    await plane.run(ada)
    offer = await plane.plane.offers.spawn_options(ada)
    assert offer["notice"] is None
    assert [(p["name"], p["verdict"]) for p in offer["presets"]] == [
        ("small", "now"),
        ("medium", "now"),
        ("large", "never"),
    ]
    assert offer["presets"][1]["human"] == "2 CPUs, 4 GiB of memory"
    assert offer["presets"][1]["slots"] == {"cpu": "2", "mem": str(4 * GIB)}
    assert "no node has more than 3 CPUs" in offer["presets"][2]["message"]
    group = offer["groups"][0]
    assert (group["name"], group["agents"]) == ("default", 2)
    assert group["free"] == {"cpu": "4", "cuda.device": "2", "mem": str(9 * GIB)}
    assert group["largest"] == {"cpu": "3", "cuda.device": "2", "mem": str(8 * GIB)}
    assert [slot["name"] for slot in group["slots"]] == ["cpu", "mem", "cuda.device"]
    assert group["slots"][0]["quantum"] == "0.1"
    assert offer["images"] == [{"name": IMAGE, "label": "Test image", "architecture": "x86_64"}]
    assert offer["defaults"]["image"] == IMAGE
    assert "node-" not in str(offer)


async def test_the_plain_image_is_the_default_unless_another_is_configured(plane: Rig) -> None:
    ada = await plane.user()
    more = ("a/first:latest", "perijove/jupyterlab-vscode:latest")
    await plane.agent(FakeAgent("node-1", images=more))
    assert (await plane.plane.offers.spawn_options(ada))["defaults"]["image"] == more[0]
    await plane.agent(FakeAgent("node-2", images=(*more, DEFAULT_IMAGE)))
    assert (await plane.plane.offers.spawn_options(ada))["defaults"]["image"] == DEFAULT_IMAGE
    deployment = Deployment(db_url=plane.store.url.render_as_string(hide_password=False))
    assert await default_images(deployment) == {DEFAULT_IMAGE}

    async def configure(db: AsyncSession) -> None:
        row = await db.get_one(ResourceGroupRow, "default")
        row.options = {**row.options, "default_image": more[1]}

    await plane.store.write(configure)
    assert (await plane.plane.offers.spawn_options(ada))["defaults"]["image"] == more[1]
    assert await default_images(deployment) == {more[1]}
    deployment.config.PerijoveSpawner.image = "mine:latest"
    assert await default_images(deployment) == {"mine:latest"}


@pytest.mark.parametrize(
    ("fields", "verdict", "words"),
    [
        ({"slots": {"cpu": "2"}}, "now", "can start now"),
        ({"slots": {"cpu": "4"}}, "wait", "waiting for 1 CPU"),
        ({"slots": {"cpu": "5"}}, "never", "no node has more than 4 CPUs"),
        ({"slots": {"cpu": "x"}}, "never", "slots.cpu"),
        ({"slots": {}, "shmem": "2g"}, "never", "shmem"),
        ({"slots": {}, "resource_group": "gpu"}, "never", "resource_group"),
        ({"slots": {}, "image": "no/such"}, "never", "image"),
    ],
)
async def test_a_dry_run(plane: Rig, fields: dict[str, object], verdict: str, words: str) -> None:
    await plane.agent()
    ada = await plane.user()
    await plane.run(ada)
    asked = {"image": IMAGE, "resource_group": None, **fields}
    check = await plane.plane.offers.dry_run(ada, **asked)  # type: ignore[arg-type]  # kwargs
    assert check.verdict == verdict
    assert words in check.message or words in check.errors
    assert await plane.plane.sessions.count(ada) == 1


async def test_a_dry_run_agrees_with_what_happens(plane: Rig) -> None:
    await plane.agent()
    ada = await plane.user()
    for cpu, becomes in (("3", Status.RUNNING), ("2", Status.PENDING)):
        check = await plane.plane.offers.dry_run(
            ada, image=IMAGE, resource_group="default", slots={"cpu": cpu, "mem": "1g"}
        )
        detail = await plane.create(ada, cpu=cpu)
        await plane.plane.scheduler.run_once()
        if becomes is Status.RUNNING:
            assert check.verdict == "now"
            await plane.wait(detail)
        else:
            assert check.verdict == "wait"
            found = await plane.plane.sessions.get(ada, detail.session.name)
            assert found.session.status_info == check.message


async def test_check_presets_in_the_shape_of_backend_ai(plane: Rig) -> None:
    await plane.agent()
    ada = await plane.user()
    await plane.policy(total_resource_slots={"cpu": 3_000_000})
    await plane.run(ada)
    answer = await plane.plane.offers.check_presets(ada)
    assert answer["keypair_limits"]["cpu"] == "3"
    assert answer["keypair_limits"]["mem"] == "Infinity"
    assert answer["keypair_using"]["cpu"] == "1"
    assert answer["keypair_remaining"]["cpu"] == "2"
    assert answer["group_limits"]["cpu"] == "Infinity"
    assert answer["group_using"]["cpu"] == "1"
    assert answer["scaling_groups"]["default"]["using"]["mem"] == str(GIB)
    assert answer["scaling_group_remaining"]["cpu"] == "3"
    assert [(p["name"], p["allocatable"]) for p in answer["presets"]] == [
        ("small", True),
        ("medium", True),
        ("large", False),
    ]
    assert answer["presets"][0]["shared_memory"] == str(64 * 1024**2)
    with pytest.raises(InvalidParameters):
        await plane.plane.offers.check_presets(ada, resource_group="gpu")
    with pytest.raises(InvalidParameters):
        await plane.plane.offers.check_presets(ada, project="secret")


async def test_limits_in_check_presets_are_the_smallest_of_ones_own(plane: Rig) -> None:
    await plane.agent()
    ada, bob = await plane.user(), await plane.user("bob")
    await plane.policy(total_resource_slots={"cpu": 4_000_000})
    await plane.user_policy(total_resource_slots={"cpu": 3_000_000, "mem": 2 * GIB})
    await plane.project_policy(total_resource_slots={"mem": 4 * GIB})
    await plane.create(bob, cpu="8")
    await plane.run(ada)
    for who, left in ((ada, "2"), (bob, "3")):
        answer = await plane.plane.offers.check_presets(who)
        assert answer["keypair_limits"]["cpu"] == "3"
        assert answer["keypair_remaining"]["cpu"] == left
        assert answer["keypair_limits"]["mem"] == str(2 * GIB)
        assert answer["group_limits"]["mem"] == str(4 * GIB)
        assert answer["group_remaining"]["mem"] == str(3 * GIB)
        assert answer["group_limits"]["cpu"] == "Infinity"


async def test_presets_and_groups(plane: Rig) -> None:
    offers = plane.plane.offers

    async def more(db: AsyncSession) -> None:
        now = plane.clock()
        db.add(ResourceGroupRow(name="gpu", is_active=True, options={}, created_at=now))
        await db.flush()
        db.add(PresetRow(name="tiny", resource_slots={}, resource_group="gpu", rank=-1))

    await plane.store.write(more)
    await bootstrap(plane.store, plane.clock())
    assert [row.name for row in await offers.presets()] == ["tiny", "small", "medium", "large"]
    assert [row.name for row in await offers.presets("default")] == ["small", "medium", "large"]
    assert [row.name for row in await offers.resource_groups()] == ["default", "gpu"]
    assert (await offers.slot_types())["mem"] == "bytes"


async def test_agents_are_for_administrators(plane: Rig) -> None:
    await plane.agent()
    ada = await plane.user()
    detail = await plane.run(ada, cpu="1.5")
    with pytest.raises(Forbidden):
        await plane.plane.nodes.list(ada)
    view = (await plane.plane.nodes.list(await plane.user("root", Role.SUPERADMIN)))[0]
    assert (view.id, view.status, view.connected) == ("node-1", "ALIVE", True)
    assert view.used["cpu"] == 1_500_000
    assert [(each.name, each.owner) for each in view.sessions] == [(detail.session.name, "ada")]
    assert {each["slot"] for each in view.devices} == {"cpu", "mem"}


def test_every_series_of_the_manager_is_documented() -> None:
    page = (Path(__file__).parents[3] / "docs/monitoring.md").read_text("utf-8")
    names = {each.name for each in Metrics().registry.collect()}
    assert {name for name in names if not re.search(rf"`{name}(_total)?`", page)} == set()


async def test_metrics(plane: Rig) -> None:
    await plane.agent()
    ada = await plane.user()
    await plane.run(ada)
    text = (await plane.plane.render_metrics()).decode()
    assert 'perijove_sessions{status="RUNNING"} 1.0' in text
    assert 'perijove_sessions{status="CANCELLED"} 0.0' in text
    assert 'perijove_queue_length{group="default"} 0.0' in text
    assert 'perijove_allocation_ratio{slot="cpu"} 0.25' in text
    assert 'perijove_agent_heartbeat_age_seconds{agent="node-1"}' in text
    assert 'perijove_placements_total{outcome="placed"} 1.0' in text
    assert 'perijove_ledger_drift_total{kind="account"} 0.0' in text
