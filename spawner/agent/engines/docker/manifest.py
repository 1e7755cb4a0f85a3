"""What a container is made of and how it is read back: pure functions, no engine."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from typing import Any

from docker.types import DeviceRequest, Ulimit
from docker.types import Mount as DockerMount

from spawner.accelerators.specification import HostMount
from spawner.agent.engines.base import BoundMount, Endpoint, EngineState, Identity, Limits
from spawner.agent.protocol import KernelSpec, Share
from spawner.agent.substitution import Substitution

NETWORK = "perijove"
HOME = "/home/work"
USER = "work"
"""Name of every container's user, whatever its id."""
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
    every: tuple[BoundMount | HostMount, ...] = (*mounts, *limits.driver_mounts)
    options: dict[str, Any] = {
        "mounts": [
            DockerMount(
                mount.target,
                mount.source,
                type="bind",
                read_only=mount.read_only,
                propagation="rprivate",
            )
            for mount in every
        ],
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "pids_limit": limits.pids,
        "shm_size": limits.shm_bytes,
        "init": True,
        "read_only": read_only_root,
        "tmpfs": {
            "/tmp": f"rw,nosuid,nodev,mode=1777{_half(limits)}",  # noqa: S108 - inside the container
            "/run": "rw,nosuid,nodev,mode=755",
        },
        "log_config": {"type": "json-file", "config": {"max-size": "10m", "max-file": "2"}},
        "port_bindings": dict.fromkeys(published(spec), (publish_host, None)),
        **hardware_options(limits),
        "network_mode": NETWORK,
    }
    if spec.cluster is not None and spec.cluster.network is not None:
        options["network_mode"] = spec.cluster.network.name
    if limits.memory_bytes is not None:
        options |= {"mem_limit": limits.memory_bytes, "memswap_limit": limits.memory_bytes}
    if limits.cpu_quota is not None:
        options["nano_cpus"] = int(limits.cpu_quota * 1e9)
    if limits.cpuset is not None:
        options["cpuset_cpus"] = limits.cpuset
    return options


def _half(limits: Limits) -> str:
    """Temporary files take half of the memory at most, as usual on Linux: who fills it is told, not killed."""
    return "" if limits.memory_bytes is None else f",size={limits.memory_bytes // 2}"


def hardware_options(limits: Limits) -> dict[str, Any]:
    """Devices of the node, and what is needed to open and use them."""
    options: dict[str, Any] = {
        "devices": [f"{n.path}:{n.target or n.path}:{n.permissions}" for n in limits.devices],
        "device_requests": [
            DeviceRequest(
                driver=request.driver,
                device_ids=list(request.device_ids),
                capabilities=[list(each) for each in request.capabilities],
                options=dict(request.options),
            )
            for request in limits.requests
        ],
        "device_cgroup_rules": list(limits.cgroup_rules),
        "group_add": [str(group) for group in limits.groups],
    }
    if limits.locked_memory:
        options["ulimits"] = [Ulimit(name="memlock", soft=-1, hard=-1)]
    return options


def environment(limits: Limits, spec: KernelSpec, tokens: Substitution) -> dict[str, str]:
    """Defaults, then what the session asks for, then what decides about devices."""
    return {
        "HOME": HOME,
        "USER": USER,
        "LOGNAME": USER,
        **tokens.environ(limits.environ),
        **tokens.environ(spec.environ),
        **limits.enforced,
    }


def published(spec: KernelSpec) -> list[int]:
    """Ports that the proxy connects to by itself."""
    return [port.container_port for port in spec.ports if port.published]


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
        started_at=timestamp(state["StartedAt"]),
        exit_code=state["ExitCode"] if phase == "exited" else None,
        oom_killed=bool(state.get("OOMKilled")),
        ended_at=timestamp(state["FinishedAt"]) if phase == "exited" else None,
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


def timestamp(text: str) -> float | None:
    """Seconds since the epoch of Docker's RFC 3339 time with nanoseconds; None for its year 1."""
    if text.startswith("0001-"):
        return None
    return dt.datetime.fromisoformat(text[:19] + "+00:00").timestamp()
