"""Sessions over three hosts: SSH, a real collective, a partition, loss and rejoin, and nothing left behind."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import docker
import pytest
from docker.errors import ImageNotFound

from kernels.bootstrap import bootstrap
from tests.cluster.hosts import Host, running_hosts
from tests.cluster.platform import Platform, running_platform, until
from tests.integration.docker_engine import running_engine

pytestmark = [pytest.mark.integration, pytest.mark.docker, pytest.mark.timeout(240)]

IMAGE = "perijove/test-mpi:latest"
DOCKERFILE = """
FROM {base}
RUN apt-get update \\
    && apt-get install -y --no-install-recommends openssh-server openssh-client python3-mpi4py openmpi-bin \\
    && rm -rf /var/lib/apt/lists/* \\
    && groupadd --gid 1000 work \\
    && useradd --uid 1000 --gid 1000 --home-dir /home/work --create-home --shell /bin/bash work
LABEL ai.perijove.image="test" ai.perijove.label="MPI for tests" \\
      ai.backend.service-ports="web:http:8000" \\
      ai.perijove.command="[\\"python3\\", \\"-m\\", \\"http.server\\", \\"8000\\"]"
"""
COLLECTIVE = """
import os, socket
from mpi4py import MPI
world = MPI.COMM_WORLD
total = world.allreduce(world.rank + 1)
names = sorted(set(world.allgather(socket.gethostname())))
if world.rank == 0:
    print('total', total, 'of', world.size, 'on', *names, flush=True)
"""


def ensure_image() -> None:
    """The base image with MPI and SSH."""
    client = docker.from_env(timeout=300)
    try:
        labels = client.images.get(IMAGE).labels
        if "ai.backend.service-ports" in labels:
            return
        raise ImageNotFound("an older one")
    except ImageNotFound:
        dockerfile = io.BytesIO(DOCKERFILE.format(base=bootstrap(client, print)).encode())
        client.images.build(fileobj=dockerfile, tag=IMAGE, rm=True)
    finally:
        client.close()


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    with running_engine():
        ensure_image()
        with running_hosts([IMAGE]) as hosts, running_platform(hosts) as made:
            until(
                made.agents, lambda found: all(IMAGE in each["images"] for each in found.values())
            )
            yield made
            print(made.story())


def containers(platform: Platform, session: str) -> dict[str, tuple[Host, str]]:
    """Host and container id by host name of a session's containers."""
    found: dict[str, tuple[Host, str]] = {}
    for host in platform.hosts.all:
        client = host.client
        try:
            for each in client.containers.list(filters={"label": f"ai.perijove.session={session}"}):
                found[each.attrs["Config"]["Hostname"]] = (host, each.id)
        finally:
            client.close()
    return found


def run(where: tuple[Host, str], *command: str) -> tuple[int, str]:
    """Exit code and output of a program in a container."""
    host, container = where
    client = host.client
    try:
        code, raw = client.containers.get(container).exec_run(list(command))
        return int(code), raw.decode().strip()
    finally:
        client.close()


def session_networks(platform: Platform) -> list[str]:
    names: set[str] = set()
    for host in platform.hosts.all:
        client = host.client
        found = client.networks.list(filters={"label": "ai.perijove.network=session"})
        names.update(str(each.name) for each in found)
        client.close()
    return sorted(names)


def end(platform: Platform, ref: str) -> None:
    """End a session; no container and no network of it stays."""
    platform.call("DELETE", f"/session/{ref}")
    platform.wait(ref, "TERMINATED")
    until(lambda: containers(platform, ref), lambda found: not found)
    until(lambda: session_networks(platform), lambda names: not any(ref in n for n in names), 90)


def roles(found: dict[str, Any]) -> dict[str, str]:
    return {each["cluster_hostname"]: each["status"] for each in found["containers"]}


def test_a_collective_over_three_hosts(platform: Platform) -> None:
    command = f'mpirun -n 3 --map-by node python3 -c "{COLLECTIVE}"'
    ref = platform.create("collective", IMAGE, 3, type="batch", startupCommand=command)
    ended = platform.wait(ref, "TERMINATED", seconds=90)
    log = platform.call("GET", f"/session/{ref}/logs")["result"]["logs"]
    assert "total 6 of 3 on main1 sub1 sub2" in log, log
    assert roles(ended) == dict.fromkeys(("main1", "sub1", "sub2"), "TERMINATED")
    assert json.loads(ended["occupiedSlots"]) == {}
    until(lambda: containers(platform, ref), lambda found: not found)


def test_ssh_a_partition_and_the_way_back(platform: Platform) -> None:
    ref = platform.create("ring", IMAGE, 3)
    platform.wait(ref, "RUNNING")
    mine = containers(platform, ref)
    assert len({host.name for host, _ in mine.values()}) == 3
    for name in mine:
        for other in mine:
            assert run(mine[name], "ssh", other, "hostname") == (0, other)
    code, address = run(mine["sub1"], "ssh", "main1", "echo $BACKENDAI_CLUSTER_ROLE $WORLD_SIZE")
    assert (code, address) == (0, "main 3")

    alone = platform.create("stranger", IMAGE, 1)
    platform.wait(alone, "RUNNING")
    stranger = containers(platform, alone)["main1"]
    _, addresses = run(mine["sub1"], "hostname", "-I")
    assert addresses
    for target in addresses.split():
        probe = f"import socket; socket.create_connection(('{target}', 2200), 2)"
        assert run(stranger, "python3", "-c", probe)[0] != 0, target
    assert run(stranger, "getent", "hosts", "sub1")[0] != 0
    end(platform, alone)

    lost = next(host for name, (host, _) in mine.items() if name != "main1" and host.name != "h1")
    if mine["main1"][0] is lost:
        pytest.fail("the main container is on the host that is cut off")
    lost.cable(connected=False)
    degraded = platform.wait(ref, "RUNNING_DEGRADED")
    assert "is out of reach" in degraded["statusInfo"]
    lost.cable(connected=True)
    back = platform.wait(ref, "RUNNING")
    assert set(roles(back).values()) == {"RUNNING"}
    assert {n: c for n, (_, c) in containers(platform, ref).items()} == {
        n: c for n, (_, c) in mine.items()
    }, "nothing was started twice"
    name = next(n for n, (host, _) in mine.items() if host is lost)
    until(lambda: run(mine["main1"], "ssh", "-o", "ConnectTimeout=2", name, "hostname"),
          lambda told: told == (0, name), 90)  # fmt: skip
    end(platform, ref)


def test_a_lost_part_and_a_killed_agent(platform: Platform) -> None:
    ref = platform.create("loss", IMAGE, 3)
    platform.wait(ref, "RUNNING")
    mine = containers(platform, ref)
    host, container = mine["sub2"]
    platform.processes[host.name].kill()
    platform.processes[host.name].wait()
    client = host.client
    client.containers.get(container).remove(force=True)
    client.close()
    platform.start_agent(host)
    degraded = platform.wait(ref, "RUNNING_DEGRADED")
    assert degraded["statusInfo"].startswith("sub2 is lost")
    assert run(mine["main1"], "ssh", "sub1", "hostname") == (0, "sub1")
    end(platform, ref)


def test_a_closed_host_gets_no_part(platform: Platform) -> None:
    platform.call("POST", "/agents/h3/cordon", {}, user="admin")
    try:
        ref = platform.create("closed", IMAGE, 3)
        platform.wait(ref, "RUNNING")
        hosts = {host.name for host, _ in containers(platform, ref).values()}
        assert hosts == {"h1", "h2"}
        end(platform, ref)
    finally:
        platform.call("POST", "/agents/h3/uncordon", {}, user="admin")
