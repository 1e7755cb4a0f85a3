"""The network that all sessions of a node share: its members cannot reach each other."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import docker
from docker.errors import APIError

from spawner.agent.engines.base import EngineError
from spawner.agent.engines.docker.manifest import LABEL, NETWORK

BRIDGE = "perijove0"
_NETFILTER = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")


def ensure_network(client: docker.DockerClient) -> str:
    """Create the sessions' network unless it is there; the host's address in it. Blocks.

    Raises ``DockerException`` when the engine does not answer, ``EngineError`` when a network of this
    name would let sessions reach each other.
    """
    found = client.networks.list(names=[f"^{NETWORK}$"])
    if not found:
        with contextlib.suppress(APIError):  # somebody else may have been faster
            client.networks.create(
                NETWORK,
                driver="bridge",
                check_duplicate=True,
                labels={f"{LABEL}.network": "sessions"},
                options={
                    "com.docker.network.bridge.enable_icc": "false",
                    "com.docker.network.bridge.name": BRIDGE,
                },
            )
        found = client.networks.list(names=[f"^{NETWORK}$"])
    if not found:
        raise EngineError(f"the network {NETWORK!r} cannot be created")
    attributes = found[0].attrs
    _check_isolation(attributes)
    return str(attributes["IPAM"]["Config"][0]["Gateway"])


def _check_isolation(attributes: Mapping[str, Any]) -> None:
    """Raise ``EngineError`` unless members of the network cannot reach each other."""
    options = attributes.get("Options") or {}
    if options.get("com.docker.network.bridge.enable_icc") != "false":
        raise EngineError(
            f"the network {NETWORK!r} lets its members reach each other: remove it"
            f" (docker network rm {NETWORK}), it is made anew"
        )
    local = Path(f"/sys/class/net/{BRIDGE}").exists()
    if local and (not _NETFILTER.exists() or _NETFILTER.read_text().strip() != "1"):
        raise EngineError(
            "sessions could reach each other: the kernel does not filter bridged traffic"
            " (modprobe br_netfilter; sysctl net.bridge.bridge-nf-call-iptables=1)"
        )
