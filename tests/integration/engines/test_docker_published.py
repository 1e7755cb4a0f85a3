"""Ports of sessions on a routable address: the proxy's own one, the relays', and no other way to any of them."""

from __future__ import annotations

import os
import socket
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import docker
import msgspec
import psutil
import pytest

from spawner.agent.engines.base import Engine, EngineState, Limits
from spawner.agent.engines.docker import DockerEngine, firewall
from spawner.agent.protocol import Cluster, KernelSpec, Network, Port
from tests.integration.agent.test_apps import PORTS, Node, fetch
from tests.integration.agent.test_apps import WEB as USUAL
from tests.integration.docker_engine import ensure_test_image, running_engine, unavailable
from tests.integration.engines.conformance import SERVE, SLEEP, until

pytestmark = [pytest.mark.integration, pytest.mark.docker]
PROBE = "import socket; socket.create_connection(('{}', {}), 2)"
PROBE_FROM = "import socket; socket.create_connection(('{}', {}), 2, ('{}', 0))"
WEB = msgspec.structs.replace(USUAL, port=18473)
"""On a port that nothing else of this machine has."""
RELAYS = f"{PORTS.start}-{PORTS.stop - 1}"
OPERATIONS = Path(__file__).parents[3] / "docs/operations.md"


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
def rules(address: str) -> firewall.Rules:
    return firewall.rules(address, RELAYS, (firewall.BRIDGES, "docker_gwbridge"))


@pytest.fixture
async def engine(
    image: str, address: str, rules: firewall.Rules, tmp_path: Path
) -> AsyncIterator[Engine]:
    engine = DockerEngine()
    settings = {"publish_host": address, "app_ports": RELAYS}
    await engine.open({"state_dir": str(tmp_path / "agent"), **settings})
    yield engine
    for state in await engine.list():
        await engine.stop(state.identity, 0)
        await engine.remove(state.identity)
    await engine.keep_networks((), "")
    await engine.close()
    firewall.unshield(rules)


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


def inside(state: EngineState, program: str) -> bool:
    """Whether a Python program succeeds in the container."""
    with closing(docker.from_env()) as client:
        container = client.containers.get(state.native_id)
        code, _ = container.exec_run(["python3", "-c", program])
    return bool(code == 0)


def reaches(state: EngineState, host: str, port: int) -> bool:
    return inside(state, PROBE.format(host, port))


def answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), 1).close()
    except OSError:
        return False
    return True


def ip(*words: str, check: bool = True) -> int:
    return subprocess.run(["ip", *words], check=check, capture_output=True).returncode


class Beside:
    """A machine beside this host that takes it for a router; it has the addresses 2, 3 and 4 of its net."""

    def __init__(self, space: str, net: str) -> None:
        self._space, self.net = space, net

    def __call__(self, host: str, port: int, by: int = 2) -> bool:
        """Whether one reaches a port from there."""
        probe = ["python3", "-c", PROBE_FROM.format(host, port, f"{self.net}.{by}")]
        return ip("netns", "exec", self._space, *probe, check=False) == 0


@contextmanager
def machine() -> Iterator[Beside]:
    mark = uuid.uuid4().hex[:6]
    space, link, net = f"pjn-{mark}", f"pjn{mark}", f"10.214.{int(mark[:2], 16) % 250}"
    # As on a host that was a router before Docker came: Docker leaves its policy at ACCEPT then.
    forward = ("FORWARD", "-i", link, "-j", "ACCEPT")
    try:
        ip("netns", "add", space)
        ip("link", "add", link, "type", "veth", "peer", "name", "uplink", "netns", space)
        ip("addr", "add", f"{net}.1/24", "dev", link)
        ip("link", "set", link, "up")
        for each in (2, 3, 4):
            ip("-n", space, "addr", "add", f"{net}.{each}/24", "dev", "uplink")
        ip("-n", space, "link", "set", "uplink", "up")
        ip("-n", space, "route", "add", "default", "via", f"{net}.1")
        assert firewall._iptables("-A", *forward) is None
        yield Beside(space, net)
    finally:
        firewall._iptables("-D", *forward)
        ip("link", "del", link, check=False)
        ip("netns", "del", space, check=False)


async def test_a_neighbour_cannot_reach_a_published_port(
    engine: Engine, image: str, address: str, rules: firewall.Rules
) -> None:
    victim = await start(engine, image, SERVE, (Port("web", 8888, published=True),))
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
    with machine() as from_outside:
        assert from_outside(address, endpoint.port), "a proxy may be on another machine"

    gateway = await engine.session_address()
    with socket.create_server((gateway, 0)) as hub:
        assert reaches(neighbour, gateway, hub.getsockname()[1]), "what serves sessions stays open"
    assert not any("is missing" in sentence for sentence in await engine.leftovers())
    firewall.unshield(rules)
    assert reaches(neighbour, address, endpoint.port), "it is the rule that closes the way"
    told = [sentence for sentence in await engine.leftovers() if "is missing" in sentence]
    assert len(told) == len(rules)
    assert firewall.shield(rules) is None
    assert firewall.shield(rules) is None
    assert not reaches(neighbour, address, endpoint.port)


async def test_nothing_but_the_relay_leads_to_an_app(
    image: str, address: str, rules: firewall.Rules, tmp_path: Path
) -> None:
    home = tmp_path / "volume/home"
    home.mkdir(parents=True)
    os.chown(home, 1000, 1000)
    node = Node(tmp_path, DockerEngine(), image, address)
    await node.start()
    try:
        kernel, other = await node.run(), await node.run()
        relay = await node.open(kernel, WEB)
        assert (await fetch(relay)).endswith(b"start\n")
        states = {state.identity.kernel_id: state for state in await node.engine.list()}
        victim, attacker = states[kernel], states[other]
        assert victim.endpoints == ()
        inner, _ = await node.engine.reach(victim.identity, WEB.port)
        gateway = await node.engine.session_address()
        places = [(inner, WEB.port), (gateway, WEB.port), (gateway, relay["port"]),
                  (address, WEB.port), (address, relay["port"])]  # fmt: skip
        assert [where for where in places if reaches(attacker, *where)] == []
        assert not inside(
            attacker, "import socket; socket.socket(socket.AF_INET6).connect(('::', 1))"
        )
        found = [a for n in psutil.net_if_addrs().values() for a in n if a.family is socket.AF_INET]
        assert [a.address for a in found if answers(a.address, WEB.port)] == []
        with machine() as from_outside:
            assert not from_outside(inner, WEB.port)
            assert from_outside(address, relay["port"]), "with the token the manager gets in"
            firewall.unshield(rules)
            assert from_outside(inner, WEB.port), "it is the rule that closes the way"
            assert reaches(attacker, address, relay["port"])
            assert firewall.shield(rules) is None
            assert not from_outside(inner, WEB.port)
    finally:
        for state in await node.engine.list():
            await node.engine.stop(state.identity, 0)
            await node.engine.remove(state.identity)
        await node.stop()
        firewall.unshield(rules)


async def test_what_we_advise_keeps_other_nodes_from_servers_and_relays(
    engine: Engine, image: str, address: str
) -> None:
    """The rules of docs/operations.md; 2 is the proxy, 3 the manager, 4 another node with its sessions."""
    victim = await start(engine, image, SERVE, (Port("web", 8888, published=True),))
    server = victim.endpoints[0].port
    await until(lambda: answers(address, server), "it must serve")
    relay = next(port for port in PORTS if not answers(address, port))
    with socket.create_server((address, relay)), machine() as from_outside:
        given = {"10.0.0.1": f"{from_outside.net}.2", "10.0.0.2": f"{from_outside.net}.3",
                 "10.0.0.3": address, "30000:31000": RELAYS.replace("-", ":")}  # fmt: skip
        advice = [
            [given.get(word, word) for word in line.split()[2:]]
            for line in OPERATIONS.read_text().splitlines()
            if line.startswith("iptables -I ")
        ]
        assert len(advice) == 2
        assert all(from_outside(address, port, by) for port in (server, relay) for by in (2, 3, 4))
        try:
            assert [firewall._iptables("-I", *rule) for rule in advice] == [None, None]
            for port, allowed in ((server, 2), (relay, 3)):
                assert [by for by in (2, 3, 4) if from_outside(address, port, by)] == [allowed]
            assert answers(address, server), "its own agent looks whether it serves"
        finally:
            firewall.unshield(advice)


async def test_another_agents_start_adds_no_rule_twice(
    engine: Engine, address: str, rules: firewall.Rules, tmp_path: Path
) -> None:
    other = DockerEngine()
    settings = {"publish_host": address, "app_ports": RELAYS}
    await other.open({"state_dir": str(tmp_path / "other"), **settings})
    await other.close()
    firewall.unshield(rules)
    for rule in rules:
        assert firewall._iptables("-C", *rule) is not None


@pytest.mark.parametrize(
    ("address", "needed"),
    [("127.0.0.1", False), ("::1", False), ("localhost", False), ("10.1.2.3", True), ("n2", True)],
)
def test_loopback_needs_no_rule_for_what_is_open_on_it(address: str, needed: bool) -> None:
    assert firewall.needed(address) is needed
