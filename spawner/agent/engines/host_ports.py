"""Ports of the host that the runs of the process engine share with everything else there."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable

from spawner.agent.engines.base import EngineError
from spawner.agent.protocol import KernelSpec
from spawner.agent.substitution import BIND_PORT

LOOPBACK = "127.0.0.1"


class HostPorts:
    """Those that a run has, whether its program listens already or not, are given to no other."""

    def __init__(self) -> None:
        self._reserved: set[int] = set()

    def keep(self, ports: Iterable[int]) -> None:
        """A run has them."""
        self._reserved.update(ports)

    def give_back(self, ports: Iterable[int]) -> None:
        """The run that had them is gone."""
        self._reserved.difference_update(ports)

    def of(self, spec: KernelSpec) -> list[int]:
        """Free ports, but for programs that do not ask where to listen the ports that they know of.

        Raises ``EngineError``.
        """
        asks = any(BIND_PORT in each for each in (*spec.command, *spec.environ.values()))
        fixed = spec.session_type == "inference" and bool(spec.command) and not asks
        found: list[int] = []
        try:
            for place, port in enumerate(spec.ports):
                known = port.protocol == "preopen" or (fixed and not place)
                found.append(self.claim(port.container_port) if known else self.free())
        except EngineError:
            self.give_back(found)
            raise
        return found

    def free(self) -> int:
        """Any that nobody has."""
        for _ in range(100):
            with socket.socket() as probe:
                probe.bind((LOOPBACK, 0))
                port = int(probe.getsockname()[1])
            if port not in self._reserved:
                self._reserved.add(port)
                return port
        raise EngineError("no free port was found", retriable=True)

    def claim(self, port: int) -> int:
        """A port that a program listens on, whatever we say. Raises ``EngineError``."""
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((LOOPBACK, port))
            if port not in self._reserved:
                self._reserved.add(port)
                return port
        raise EngineError(
            f"port {port} is in use on this node, whose sessions share its ports: let the command listen"
            f" on {BIND_PORT}, which becomes a free one"
        )
