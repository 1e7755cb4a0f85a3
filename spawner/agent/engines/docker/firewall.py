"""What the firewall of a node keeps from its sessions, and keeps from outside of them.

Docker keeps the members of the sessions' network apart, and its networks from each other. That leaves ways that do
not cross a bridge, closed here: a session's packets to the host itself (ports that Docker publishes, the agent's
relays, the engine's and its swarm's own ports, where anybody who knows a number could put packets into the overlay of
another session), and packets to a session's address from a neighbour of the host that takes it for a router.
"""

from __future__ import annotations

import contextlib
import ipaddress
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

BRIDGES = "perijove+"
"""All bridges that we name."""
ENGINE_PORTS = {"tcp": "2375:2377,7946", "udp": "4789,7946"}
"""Docker's API, and what members of a swarm say to each other; VXLAN among it."""
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_CALL_TIMEOUT = 20
Rules = Sequence[Sequence[str]]


def needed(address: str) -> bool:
    """Whether sessions could reach ports that are open on ``address``."""
    with contextlib.suppress(ValueError):
        return not ipaddress.ip_address(address).is_loopback
    return address != "localhost"


def rules(address: str, relays: str, bridges: Iterable[str]) -> Rules:
    """Of the table filter, each after its chain, for sessions on ``bridges`` of a node whose proxy and manager
    find it at ``address``; ``relays`` is the range FIRST-LAST of its relays."""
    found: list[list[str]] = []
    first, last = _EPHEMERAL.read_text().split()
    opened = ",".join(filter(None, (f"{first}:{last}", relays.replace("-", ":"))))
    everywhere = address in ("0.0.0.0", "")  # noqa: S104 - compared, not bound
    target = [] if everywhere else ["-d", address]
    reset = ["-j", "REJECT", "--reject-with", "tcp-reset"]
    for bridge in bridges:
        inside = ["-i", bridge]
        if needed(address):
            found.append(["INPUT", *inside, *target, "-p", "tcp", "--syn", *_ports(opened), *reset])
        for chain in ("INPUT", "DOCKER-USER"):
            tcp, udp = _ports(ENGINE_PORTS["tcp"]), _ports(ENGINE_PORTS["udp"])
            found.append([chain, *inside, "-p", "tcp", "--syn", *tcp, *reset])
            found.append([chain, *inside, "-p", "udp", *udp, "-j", "DROP"])
        unasked = [
            "-m",
            "conntrack",
            "--ctstate",
            "NEW",
            "-m",
            "conntrack",
            "!",
            "--ctstate",
            "DNAT",
        ]
        found.append(["DOCKER-USER", "-o", bridge, "!", *inside, *unasked, "-j", "DROP"])
    return found


def _ports(these: str) -> list[str]:
    return ["-m", "multiport", "--dports", these]


def shield(wanted: Rules) -> str | None:
    """Put rules in place unless they are; else a sentence about why they are not. Blocks."""
    if shutil.which("iptables") is None:
        return "iptables is not installed"
    try:
        for rule in wanted:
            if _iptables("-C", *rule) is not None and (why := _iptables("-I", *rule)) is not None:
                return why
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None


def missing(wanted: Rules) -> list[str]:
    """A sentence on each rule that is not there. Blocks."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        return [
            f"the firewall rule {' '.join(rule)} is missing: sessions are not shielded as they were"
            for rule in wanted
            if _iptables("-C", *rule) is not None
        ]
    return []


def container_rules() -> list[str]:
    """The rules that an engine makes for networks and published ports, as ``iptables`` shows them. Blocks.

    Empty where they cannot be read.
    """
    found: list[str] = []
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        for kind in ("filter", "nat"):
            done = _run("-t", kind, "-S")
            found += [each for each in done.stdout.splitlines() if each.startswith("-A")]
    return found


def unshield(unwanted: Rules) -> None:
    """Take rules away."""
    for rule in unwanted:
        _iptables("-D", *rule)


def _iptables(*words: str) -> str | None:
    """What it complains about, None if nothing."""
    done = _run(*words)
    return None if done.returncode == 0 else (done.stderr.strip() or "it failed").splitlines()[0]


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    command = ["iptables", "-w", "5", *words]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=_CALL_TIMEOUT, check=False
    )
