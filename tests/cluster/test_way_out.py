"""How a node reaches containers of overlays whose way out an operator made or changed."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spawner.agent.engines.base import EngineState, Limits
from spawner.agent.engines.docker import DockerEngine, firewall
from spawner.agent.protocol import Cluster, KernelSpec, Network
from tests.cluster.hosts import Host, running_hosts, sh
from tests.integration.docker_engine import TEST_IMAGE, ensure_test_image, running_engine
from tests.integration.engines.conformance import until

pytestmark = [pytest.mark.integration, pytest.mark.docker, pytest.mark.timeout(240)]

ICC = "com.docker.network.bridge.enable_icc"
NAME = "com.docker.network.bridge.name=outward"
SERVE = ("python3", "-m", "http.server", "8888")
PROBE = "import socket; socket.create_connection(('{}', {}), 2)"


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with running_engine():
        ensure_test_image()
        with running_hosts([TEST_IMAGE], 1) as hosts:
            yield hosts.all[0]


def begin_swarm(host: Host, *options: str) -> Callable[..., str]:
    """A swarm of this host alone, whose way out has ``options``; runs Docker's command there."""

    def command(*words: str) -> str:
        return sh("docker", "-H", host.socket, *words)

    sh("docker", "-H", host.socket, "swarm", "leave", "--force", check=False)
    sh("docker", "-H", host.socket, "network", "rm", "docker_gwbridge", check=False)
    command("network", "create", *(word for each in options for word in ("-o", each)),
            "--subnet", "172.31.77.0/24", "docker_gwbridge")  # fmt: skip
    command("swarm", "init", "--advertise-addr", host.address)
    return command


def answers(host: Host, address: str, port: int) -> bool:
    """Whether the host itself reaches a port."""
    probe = host.inside("python3", "-c", PROBE.format(address, port))
    return subprocess.run(probe, check=False, capture_output=True).returncode == 0


async def start(engine: DockerEngine, network: str) -> EngineState:
    cluster = Cluster(
        "multi-node", 2, "main", 1, ("main1", "sub1"), Network(network, "s", "overlay")
    )
    spec = KernelSpec(
        str(uuid.uuid4()), str(uuid.uuid4()), 1, "way-out", "tester", "main1", TEST_IMAGE, SERVE, {},
        (), (), (), 2**20, cluster=cluster,
    )  # fmt: skip
    state = await engine.create(spec, Limits(), ())
    return await engine.start(state.identity)


async def test_containers_of_an_overlay_are_reached_whatever_their_way_out(
    host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DOCKER_HOST", host.socket)
    monkeypatch.setattr(firewall, "shield", lambda rules: told.extend(rules))
    told: list[list[str]] = []
    engine = DockerEngine()
    begin_swarm(host, f"{ICC}=true")
    await engine.open({"state_dir": str(tmp_path)})
    assert "swarm" not in await engine.features(), "sessions would meet on their way out"

    docker = begin_swarm(host, f"{ICC}=false", NAME)
    await engine.close()
    await engine.open({"state_dir": str(tmp_path)})
    assert "swarm" in await engine.features()
    assert any("outward" in rule for rule in told)
    docker("network", "create", "-d", "overlay", "--attachable", "over")
    state = await start(engine, "over")

    async def reached() -> str | None:
        address, port = await engine.reach(state.identity, 8888)
        return address if answers(host, address, port) else None

    assert str(await until(reached, "over the bridge of another name")).startswith("172.31.77.")
    docker("network", "create", "--subnet", "172.31.78.0/24", "beside")
    docker("network", "connect", "beside", state.native_id)
    assert str(await until(reached, "over a bridge in its place")).startswith("172.31.78.")
    await engine.stop(state.identity, 0)
    await engine.remove(state.identity)
    await engine.close()
