"""Ending a benchmark, also early, so that nothing of it is left."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path
from types import FrameType

import docker
from docker.errors import APIError

from benchmarks.reporting import note


def end_on_signals() -> None:
    """SIGTERM ends the benchmark like Ctrl-C does: in order. A second signal does not hurry it."""

    def end(number: int, frame: FrameType | None) -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_IGN)
        note("ending what was started")
        raise KeyboardInterrupt

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, end)


def containers_of(client: docker.DockerClient, folder: Path) -> list[str]:
    """Ids of containers that mount something of ``folder``: each of a benchmark's has a home there."""
    inside = f"{folder}/"
    return [
        entry["Id"]
        for entry in client.api.containers(all=True)
        if any(mount.get("Source", "").startswith(inside) for mount in entry["Mounts"])
    ]


def remove_containers(folder: Path) -> None:
    """Remove all ``containers_of`` the folder, whatever they do."""
    with contextlib.closing(docker.from_env()) as client:
        for container in containers_of(client, folder):
            with contextlib.suppress(APIError):  # its removal may be under way
                client.api.remove_container(container, v=True, force=True)
