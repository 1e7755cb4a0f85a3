"""Where this host reaches a container: at its address in the network through which it gets out.

A container of a bridge has its address there. One whose session spans nodes has, beside the overlay, a way out
over a bridge of its node that the engine adds (``docker_gwbridge``) and tells nothing of: the kernel knows its
address, whatever that network is called and however it is numbered.
"""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Mapping
from typing import Any

from spawner.agent.engines.connections import routes
from spawner.agent.engines.counters import text
from spawner.agent.engines.docker.manifest import NETWORK

_LOCAL = re.compile(r"\|-- (\S+)\s+/32 host LOCAL")


def address_of(facts: Mapping[str, Any]) -> str | None:
    """The address of a running container, from the engine's description of it; None: there is no way. Blocks."""
    networks: Mapping[str, Any] = facts["NetworkSettings"]["Networks"] or {}
    ordered = sorted(networks.items(), key=lambda item: item[0] != NETWORK)
    bridged = [
        str(each["IPAddress"]) for _, each in ordered if each["IPAddress"] and each["Gateway"]
    ]
    return bridged[0] if bridged else _way_out(int(facts["State"]["Pid"]))


def _way_out(pid: int) -> str | None:
    """The address with which a process's network namespace reaches its default gateway."""
    folder = f"/proc/{pid}/net"
    try:
        known = routes(text(f"{folder}/route"))
        owned = {_number(each) for each in _LOCAL.findall(text(f"{folder}/fib_trie"))}
    except (OSError, ValueError):
        return None
    outward = [
        (network, mask)
        for network, mask in known.linked
        if any(gateway & mask == network for gateway in known.gateways)
    ]
    found = (each for each in owned if any(each & mask == network for network, mask in outward))
    return next((socket.inet_ntoa(struct.pack("=I", each)) for each in sorted(found)), None)


def _number(address: str) -> int:
    """As the kernel writes it in its routes."""
    (number,) = struct.unpack("=I", socket.inet_aton(address))
    return int(number)
