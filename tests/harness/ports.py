"""Ports for what tests start."""

from __future__ import annotations

import contextlib
import random
import socket

PORTS = range(11000, 18000)
"""Neither the system nor anything of ours takes one of them by itself."""
_chance = random.SystemRandom()  # no seed makes two processes try the same ones
_given: set[int] = set()


def free_port() -> int:
    """A port of this host that nobody listens on, and that was not given before."""
    for port in _chance.sample(PORTS, len(PORTS)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            if port not in _given:
                probe.bind(("", port))
                _given.add(port)
                return port
    raise AssertionError(f"all ports from {PORTS.start} to {PORTS.stop - 1} are in use")
