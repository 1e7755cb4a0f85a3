"""Counters of containers by the process ids that the engine told when it was asked about them anyway."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from spawner.agent.engines import connections, counters
from spawner.agent.engines.base import Identity, Measured, Process
from spawner.agent.engines.process_table import describe


@dataclass(slots=True)
class _Watched:
    """A running container: its first process, checked to be of that container, and where it is counted."""

    native_id: str
    pid: int
    place: counters.Place
    incoming: connections.Incoming | None = None
    counted: connections.Counted | None = None
    looked_at: float = 0.0
    """What was counted when its connections were looked at, and when that was."""


class ContainerCounters:
    """All running containers of an engine on this very host; those elsewhere cannot be measured."""

    def __init__(self) -> None:
        self._told: dict[Identity, tuple[str, int]] = {}
        self._watched: dict[Identity, _Watched] = {}

    def note(self, identity: Identity, native_id: str, pid: int) -> None:
        """The engine says that ``pid`` is the container's first process; 0: it does not run."""
        if not pid:
            self._told.pop(identity, None)
            self._watched.pop(identity, None)
        elif self._told.get(identity) != (native_id, pid):
            self._told[identity] = (native_id, pid)
            self._watched.pop(identity, None)

    def read(self) -> Mapping[Identity, Measured]:
        """Counters of all that run. Blocks for the reading of small files."""
        found: dict[Identity, Measured] = {}
        for identity in list(self._told):
            watched = self._watch(identity)
            measured = None if watched is None else _measure(watched)
            if measured is not None:
                found[identity] = measured
        return found

    def processes(self, identity: Identity) -> tuple[Process, ...]:
        """Its processes. Blocks for the reading of small files."""
        watched = self._watch(identity)
        return () if watched is None else describe(counters.members(watched.place))

    def owners(self, pids: Collection[int]) -> dict[int, Identity]:
        """Whose these processes are. Blocks for the reading of small files."""
        told = list(self._told.items())  # at once: the agent notes containers meanwhile
        names = {native_id: identity for identity, (native_id, _) in told}
        found: dict[int, Identity] = {}
        for pid in pids:
            place = counters.place_of(pid)
            for part in () if place is None else re.findall(r"[0-9a-f]{64}", place.cpu):
                if part in names:
                    found[pid] = names[part]
        return found

    def unconfined(self, identity: Identity, memory: int) -> str | None:
        """What is wrong with the control group of a running container that asked for ``memory`` bytes. Blocks."""
        watched = self._watch(identity)
        return None if watched is None else counters.wrong_limit(watched.place, memory)

    def _watch(self, identity: Identity) -> _Watched | None:
        """What is watched of a container; forgets one that is gone."""
        watched = self._watched.get(identity)
        if watched is not None and os.path.isdir(watched.place.cpu):
            return watched
        self._watched.pop(identity, None)
        native_id, pid = self._told.get(identity, ("", 0))
        place = counters.place_of(pid) if pid else None
        if place is None or native_id not in place.cpu:
            if pid and not os.path.isdir(f"/proc/{pid}"):
                self._told.pop(identity, None)
            return None
        watched = self._watched[identity] = _Watched(native_id, pid, place)
        return watched


def _measure(watched: _Watched) -> Measured | None:
    usage = counters.usage(watched.place)
    if usage is None:
        return None
    received, sent = counters.traffic(watched.pid)
    return Measured(
        cpu_seconds=usage.cpu_seconds,
        memory_bytes=usage.memory_bytes,
        io_read_bytes=usage.io_read_bytes,
        io_write_bytes=usage.io_write_bytes,
        net_rx_bytes=received,
        net_tx_bytes=sent,
        scratch_bytes=counters.temporary_bytes(watched.pid),
        processes=usage.tasks,
        connections=_connections(watched, time.monotonic()),
    )


def _connections(watched: _Watched, now: float) -> int | None:
    """Connections from outside. Looking takes milliseconds, so what cannot have changed is not looked at."""
    folder = f"/proc/{watched.pid}/net"
    try:
        counted = connections.counted(counters.text(f"{folder}/snmp"))
        seen = watched.incoming
        if seen is not None and connections.same(watched.counted, counted, now - watched.looked_at):
            return connections.count(seen, seen)
        sockets = counters.sockets(watched.pid)
        routes = connections.routes(counters.text(f"{folder}/route"))
    except (OSError, ValueError):
        return None
    found = connections.incoming(sockets, routes)
    total = connections.count(found, watched.incoming)
    watched.incoming, watched.counted, watched.looked_at = found, counted, now
    return total
