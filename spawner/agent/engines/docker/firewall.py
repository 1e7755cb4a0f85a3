"""Published ports of a routable address stay closed to the sessions of the same node.

Docker hands a port of the host to its container also when a neighbour on the node asks: the packets do not cross
the bridge, whose members are kept apart, but go to the host itself. One rule per kind of bridge closes this way.
"""

from __future__ import annotations

import contextlib
import ipaddress
import shutil
import subprocess
from pathlib import Path

BRIDGES = ("perijove+", "docker_gwbridge")
"""Where sessions' packets come from: all bridges that we name, and the way out of overlay networks."""
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_CALL_TIMEOUT = 20


def needed(address: str) -> bool:
    """Whether sessions could reach ports that are published on ``address``."""
    with contextlib.suppress(ValueError):
        return not ipaddress.ip_address(address).is_loopback
    return address != "localhost"


def rules(address: str) -> list[list[str]]:
    """Of the table filter: refuse what a session opens to the ports that the engine publishes."""
    first, last = _EPHEMERAL.read_text().split()
    everywhere = address in ("0.0.0.0", "")  # noqa: S104 - compared, not bound
    target = [] if everywhere else ["-d", address]
    what = ["-p", "tcp", "--syn", "--dport", f"{first}:{last}"]
    refusal = ["-j", "REJECT", "--reject-with", "tcp-reset"]
    return [["INPUT", "-i", bridge, *target, *what, *refusal] for bridge in BRIDGES]


def shield(address: str) -> str | None:
    """Put the rules in place unless they are; else a sentence about why they are not. Blocks."""
    if shutil.which("iptables") is None:
        return "iptables is not installed"
    try:
        for rule in rules(address):
            if _iptables("-C", *rule) is not None and (why := _iptables("-I", *rule)) is not None:
                return why
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None


def missing(address: str) -> list[str]:
    """A sentence on each rule of ``shield`` that is not there. Blocks."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        return [
            f"sessions can reach each other's ports: the firewall rule {' '.join(rule)} is missing"
            for rule in rules(address)
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
            done = subprocess.run(
                ["iptables", "-w", "5", "-t", kind, "-S"],
                capture_output=True,
                text=True,
                timeout=_CALL_TIMEOUT,
                check=False,
            )
            found += [each for each in done.stdout.splitlines() if each.startswith("-A")]
    return found


def unshield(address: str) -> None:
    """Take the rules away."""
    for rule in rules(address):
        _iptables("-D", *rule)


def _iptables(*words: str) -> str | None:
    """What it complains about, None if nothing."""
    done = subprocess.run(
        ["iptables", "-w", "5", *words],
        capture_output=True,
        text=True,
        timeout=_CALL_TIMEOUT,
        check=False,
    )
    return None if done.returncode == 0 else (done.stderr.strip() or "it failed").splitlines()[0]
