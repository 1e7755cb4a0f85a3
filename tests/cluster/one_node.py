"""One node with an engine of its own: what tests of faults ask of it and do to it."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from docker.errors import NotFound

from tests.cluster.hosts import Host, running_hosts
from tests.cluster.platform import Platform, running_platform, until
from tests.integration.docker_engine import TEST_IMAGE, ensure_test_image, running_engine

LABEL = "ai.perijove"
GO = "until [ -e /tmp/go ]; do sleep 0.1; done"
EAT = "python3 -c \"b = b'x' * (512 * 2**20)\""
SMALL = {"cpu": "0.1", "mem": "48m"}


@contextlib.contextmanager
def one_node(
    disks: Mapping[str, str] | None = None, database: str | None = None
) -> Iterator[Platform]:
    """A platform on one host that has the test's image; ``disks`` as ``running_hosts`` takes them."""
    with running_engine():
        ensure_test_image()
        with (
            running_hosts([TEST_IMAGE], 1, disks) as hosts,
            running_platform(hosts, database) as made,
        ):
            until(made.agents, lambda found: all(TEST_IMAGE in a["images"] for a in found.values()))
            yield made


def host_of(platform: Platform) -> Host:
    (host,) = platform.hosts.all
    return host


def containers(platform: Platform) -> dict[str, dict[str, Any]]:
    """Facts of all containers that carry our labels, by session; the agent is not asked."""
    client = host_of(platform).client
    try:
        listed = client.api.containers(all=True, filters={"label": f"{LABEL}.kernel"})
        facts = []
        for each in listed:
            with contextlib.suppress(NotFound):
                facts.append(client.api.inspect_container(each["Id"]))
    finally:
        client.close()
    return {each["Config"]["Labels"][f"{LABEL}.session"]: each for each in facts}


def identities(platform: Platform) -> dict[str, tuple[str, int, str]]:
    """Container, process and start by session."""
    found = containers(platform)
    return {s: (f["Id"], f["State"]["Pid"], f["State"]["StartedAt"]) for s, f in found.items()}


def inside(platform: Platform, session: str, command: str) -> None:
    client = host_of(platform).client
    try:
        container = client.containers.get(containers(platform)[session]["Id"])
        container.exec_run(["sh", "-c", command], detach=True)
    finally:
        client.close()


def submit(
    platform: Platform,
    name: str,
    command: str | None = None,
    image: str = TEST_IMAGE,
    **more: object,
) -> str:
    """A small session of one container; a batch session where there is a command."""
    kind = {} if command is None else {"type": "batch", "startupCommand": command}
    resources = {**SMALL, **more.pop("resources", {})}  # type: ignore[dict-item]  # a dict it is
    config = {"resources": resources, "resource_opts": {"shmem": "8m"}}
    given = {**kind, "clusterMode": "single-node", "config": config, **more}
    return platform.create(name, image, 1, **given)


def used(platform: Platform) -> list[tuple[str, str, str]]:
    """What the rows say that is held: slot, device, amount."""
    (node,) = platform.call("GET", "/agents", user="admin")["agents"]
    return [(each["slot"], each["device_id"], each["used"]) for each in node["devices"]]


def engine_health(platform: Platform) -> str | None:
    found: str | None = platform.agents()["h1"]["unwell"]
    return found


@contextlib.contextmanager
def creations(platform: Platform, report: Path) -> Iterator[Counter[str]]:
    """How many containers were created for each session inside the block, as the engine tells; known at its end."""
    found: Counter[str] = Counter()
    shown = f'{{{{index .Actor.Attributes "{LABEL}.session"}}}}'
    command = ["docker", "-H", host_of(platform).socket, "events", "--since", f"{time.time():.6f}",
               "--filter", "type=container", "--filter", "event=create", "--format", shown]  # fmt: skip
    with report.open("wb") as file:
        following = subprocess.Popen(command, stdout=file)
    try:
        yield found
    finally:
        following.terminate()
        following.wait(10)
        found.update(report.read_text().split())
