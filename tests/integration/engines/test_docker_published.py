"""Ports that are published on a routable address: open to the proxy, closed to sessions of the same node."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import docker
import psutil
import pytest

from spawner.agent.engines.base import Engine, EngineState, Limits
from spawner.agent.engines.docker import DockerEngine, firewall
from spawner.agent.protocol import Cluster, KernelSpec, Network, Port
from tests.integration.docker_engine import ensure_test_image, running_engine, unavailable
from tests.integration.engines.conformance import SERVE, SLEEP, until

pytestmark = [pytest.mark.integration, pytest.mark.docker]
PROBE = "import socket; socket.create_connection(('{}', {}), 2)"


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    if os.geteuid() != 0:
        unavailable("only root may add rules to the firewall")
    with running_engine():
        yield ensure_test_image()


@pytest.fixture
def address() -> str:
    """One of this host's that is no loopback and none of our bridges'."""
    found = [
        each.address
        for name, addresses in sorted(psutil.net_if_addrs().items())
        for each in addresses
        if each.family is socket.AF_INET and not name.startswith(("lo", "perijove"))
    ]
    assert found, "not even Docker's own bridge has an address"
    return found[0]


@pytest.fixture
async def engine(image: str, address: str, tmp_path: Path) -> AsyncIterator[Engine]:
    engine = DockerEngine()
    await engine.open({"state_dir": str(tmp_path / "agent"), "publish_host": address})
    yield engine
    for state in await engine.list():
        await engine.stop(state.identity, 0)
        await engine.remove(state.identity)
    await engine.keep_networks((), "")
    await engine.close()
    firewall.unshield(address)


async def start(
    engine: Engine,
    image: str,
    command: tuple[str, ...],
    ports: tuple[Port, ...] = (),
    **facts: object,
) -> EngineState:
    spec = KernelSpec(
        str(uuid.uuid4()), str(uuid.uuid4()), 1, "ports", "tester", "main1", image, command, {}, (),
        ports, (), 2**20, **facts,  # type: ignore[arg-type]
    )  # fmt: skip
    state = await engine.create(spec, Limits(), ())
    return await engine.start(state.identity)


def reaches(state: EngineState, host: str, port: int) -> bool:
    with closing(docker.from_env()) as client:
        container = client.containers.get(state.native_id)
        code, _ = container.exec_run(["python3", "-c", PROBE.format(host, port)])
    return bool(code == 0)


def answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), 1).close()
    except OSError:
        return False
    return True


async def test_a_neighbour_cannot_reach_a_published_port(
    engine: Engine, image: str, address: str
) -> None:
    victim = await start(engine, image, SERVE, (Port("web", 8888),))
    (endpoint,) = victim.endpoints
    assert endpoint.host == address
    await until(lambda: answers(address, endpoint.port), "the proxy's side must work")
    neighbour = await start(engine, image, SLEEP)
    hosts = ("main1", "sub1")
    session = str(uuid.uuid4())
    network = Network(f"perijove-{session}-1", session)
    cluster = Cluster("single-node", 2, "main", 1, hosts, network)
    stranger = await start(engine, image, SLEEP, cluster=cluster)
    for attacker in (neighbour, stranger):
        assert not reaches(attacker, address, endpoint.port)
    assert answers(address, endpoint.port)

    gateway = await engine.session_address()
    with socket.create_server((gateway, 0)) as hub:
        assert reaches(neighbour, gateway, hub.getsockname()[1]), "what serves sessions stays open"
    assert not any("is missing" in sentence for sentence in await engine.leftovers())
    firewall.unshield(address)
    assert reaches(neighbour, address, endpoint.port), "it is the rule that closes the way"
    told = [sentence for sentence in await engine.leftovers() if "is missing" in sentence]
    assert len(told) == len(firewall.BRIDGES)
    assert all(f"-d {address}" in sentence for sentence in told)
    assert firewall.shield(address) is None
    assert firewall.shield(address) is None
    assert not reaches(neighbour, address, endpoint.port)


async def test_another_agents_start_adds_no_rule_twice(
    engine: Engine, address: str, tmp_path: Path
) -> None:
    other = DockerEngine()
    await other.open({"state_dir": str(tmp_path / "other"), "publish_host": address})
    await other.close()
    firewall.unshield(address)
    for rule in firewall.rules(address):
        assert firewall._iptables("-C", *rule) is not None


@pytest.mark.parametrize(
    ("address", "needed"),
    [("127.0.0.1", False), ("::1", False), ("localhost", False), ("10.1.2.3", True), ("n2", True)],
)
def test_loopback_needs_no_rule(address: str, needed: bool) -> None:
    assert firewall.needed(address) is needed
