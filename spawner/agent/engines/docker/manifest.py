"""What a container is made of and how it is read back: pure functions, no engine."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from typing import Any

from docker.types import Mount as DockerMount

from spawner.agent.engines.base import BoundMount, Endpoint, EngineState, Identity, Limits
from spawner.agent.protocol import KernelSpec, Share

NETWORK = "perijove"
HOME = "/home/work"
LABEL = "ai.perijove"
IMAGE_LABEL = "ai.perijove.image"
COMMAND_LABEL = "ai.perijove.command"
RECIPE_LABEL = "ai.perijove.recipe"
ROOT_LABEL = "ai.perijove.root"
"""``writable``: the container may change its own file system, for images that people build upon."""

GOING = ("removing", "dead")
"""Docker's words for a container that is removed: how its process ended says nothing about the session."""


def host_options(
    spec: KernelSpec,
    limits: Limits,
    mounts: tuple[BoundMount, ...],
    *,
    publish_host: str,
    read_only_root: bool,
) -> dict[str, Any]:
    """Everything that confines the container."""
    options: dict[str, Any] = {
        "mounts": [
            DockerMount(
                mount.target,
                mount.source,
                type="bind",
                read_only=mount.read_only,
                propagation="rprivate",
            )
            for mount in mounts
        ],
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "pids_limit": limits.pids,
        "shm_size": limits.shm_bytes,
        "init": True,
        "read_only": read_only_root,
        "tmpfs": {"/tmp": "rw,nosuid,nodev,mode=1777", "/run": "rw,nosuid,nodev,mode=755"},  # noqa: S108
        "log_config": {"type": "json-file", "config": {"max-size": "10m", "max-file": "2"}},
        "port_bindings": {port.container_port: (publish_host, None) for port in spec.ports},
        "devices": [f"{node}:{node}:rw" for node in limits.devices],
        "network_mode": NETWORK,
    }
    if limits.memory_bytes is not None:
        options |= {"mem_limit": limits.memory_bytes, "memswap_limit": limits.memory_bytes}
    if limits.cpu_quota is not None:
        options["nano_cpus"] = int(limits.cpu_quota * 1e9)
    if limits.cpuset is not None:
        options["cpuset_cpus"] = limits.cpuset
    return options


def read_state(facts: Mapping[str, Any], publish_host: str) -> EngineState:
    """The state of a container of ours from the engine's description of it."""
    labels = facts["Config"]["Labels"]
    state = facts["State"]
    phase = phase_of(state["Status"])
    names = json.loads(labels[f"{LABEL}.ports"])
    published = facts["NetworkSettings"]["Ports"] or {}
    endpoints = []
    for name, protocol, number in names:
        bindings = published.get(f"{number}/tcp")
        if bindings:
            host_port = int(bindings[0]["HostPort"])
            endpoints.append(Endpoint(name, protocol, number, publish_host, host_port))
    return EngineState(
        identity=identity_of(labels),
        phase=phase,
        native_id=facts["Id"],
        endpoints=tuple(endpoints),
        shares=tuple(Share(*item) for item in json.loads(labels[f"{LABEL}.shares"])),
        started_at=_timestamp(state["StartedAt"]),
        exit_code=state["ExitCode"] if phase == "exited" else None,
        oom_killed=bool(state.get("OOMKilled")),
    )


def phase_of(status: str) -> str:
    """Ours for Docker's word."""
    return {"created": "created", "running": "running", "paused": "running"}.get(status, "exited")


def container_name(identity: Identity) -> str:
    """The name of a run's container."""
    return f"perijove-{identity.kernel_id}-{identity.epoch}"


def labels_of(spec: KernelSpec, identity: Identity) -> dict[str, str]:
    """All that must be known of a container after the agent died."""
    ports = [[port.name, port.protocol, port.container_port] for port in spec.ports]
    shares = [[share.slot, share.device_id, share.amount] for share in spec.shares]
    return {
        **spec.labels,
        f"{LABEL}.kernel": identity.kernel_id,
        f"{LABEL}.session": identity.session_id,
        f"{LABEL}.epoch": str(identity.epoch),
        f"{LABEL}.session-name": spec.session_name,
        f"{LABEL}.owner": spec.owner,
        f"{LABEL}.ports": json.dumps(ports),
        f"{LABEL}.shares": json.dumps(shares),
    }


def identity_of(labels: Mapping[str, str]) -> Identity:
    """Which run a container's labels name."""
    return Identity(
        labels[f"{LABEL}.kernel"], labels[f"{LABEL}.session"], int(labels[f"{LABEL}.epoch"])
    )


def _timestamp(text: str) -> float | None:
    """Seconds since the epoch of Docker's RFC 3339 time with nanoseconds; None for its year 1."""
    if text.startswith("0001-"):
        return None
    return dt.datetime.fromisoformat(text[:19] + "+00:00").timestamp()
