"""Networks of sessions on one node: names and ports inside, nobody else, removed by their own agent only."""

from __future__ import annotations

import socket
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import docker
import pytest

from spawner.agent.engines.base import Engine, EngineState, Limits
from spawner.agent.engines.docker import DockerEngine
from spawner.agent.protocol import Cluster, File, KernelSpec, Network, Port
from tests.integration.docker_engine import ensure_test_image, running_engine
from tests.integration.engines.conformance import SERVE, SLEEP, until

pytestmark = [pytest.mark.integration, pytest.mark.docker]

HOSTS = ("main1", "sub1")
PROBE = "import socket; socket.create_connection(('{}', {}), 2)"


@pytest.fixture(scope="module", autouse=True)
def image() -> Iterator[str]:
    with running_engine():
        yield ensure_test_image()


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    engine = DockerEngine()
    await engine.open({"state_dir": str(tmp_path / "agent")})
    yield engine
    for state in await engine.list():
        await engine.stop(state.identity, 0)
        await engine.remove(state.identity)
    await engine.keep_networks((), "")
    await engine.close()


def network(session: str) -> Network:
    return Network(f"perijove-{session}-1", session)


async def start(
    engine: Engine, image: str, session: str, number: int, command: tuple[str, ...]
) -> EngineState:
    role = ("main", "sub")[number]
    spec = KernelSpec(
        str(uuid.uuid4()), session, 1, "cluster", "tester", HOSTS[number], image, command, {}, (),
        () if number else (Port("web", 8888),), (), 2**20,
        cluster=Cluster("single-node", 2, role, 1, HOSTS, network(session)),
        files=(File("ssh/config", "Host nobody\n"),),
    )  # fmt: skip
    state = await engine.create(spec, Limits(), ())
    return await engine.start(state.identity)


def run(state: EngineState, *command: str) -> tuple[int, str]:
    client = docker.from_env()
    try:
        code, raw = client.containers.get(state.native_id).exec_run(list(command))
        return int(code), raw.decode()
    finally:
        client.close()


def exists(name: str) -> bool:
    client = docker.from_env()
    try:
        return bool(client.networks.list(names=[f"^{name}$"]))
    finally:
        client.close()


async def test_a_session_of_two_containers(engine: Engine, image: str, tmp_path: Path) -> None:
    mine, other = str(uuid.uuid4()), str(uuid.uuid4())
    main = await start(engine, image, mine, 0, SERVE)
    sub = await start(engine, image, mine, 1, SLEEP)
    stranger = await start(engine, image, other, 1, SLEEP)

    async def reached() -> bool:
        return run(sub, "python3", "-c", PROBE.format("main1", 8888))[0] == 0

    await until(reached, "the containers of a session reach each other by name")
    assert main.endpoints == (), "nothing of it is published"
    socket.create_connection(await engine.reach(main.identity, 8888), 5).close()
    assert run(stranger, "getent", "hosts", "main1")[0] != 0
    _, address = run(sub, "python3", "-c", "import socket; print(socket.gethostbyname('main1'))")
    assert run(stranger, "python3", "-c", PROBE.format(address.strip(), 8888))[0] != 0
    told = (
        "import os; s = os.stat('/home/config/ssh/config'); print(s.st_uid, oct(s.st_mode & 511))"
    )
    assert run(sub, "python3", "-c", told)[1].split() == ["1000", "0o600"]
    assert run(sub, "cat", "/etc/ssh/ssh_config.d/perijove.conf") == (0, "Host nobody\n")
    assert run(sub, "sh", "-c", "echo x > /home/config/ssh/config")[0] != 0
    folder = tmp_path / "agent/config"
    assert len(list(folder.iterdir())) == 3
    await engine.stop(main.identity, 0)
    assert not await engine.keep_networks((network(other),), ""), "the other one is in it"
    for state in (main, sub):
        await engine.stop(state.identity, 0)
        await engine.remove(state.identity)
    assert len(list(folder.iterdir())) == 1
    await until(lambda: engine.keep_networks((network(other),), ""), "nothing uses it any more")
    assert not exists(network(mine).name)
    assert exists(network(other).name)


async def test_networks_of_strangers_stay(engine: Engine, tmp_path: Path) -> None:
    another = DockerEngine()
    await another.open({"state_dir": str(tmp_path / "another")})
    theirs, ours = network(str(uuid.uuid4())), network(str(uuid.uuid4()))
    client = docker.from_env()
    plain = client.networks.create(f"plain-{uuid.uuid4().hex[:8]}")
    try:
        assert await another.keep_networks((theirs,), "")
        assert await engine.keep_networks((ours,), "")
        assert await engine.keep_networks((ours,), ""), "once is enough"
        assert await engine.keep_networks((), "")
        assert not exists(ours.name)
        assert exists(theirs.name)
        assert exists(str(plain.name))
    finally:
        plain.remove()
        client.close()
        await another.keep_networks((), "")
        await another.close()
    assert not exists(theirs.name)


async def test_what_a_killed_agent_left_is_removed(engine: Engine, tmp_path: Path) -> None:
    left = tmp_path / "agent/config/someone-1"
    left.mkdir(parents=True)
    session = str(uuid.uuid4())
    await engine.keep_networks((network(session),), "")
    await engine.close()
    again = DockerEngine()
    await again.open({"state_dir": str(tmp_path / "agent")})
    assert not left.exists()
    assert await again.keep_networks((), "")
    assert not exists(network(session).name)
    await again.close()
    await engine.open({"state_dir": str(tmp_path / "agent")})
