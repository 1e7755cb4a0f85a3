"""Three hosts of one swarm with a platform on them, and what tests ask of its clusters."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import docker
from docker.errors import ImageNotFound

from kernels.bootstrap import bootstrap
from tests.cluster.hosts import Host, running_hosts
from tests.cluster.platform import Platform, running_platform, until
from tests.integration.docker_engine import running_engine

IMAGE = "perijove/test-mpi:latest"
LABEL = "MPI and Dask for tests"
IMPATIENT = ("env", "RES_OPTIONS=timeout:1 attempts:1")
"""Before a command that looks for a name: nobody answers for one that is not there, or not any more."""
DOCKERFILE = """
FROM {base}
RUN apt-get update \\
    && apt-get install -y --no-install-recommends openssh-server openssh-client python3-mpi4py openmpi-bin \\
       python3-distributed \\
    && rm -rf /var/lib/apt/lists/* \\
    && groupadd --gid 1000 work \\
    && useradd --uid 1000 --gid 1000 --home-dir /home/work --create-home --shell /bin/bash work
LABEL ai.perijove.image="test" ai.perijove.label="{label}" \\
      ai.backend.service-ports="web:http:8000" \\
      ai.perijove.command="[\\"python3\\", \\"-m\\", \\"http.server\\", \\"8000\\"]"
"""


def ensure_image() -> None:
    """The base image with MPI, Dask and SSH."""
    client = docker.from_env(timeout=300)
    try:
        if client.images.get(IMAGE).labels.get("ai.perijove.label") == LABEL:
            return
        raise ImageNotFound("an older one")
    except ImageNotFound:
        dockerfile = io.BytesIO(
            DOCKERFILE.format(base=bootstrap(client, print), label=LABEL).encode()
        )
        client.images.build(fileobj=dockerfile, tag=IMAGE, rm=True)
    finally:
        client.close()


@contextmanager
def running_swarm() -> Iterator[Platform]:
    """A platform whose nodes have the image, inside the block."""
    with running_engine():
        ensure_image()
        with running_hosts([IMAGE]) as hosts, running_platform(hosts) as made:
            until(
                made.agents, lambda found: all(IMAGE in each["images"] for each in found.values())
            )
            yield made


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
    """End a session; no container and no network of it stays, however young."""
    platform.call("DELETE", f"/session/{ref}")
    platform.wait(ref, "TERMINATED")
    until(lambda: containers(platform, ref), lambda found: not found)
    until(lambda: session_networks(platform), lambda names: not any(ref in n for n in names), 20)


def roles(found: dict[str, Any]) -> dict[str, str]:
    return {each["cluster_hostname"]: each["status"] for each in found["containers"]}
