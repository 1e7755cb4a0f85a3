"""Counters of runs of the process engine: from control groups where it has them, else from ``/proc``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from spawner.agent.engines import connections, counters, process_table
from spawner.agent.engines.base import EngineState, Identity, Measured
from spawner.agent.engines.cgroups import ControlGroups


class RunCounters:
    """What the runs of one engine used. They share the host's network, so that traffic is not counted."""

    def __init__(self) -> None:
        self._incoming: dict[Identity, connections.Incoming] = {}

    def read(
        self,
        states: Sequence[EngineState],
        groups: ControlGroups | None,
        scratch: Mapping[str, int],
    ) -> Mapping[Identity, Measured]:
        """Counters of the running ones; ``scratch`` has bytes by mark. Blocks for small files."""
        marks = {} if groups is not None else process_table.by_mark()
        sockets = counters.text("/proc/net/tcp", missing="")
        found: dict[Identity, Measured] = {}
        for state in states:
            mark = state.native_id
            usage = _grouped(groups, mark) if groups is not None else _summed(marks.get(mark, []))
            if usage is None:
                continue
            found[state.identity] = Measured(
                cpu_seconds=usage.cpu_seconds,
                memory_bytes=usage.memory_bytes,
                io_read_bytes=usage.io_read_bytes,
                io_write_bytes=usage.io_write_bytes,
                net_rx_bytes=0,
                net_tx_bytes=0,
                scratch_bytes=scratch.get(mark),
                processes=usage.tasks,
                connections=self._connections(state, sockets),
            )
        self._incoming = {each: self._incoming[each] for each in found}
        return found

    def _connections(self, state: EngineState, sockets: str) -> int:
        ports = {endpoint.port for endpoint in state.endpoints}
        now = connections.at_ports(sockets, ports)
        total = connections.count(now, self._incoming.get(state.identity))
        self._incoming[state.identity] = now
        return total


def _grouped(groups: ControlGroups, mark: str) -> counters.Usage | None:
    place = groups.place(mark)
    return None if place is None else counters.usage(place)


def _summed(pids: Sequence[int]) -> counters.Usage | None:
    if not pids:
        return None
    read, written = counters.disk_traffic(pids)
    memory = process_table.resident_bytes(list(pids))
    return counters.Usage(process_table.cpu_seconds(pids), memory, read, written, len(pids))
