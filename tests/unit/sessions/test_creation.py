"""Every field of a request is checked, all errors are told at once, and what is kept is hidden again."""

import asyncio
import datetime as dt
from dataclasses import replace

import pytest

from authenticator.principals import Role, Scope, Via
from authenticator.problems import (
    Forbidden,
    InvalidParameters,
    NotFound,
    QuotaExceeded,
    SessionAlreadyExists,
)
from spawner.sessions.durations import moment, seconds_of
from spawner.sessions.requests import REDACTED, hide_secrets
from spawner.sessions.states import Status
from tests.harness.agent import IMAGE, LABELS, FakeAgent, SlowAgent
from tests.harness.plane import FINISHED, REQUEST, Rig, hub_launch, request, until

NOW = dt.datetime(2026, 11, 23, 12, tzinfo=dt.UTC)
DOTS = f"a{'.' * 60}!"
"""As the name of a slot it could be read in more ways than anybody could try."""


async def test_all_wrong_fields_are_told_at_once(plane: Rig) -> None:
    await plane.agent()
    ada = await plane.user()
    with pytest.raises(InvalidParameters) as refused:
        await plane.create(
            ada,
            name="x!",
            type="daemon",
            resource_group="nowhere",
            project="nobody",
            domain="elsewhere",
            priority=99,
            tag="t" * 65,
            cluster_size=0,
            cluster_mode="ring",
            architecture="sparc",
            slots={"cpu": "0.33", "mem": "lots", "cuda.nothing": "1", DOTS: "1"},
            resource_opts={"shmem": "-1", "colour": "blue"},
            environ={"1X": "", "LD_PRELOAD": "x", "OK": "a\0b"},
            preopen_ports=["80", 2200],
            starts_at="tomorrow",
            startup_command="run",
            callback_url="http://x",
            bootstrap_script="x" * 20_000,
            dependencies=["y"],
            hub=hub_launch(),
        )
    assert set(refused.value.fields) == {
        "name",
        "type",
        "config.scalingGroup",
        "group",
        "domain",
        "priority",
        "tag",
        "clusterSize",
        "clusterMode",
        "architecture",
        "config.resources.cpu",
        "config.resources.mem",
        "config.resources.cuda.nothing",
        f"config.resources.{DOTS}",
        "config.resource_opts.shmem",
        "config.resource_opts.colour",
        "config.environ.1X",
        "config.environ.LD_PRELOAD",
        "config.environ.OK",
        "config.preopen_ports",
        "starts_at",
        "startupCommand",
        "callback_url",
        "bootstrap_script",
        "dependencies.y",
        "perijove",
    }
    assert refused.value.fields["config.scalingGroup"] == "'nowhere': one of default"
    assert await plane.plane.sessions.count(ada) == 0


ONE_FAULT = [
    ({"type": "batch"}, "startupCommand", "needs a command"),
    ({"type": "batch", "startup_command": "x", "starts_at": "soon"}, "starts_at", "ISO 8601"),
    ({"resource_opts": {"shmem": "1g"}}, "config.resource_opts.shmem", "less than 1 GiB"),
    ({"cpu": "0.1"}, "config.resources.cpu", "at least 0.5 CPUs"),
    ({"mem": "0"}, "config.resources.mem", "more than 0"),
    ({"environ": {"A": "x" * 40_000}}, "config.environ.A", "at most 32768 bytes"),
    ({"environ": {f"A{n}": "" for n in range(300)}}, "config.environ", "at most 256"),
    ({"mounts": ["nothing"]}, "config.mounts.nothing", "no folder"),
]


@pytest.mark.parametrize(("fields", "where", "sentence"), ONE_FAULT)
async def test_one_wrong_field(
    standing: Rig, fields: dict[str, object], where: str, sentence: str
) -> None:
    await standing.refuses(where, sentence, **fields)


async def test_an_image_says_which_accelerators_it_can_use(
    plane: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    amounts = {"cpu": "4", "mem": "8g", "cuda.device": "2", "rocm.device": "2"}
    monkeypatch.setitem(LABELS, "ai.backend.accelerators", "cuda, tpu")
    await plane.agent(FakeAgent(amounts=amounts))
    ada = await plane.user()
    with pytest.raises(InvalidParameters) as refused:
        await plane.create(ada, slots={"cpu": "1", "mem": "1g", "rocm.device": "1"})
    assert refused.value.fields == {"config.resources.rocm.device": "this image can use cuda, tpu"}
    assert await plane.create(ada, slots={"cpu": "1", "mem": "1g", "cuda.device": "1"})


async def test_limits_of_the_policy(plane: Rig) -> None:
    await plane.agent()
    ada = await plane.user()
    await plane.policy(max_pending_sessions=1, max_priority=50)
    with pytest.raises(QuotaExceeded, match="at most 1 containers"):
        await plane.create(ada, cluster_size=2)
    await plane.create(ada, cpu="100", priority=50)
    with pytest.raises(QuotaExceeded, match="1 sessions waiting"):
        await plane.create(ada)
    await plane.policy(max_pending_sessions=None, max_containers_per_session=4)
    with pytest.raises(InvalidParameters, match=r"Input validation error") as refused:
        await plane.create(ada, cluster_size=2)
    assert "cannot connect containers" in refused.value.fields["clusterSize"]


async def test_quotas_hold_sessions_in_the_queue(plane: Rig) -> None:
    await plane.agent()
    ada = await plane.user()
    await plane.policy(max_concurrent_sessions=1, total_resource_slots={"cpu": 2_000_000})
    first = await plane.run(ada)
    second = await plane.create(ada)
    await plane.plane.scheduler.run_once()
    found = await plane.plane.sessions.get(ada, second.session.name)
    assert found.session.status_info == "waiting: your limit of 1 session is reached"
    third = await plane.create(ada, cpu="3")
    await plane.plane.scheduler.run_once()
    found = await plane.plane.sessions.get(ada, third.session.name)
    assert found.session.status_info.startswith("cannot ever start: ")
    assert "your limit of 2 CPUs is less than it needs" in found.session.status_info
    await plane.destroy(ada, first)
    assert (await plane.wait(second)).status is Status.RUNNING


async def test_an_unknown_image_is_not_found(plane: Rig) -> None:
    await plane.agent()
    ada = await plane.user()
    with pytest.raises(NotFound) as refused:
        await plane.plane.sessions.create(ada, ada, replace(request(), image="no/such"), REQUEST)
    assert refused.value.body()["title"] == "No such environment image."
    short = replace(request(), image="perijove/base")
    with pytest.raises(NotFound):
        await plane.plane.sessions.create(ada, ada, short, REQUEST)


async def test_reuse_of_a_live_name(plane: Rig) -> None:
    await plane.agent(SlowAgent())
    ada = await plane.user()
    service = plane.plane.sessions
    asked = request(name="lab-of-ada")
    first = await service.create(ada, ada, asked, REQUEST)
    again = await service.create(ada, ada, asked, REQUEST)
    assert (first.created, again.created) == (True, False)
    assert again.detail.session.id == first.detail.session.id
    with pytest.raises(SessionAlreadyExists) as refused:
        await service.create(ada, ada, replace(asked, reuse_if_exists=False), REQUEST)
    assert refused.value.data == {"existingSessionId": str(first.detail.session.id)}
    await plane.wait(first.detail, Status.PREPARING)
    await plane.destroy(ada, first.detail)
    with pytest.raises(SessionAlreadyExists, match="still ending"):
        await service.create(ada, ada, asked, REQUEST)


async def test_a_crowd_that_asks_for_one_name_gets_one_session(plane: Rig) -> None:
    agent = await plane.agent()
    ada = await plane.user()
    asked = request(name="only-one")
    service = plane.plane.sessions
    answers = await asyncio.gather(*(service.create(ada, ada, asked, f"r{n}") for n in range(12)))
    assert sum(answer.created for answer in answers) == 1
    assert len({answer.detail.session.id for answer in answers}) == 1
    await plane.wait(answers[0].detail)
    assert len(agent.starts) == 1


async def test_another_image_under_a_live_name_is_refused(plane: Rig) -> None:
    agent = await plane.agent()
    ada = await plane.user()
    asked = request(name="lab-of-ada")
    first = await plane.plane.sessions.create(ada, ada, asked, REQUEST)
    await plane.wait(first.detail)
    other = replace(agent, agent_id="node-2", images=("other:1",), kernels={}, starts=[])
    await plane.agent(other)
    with pytest.raises(SessionAlreadyExists, match=f"runs the image {IMAGE}"):
        await plane.plane.sessions.create(ada, ada, replace(asked, image="other:1"), REQUEST)


async def test_what_the_hub_asks_for(plane: Rig) -> None:
    agent = await plane.agent()
    ada = await plane.user()
    hub = replace(ada, via=Via.HUB)
    secret = {"JUPYTERHUB_API_TOKEN": "s3cret", "JUPYTERHUB_USER": "ada"}
    asked = request(name="ada-lab-0123456789", environ=secret, hub=hub_launch("lab"))
    made = await plane.plane.sessions.create(hub, ada, asked, REQUEST)
    found = await plane.wait(made.detail)
    spec = next(iter(agent.kernels.values())).spec
    assert spec.environ["JUPYTERHUB_API_TOKEN"] == "s3cret"
    assert spec.command == ("jupyterhub-singleuser",)
    assert [(port.container_port, port.published) for port in spec.ports] == [(8888, True)]
    assert found.environ == {"JUPYTERHUB_API_TOKEN": REDACTED, "JUPYTERHUB_USER": "ada"}
    assert "s3cret" not in str([vars(kernel) for kernel in found.kernels])
    service = plane.plane.sessions
    assert [each.session.id for each in await service.servers("hub-1")] == [made.detail.session.id]
    assert await service.servers("hub-2") == []
    await plane.destroy(ada, found)
    await plane.wait(found, *FINISHED)
    assert await service.servers("hub-1") == []
    assert (await service.server("hub-1", ada, asked.name)).status in FINISHED
    with pytest.raises(NotFound):
        await service.server("hub-2", ada, asked.name)


async def test_a_session_of_its_own_has_a_token_and_the_ports_of_its_image(plane: Rig) -> None:
    agent = await plane.agent()
    ada = await plane.user()
    detail = await plane.run(ada, preopen_ports=["9000"])
    spec = next(iter(agent.kernels.values())).spec
    assert len(spec.environ["JUPYTER_TOKEN"]) > 30
    assert [(port.name, port.container_port) for port in spec.ports] == [
        ("jupyterlab", 8888),
        ("preopen-9000", 9000),
    ]
    assert not any(port.published for port in spec.ports)
    assert detail.environ == {"JUPYTER_TOKEN": REDACTED}


async def test_an_image_made_for_backend_ai_waits_for_who_opens_its_apps(
    plane: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = "jupyter:http:8081,tensorboard:http:6006"
    labels = {"ai.backend.kernelspec": "1", "ai.backend.service-ports": ports}
    monkeypatch.setattr("tests.harness.agent.LABELS", labels)
    agent = await plane.agent()
    ada = await plane.user()
    detail = await plane.run(ada, preopen_ports=["9000"])
    spec = next(iter(agent.kernels.values())).spec
    assert spec.command == ("sleep", "infinity")
    assert [port.name for port in spec.ports] == ["preopen-9000"], "nobody listens at the others"
    apps = {app["name"]: app["argv"] for app in detail.main.spec["apps"]}
    assert apps["jupyter"][0] == "jupyter", "it is started when somebody opens it"
    assert apps["tensorboard"][0] == "tensorboard"
    assert apps["9000"] == []


async def test_only_administrators_choose_nodes(plane: Rig) -> None:
    await plane.agent()
    ada = await plane.user()
    admin = await plane.user("root", Role.SUPERADMIN)
    with pytest.raises(Forbidden):
        await plane.create(ada, designated_agents=["node-1"])
    with pytest.raises(InvalidParameters, match="Input"):
        await plane.create(admin, designated_agents=["node-9"])
    detail = await plane.run(admin, designated_agents=["node-1"])
    found = await plane.plane.sessions.get(admin, detail.session.name)
    assert found.main.agent_id == "node-1"
    assert detail.main.agent_id is None


async def test_acting_for_others_takes_a_scope(plane: Rig) -> None:
    await plane.agent()
    ada, eve = await plane.user(), await plane.user("eve")
    with pytest.raises(Forbidden):
        await plane.plane.sessions.create(eve, ada, request(), REQUEST)
    reader = replace(ada, scopes=frozenset({Scope.SESSIONS_READ}))
    with pytest.raises(Forbidden):
        await plane.plane.sessions.create(reader, ada, request(), REQUEST)


def test_moments() -> None:
    assert moment("90s", NOW) == NOW + dt.timedelta(seconds=90)
    assert moment("1.5h", NOW) == NOW + dt.timedelta(minutes=90)
    assert moment("2026-12-01T00:00:00", NOW) == dt.datetime(2026, 12, 1, tzinfo=dt.UTC)
    assert moment("2026-12-01T02:00:00+02:00", NOW) == dt.datetime(2026, 12, 1, tzinfo=dt.UTC)
    assert moment("9999999w", NOW) is None
    assert moment("whenever", NOW) is None
    assert moment("9999-12-31T23:59-23:00", NOW) is None, "it is in the year 10000 of UTC"
    with pytest.raises(ValueError, match="a duration such as"):
        seconds_of(10**400)


def test_secrets_are_hidden_by_name() -> None:
    environ = {"A_TOKEN": "1", "secret_x": "2", "MY_PASSWORD": "3", "KEYS": "4", "HOME": "5"}
    hidden = hide_secrets(environ)
    assert hidden.pop("HOME") == "5"
    assert set(hidden.values()) == {REDACTED}


async def test_a_waiting_batch_starts_when_its_time_comes(plane: Rig) -> None:
    await plane.agent()
    ada = await plane.user()
    detail = await plane.create(ada, type="batch", startup_command="x", starts_at="1s")

    async def told() -> str:
        return (await plane.plane.sessions.get(ada, detail.session.name)).session.status_info

    assert "not to start before" in await until(told, lambda text: "waiting: " in text)
    assert (await plane.wait(detail)).status is Status.RUNNING
