"""Measures over time, who is connected, and that every metric is documented."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spawner.agent.engines.connections import Incoming, count, incoming, routes
from spawner.agent.measures import METRICS, STATS, Record

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
