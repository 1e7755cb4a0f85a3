"""Measures over time, who is connected, and that every metric is documented."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spawner.accelerators.registry import Accelerators
from spawner.agent.calls import Calls
from spawner.agent.engines import counters
from spawner.agent.engines.base import Identity, Measured
from spawner.agent.engines.connections import (
    Counted,
    Incoming,
    count,
    counted,
    incoming,
    routes,
    same,
)
from spawner.agent.engines.counters import sockets
from spawner.agent.measures import METRICS, STATS, Record
from spawner.agent.measuring import Measuring
from tests.harness.engine import MemoryEngine
from tests.unit.agent.test_kernels import Node

ROUTES = """Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT
eth0 00000000 010011AC 0003 0 0 0 00000000 0 0 0
eth0 000011AC 00000000 0001 0 0 0 0000FFFF 0 0 0
"""
TITLE = "  sl  local_address rem_address   st\n"
LISTENS = "0: 00000000:22B8 00000000:0000 0A x\n"
PEERS = {
    "the proxy through the gateway": ("020011AC:22B8 010011AC:9000 01", 1),
    "a stranger from far away": ("020011AC:22B8 0A0B0C0D:9000 01", 1),
    "a neighbour": ("020011AC:22B8 030011AC:9000 01", 0),
    "itself": ("0100007F:22B8 0100007F:9000 01", 0),
    "outgoing": ("020011AC:9000 0A0B0C0D:01BB 01", 0),
    "just closed": ("020011AC:22B8 0A0B0C0D:9000 06", 1),
}


@pytest.mark.parametrize("name", PEERS)
def test_only_connections_from_outside_count(name: str) -> None:
    socket, expected = PEERS[name]
    text = TITLE + LISTENS + f"1: {socket} x\n" + TITLE
    nothing = Incoming(frozenset(), frozenset())
    assert count(incoming(text, routes(ROUTES)), nothing) == expected


def test_a_closed_connection_counts_once() -> None:
    text = TITLE + LISTENS + "1: 020011AC:22B8 0A0B0C0D:9000 06 x\n"
    now = incoming(text, routes(ROUTES))
    assert count(now, now) == 0


SNMP = """Ip: Forwarding DefaultTTL
Ip: 1 64
Tcp: RtoAlgorithm ActiveOpens PassiveOpens AttemptFails EstabResets CurrEstab InSegs OutSegs
Tcp: 1 {active} {passive} 0 0 {open} {segments} 90
"""


def tcp(active: int = 3, passive: int = 5, open: int = 1, segments: int = 70) -> Counted:
    return counted(SNMP.format(active=active, passive=passive, open=open, segments=segments))


def test_connections_that_cannot_have_changed_are_not_looked_at_again() -> None:
    before = tcp()
    assert not same(None, before, 0)
    assert same(before, tcp(), 3600), "no segment came"
    assert same(before, tcp(segments=80), 10), "data of an open connection"
    assert not same(before, tcp(segments=80), 70), "the other end may have closed it"
    assert not same(before, tcp(passive=6, segments=80), 10)
    assert not same(before, tcp(open=0, segments=71), 10)
    assert not same(before, tcp(active=4, segments=71), 10)
    with pytest.raises(ValueError, match="no 'InSegs'"):
        counted(
            "Tcp: ActiveOpens PassiveOpens AttemptFails EstabResets CurrEstab\nTcp: 1 1 1 1 1\n"
        )


def test_empty_tables_of_sockets_are_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "7" / "net"
    folder.mkdir(parents=True)
    for name in ("tcp", "tcp6"):
        (folder / name).write_text(f"table {name}\n")

    def read(v4: int, waiting: int, v6: int) -> str:
        (folder / "sockstat").write_text(
            f"sockets: used 9\nTCP: inuse {v4} orphan 0 tw {waiting}\n"
        )
        (folder / "sockstat6").write_text(f"TCP6: inuse {v6}\n")
        return sockets(7, str(tmp_path)).replace("table ", "").replace("\n", " ").strip()

    assert [read(0, 0, 0), read(2, 0, 0), read(0, 0, 1), read(0, 1, 0)] == [
        "", "tcp", "tcp6", "tcp tcp6",
    ]  # fmt: skip


def test_utilization_is_relative_to_what_is_held() -> None:
    record = Record()
    record.add(METRICS["cpu_util"], 1000, 10.0, 2)
    assert record.shown() == {}, "one look tells nothing"
    record.add(METRICS["cpu_util"], 11_000, 20.0, 2)
    assert record.shown()["cpu_util"] == {
        "current": "10000",
        "capacity": "20000",
        "pct": "50",
        "unit_hint": "percent",
        "version": 2,
        "stats.min": "50",
        "stats.max": "50",
        "stats.avg": "50",
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_left_out(value: float) -> None:
    record = Record()
    for at, (now, capacity) in enumerate(((1.0, 2.0), (value, 2.0), (1.0, value))):
        record.add(METRICS["mem"], now, at, capacity)
    shown = record.shown()["mem"]
    assert (shown["current"], shown["capacity"], shown["stats.avg"]) == ("1", "2", "1")


class Faulty(MemoryEngine):
    """Is measured in vain, the first time for a reason that nobody foresaw."""

    async def measure(self) -> dict[Identity, Measured]:
        self.calls.append("measure")
        if len(self.calls) == 1:
            raise KeyError("a fault of the engine")
        return {}


async def test_a_fault_does_not_end_the_measuring(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    node = Node(Faulty())
    measuring = Measuring(
        node.engine,
        node.kernels,
        Accelerators([]),
        folder=str(tmp_path),
        interval=0.001,
        running=Calls(node.engine, node.kernels).running,
        seen=dict,
    )
    task = asyncio.create_task(measuring.run())
    told = await asyncio.wait_for(measuring.following(), 5)
    task.cancel()
    assert "mem" in told.node
    assert "a fault of the engine" in caplog.text


def test_a_total_that_falls_began_anew() -> None:
    record = Record()
    for at, value in ((1.0, 500), (2.0, 100), (3.0, 150)):
        record.add(METRICS["io_read"], value, at)
    shown = record.shown()["io_read"]
    assert (shown["current"], shown["stats.diff"], shown["stats.rate"]) == ("150", "50", "50")


@given(
    st.sampled_from(sorted(METRICS)),
    st.lists(st.tuples(st.integers(1, 100), st.integers(0, 10**9)), min_size=2),
)
def test_the_mean_lies_between_the_extremes(name: str, looks: list[tuple[int, int]]) -> None:
    record, now = Record(), 0.0
    for seconds, value in looks:
        now += seconds
        record.add(METRICS[name], value, now, 2.0)
    shown = record.shown()[name]
    assert {key for key in shown if "." in key} == {f"stats.{s}" for s in STATS[METRICS[name].kind]}
    if "stats.avg" in shown:
        least = float(shown.get("stats.min", 0))
        assert (
            least - 0.002
            <= float(shown["stats.avg"])
            <= float(shown["stats.max"]) * 1.000001 + 0.002
        )


def test_every_metric_is_documented() -> None:
    page = (Path(__file__).parents[3] / "docs" / "monitoring.md").read_text()
    for metric in METRICS.values():
        stats = ", ".join(STATS[metric.kind])
        assert f"| `{metric.name}` | {metric.kind} | {metric.unit} | {stats} |" in page


def test_where_no_control_group_counts_disks_processes_are_asked(tmp_path: Path) -> None:
    group, proc = tmp_path / "group", tmp_path / "proc"
    (group / "below").mkdir(parents=True)
    for name, content in (
        ("cpuacct.usage", "1000000000\n"),
        ("memory.usage_in_bytes", "4096\n"),
        ("memory.stat", "total_inactive_file 0\n"),
        ("blkio.throttle.io_service_bytes_recursive", "Total 0\n"),
        ("cgroup.procs", "7\n8\n"),
        ("below/cgroup.procs", "9\n"),
    ):
        (group / name).write_text(content)
    for pid, read, written in ((7, 4096, 8192), (9, 1, 2)):  # 8 has ended meanwhile
        (proc / str(pid)).mkdir(parents=True)
        (proc / str(pid) / "io").write_text(
            f"rchar: 5\nread_bytes: {read}\nwrite_bytes: {written}\n"
        )
    place = counters.Place(False, *[str(group)] * 4)
    found = counters.usage(place, str(proc))
    assert found is not None
    assert (found.io_read_bytes, found.io_write_bytes) == (4097, 8194)
    (group / "blkio.throttle.io_service_bytes_recursive").write_text("8:0 Read 512\n8:0 Write 0\n")
    found = counters.usage(place, str(proc))
    assert found is not None
    assert (found.io_read_bytes, found.io_write_bytes) == (512, 0)
