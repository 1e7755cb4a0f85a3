"""Metrics and errors reach real servers, and monitors that fail harm nobody."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import threading
from collections.abc import Iterator, Sequence
from importlib.metadata import EntryPoint
from typing import Any, ClassVar

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from traitlets import TraitError
from traitlets.config import Config

from spawner.monitors import registry
from spawner.monitors.base import ErrorMonitor, LoggedError, Sample, SampleKind, StatsMonitor
from spawner.monitors.conformance import ErrorConformance, StatsConformance
from spawner.monitors.registry import MonitorError, Monitors
from spawner.monitors.samples import Sampler
from spawner.monitors.sentry import LONGEST_TEXT, SentryMonitor
from spawner.monitors.statsd import DatadogMonitor, StatsdMonitor
from tests.harness.sentry import Sentry, receiving

log = logging.getLogger("tests.monitors")
PATIENCE = 10


class TestStatsd(StatsConformance):
    def make(self) -> StatsMonitor:
        return StatsdMonitor(port=9)


class TestDatadog(StatsConformance):
    def make(self) -> StatsMonitor:
        return DatadogMonitor(port=9)


class TestSentry(ErrorConformance):
    def make(self) -> ErrorMonitor:
        return SentryMonitor(dsn="http://key@127.0.0.1:9/1")


class Metrics:
    """A process's metrics."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.calls = Counter("calls", "Calls.", ("how",), registry=self.registry)
        self.load = Gauge("load", "Load.", registry=self.registry)
        self.seconds = Histogram("seconds", "Time.", registry=self.registry)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class Packets:
    """What a UDP server receives."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.settimeout(PATIENCE)
        self.port: int = self.socket.getsockname()[1]

    def lines(self, last: str) -> set[str]:
        """Lines until one that begins with ``last``."""
        found: set[str] = set()
        while not any(line.startswith(last) for line in found):
            found.update(self.socket.recv(65536).decode().splitlines())
        return found


@pytest.fixture
def packets() -> Iterator[Packets]:
    made = Packets()
    yield made
    made.socket.close()


def monitors(**config: Any) -> Monitors:
    return Monitors(config=Config(config))


@contextlib.contextmanager
def running(made: Monitors, metrics: Metrics | None = None) -> Iterator[registry.Running]:
    run = made.start("manager", (metrics or Metrics()).text)
    try:
        yield run
    finally:
        run.close()


def test_totals_are_told_as_growth() -> None:
    metrics, sampler = Metrics(), Sampler("calls_total|load|seconds_.*")
    metrics.calls.labels("well").inc(3)
    metrics.seconds.observe(0.5)
    metrics.load.set(float("nan"))

    def read() -> dict[str, tuple[SampleKind, float]]:
        return {s.name: (s.kind, s.value) for s in sampler.read(metrics.text().decode())}

    counter = SampleKind.COUNTER
    first = {
        "calls_total": (counter, 3),
        "seconds_count": (counter, 1),
        "seconds_sum": (counter, 0.5),
    }
    assert read() == first
    metrics.calls.labels("well").inc()
    metrics.load.set(2)
    assert read() == {
        "calls_total": (counter, 1),
        "seconds_count": (counter, 0),
        "seconds_sum": (counter, 0),
        "load": (SampleKind.GAUGE, 2),
    }
    metrics.calls.clear()
    metrics.calls.labels("well").inc(2)
    assert read()["calls_total"] == (counter, 2), "it began anew"


def test_statsd_gets_labels_in_names(packets: Packets) -> None:
    metrics = Metrics()
    metrics.calls.labels("so so").inc(3)
    metrics.load.set(1.5)
    config = {"port": packets.port, "prefix": "{process}."}
    with running(monitors(Monitors={"stats": ["statsd"]}, StatsdMonitor=config), metrics):
        lines = packets.lines("manager.load")
    assert {"manager.calls_total.so_so:3|c", "manager.load:1.5|g"} <= {
        line.replace("3.0|", "3|") for line in lines
    }


def test_datadog_gets_labels_as_tags_at_the_interval(packets: Packets) -> None:
    metrics = Metrics()
    metrics.calls.labels("well").inc(3)
    made = monitors(
        Monitors={"stats": ["datadog"], "interval": 0.1},
        DatadogMonitor={"port": packets.port, "tags": {"site": "lab"}},
    )
    with running(made, metrics):
        first = packets.lines("calls_total")
        metrics.calls.labels("well").inc()
        again = packets.lines("calls_total")
    for lines, value in ((first, "3"), (again, "1")):
        [line] = [each for each in lines if each.startswith("calls_total")]
        number, _, tags = line.partition("|c|#")
        assert float(number.partition(":")[2]) == float(value)
        assert set(tags.split(",")) == {"process:manager", "site:lab", "how:well"}


@pytest.fixture
def sentry() -> Iterator[Sentry]:
    with receiving() as made:
        yield made


def test_sentry_gets_what_is_logged_as_an_error(sentry: Sentry) -> None:
    secret = "-".join(["not", "to", "be", "told"])
    made = monitors(Monitors={"errors": ["sentry"]}, SentryMonitor={"dsn": sentry.dsn})
    with running(made):
        log.warning("no error")
        try:
            raise RuntimeError(len(secret))
        except RuntimeError:
            log.exception("pass %d failed", 3)
        log.error("node %s is lost", "n1")
    events = [sentry.events.get(timeout=PATIENCE) for _ in range(2)]
    path, first = events[0]
    assert path == "/api/7/envelope/"
    assert first["exception"]["values"][0]["type"] == "RuntimeError"
    assert first["logentry"] == {"message": "pass %d failed", "formatted": "pass 3 failed"}
    assert first["tags"]["process"] == "manager"
    assert first["release"].startswith("perijove@")
    assert secret not in json.dumps(first), "values of variables stay here"
    assert events[1][1]["logentry"]["formatted"] == "node n1 is lost"
    assert sentry.events.empty()
    log.error("after the end")
    assert sentry.events.empty()


class Untold:
    """Cannot say what it is."""

    def __repr__(self) -> str:
        raise LookupError("no words")


def test_a_message_that_cannot_be_made_does_no_harm(sentry: Sentry) -> None:
    """Whoever logs something goes on, whatever that is."""
    made = monitors(Monitors={"errors": ["sentry"]}, SentryMonitor={"dsn": sentry.dsn})
    quiet = logging.getLogger("tests.monitors.quiet")
    with running(made) as run:
        assert run.handler is not None
        for text, arg in (("%(name)s", {"a": 1}), ("%r", Untold())):
            record = quiet.makeRecord(quiet.name, logging.ERROR, "", 0, text, (arg,), None)
            run.handler.handle(record)
        log.error("the last")
    events = sentry.until("the last", PATIENCE)
    told = [each["logentry"]["formatted"] for each in events[:-1]]
    assert told == [
        "%(name)s (KeyError in its arguments)",
        "%r (LookupError in its arguments)",
    ]


async def test_what_is_not_rendered_in_time_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else another one would wait from each report on."""
    monkeypatch.setattr(registry, "RENDER_WITHIN", 0.05)
    given_up = asyncio.Event()

    async def render() -> bytes:
        try:
            await asyncio.Event().wait()
        finally:
            given_up.set()
        return b""

    with pytest.raises(TimeoutError):
        await asyncio.to_thread(registry.of_loop(render))
    async with asyncio.timeout(PATIENCE):
        await given_up.wait()


def test_one_error_is_told_once(sentry: Sentry) -> None:
    made = monitors(Monitors={"errors": ["sentry"]}, SentryMonitor={"dsn": sentry.dsn})
    with running(made):
        error = RuntimeError("once")
        for where in ("here", "there"):
            log.error("it failed %s", where, exc_info=error)

        def log_request() -> None:
            log.error("500 GET /")

        log_request()
        log.error("the last")
    assert len(sentry.until("the last", PATIENCE)) == 2


def test_secrets_are_taken_out(sentry: Sentry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "s3cret-of-the-environment")
    made = monitors(Monitors={"errors": ["sentry"]}, SentryMonitor={"dsn": sentry.dsn})
    told = (
        "with s3cret-of-the-environment",
        "Authorization: Bearer abcdef0123456789",
        "{'Authorization': 'BackendAI signMethod=HMAC-SHA256, credential=AKIA:abcdef0123456789'}",
        "Cookie: jupyterhub-session-id=abcdef0123456789; x=abcdef0123456789",
        "GET http://127.0.0.1/x?a=1&token=abcdef0123456789",
        "password='abcdef0123456789' token abcdef0123456789",
        "postgresql://user:abcdef0123456789@db/x",
        '{"secret_key": "abcdef0123456789"}',
    )
    long = "x" * (LONGEST_TEXT - 10)
    with running(made):
        for each in told:
            log.error("it failed: %s", each, exc_info=RuntimeError(each))
        log.error("%s", f"{long} s3cret-of-the-environment")
        log.error("the last")
    events = sentry.until("the last", PATIENCE)
    assert len(events) == len(told) + 2
    text = json.dumps(events)
    assert "abcdef0123456789" not in text
    assert "s3cret" not in text
    assert "GET http://127.0.0.1/x?a=1&token=" in text


async def test_what_ends_the_process_is_told(sentry: Sentry) -> None:
    made = monitors(Monitors={"errors": ["sentry"]}, SentryMonitor={"dsn": sentry.dsn})
    with pytest.raises(RuntimeError):
        async with made.start("agent", Metrics().text):
            raise RuntimeError("the end")
    _, event = await asyncio.to_thread(sentry.events.get, timeout=PATIENCE)
    assert event["exception"]["values"][0]["value"] == "the end"


class Failing(StatsMonitor):
    """Always fails."""

    tried: ClassVar[threading.Semaphore]

    def report(self, samples: Sequence[Sample]) -> None:
        self.tried.release()
        raise RuntimeError("no")


class Hanging(ErrorMonitor):
    """Never comes back."""

    hangs: ClassVar[threading.Event]
    free: ClassVar[threading.Event]

    def capture(self, error: LoggedError) -> None:
        self.hangs.set()
        self.free.wait(PATIENCE)


class Nothing:
    """No monitor."""

    def __init__(self, **_: Any) -> None:
        pass


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entry points of these classes."""

    def points(group: str) -> list[EntryPoint]:
        classes = {
            registry.STATS_GROUP: ("Failing", "Nothing"),
            registry.ERRORS_GROUP: ("Hanging",),
        }
        return [EntryPoint(name, f"{__name__}:{name}", group) for name in classes[group]]

    monkeypatch.setattr(registry, "entry_points", points)


def test_a_failing_monitor_is_told_of_once(
    foreign: None, packets: Packets, caplog: pytest.LogCaptureFixture
) -> None:
    Failing.tried = threading.Semaphore(0)
    with running(monitors(Monitors={"stats": ["Failing"], "interval": 0.1})):
        for _ in range(3):
            assert Failing.tried.acquire(timeout=PATIENCE)
    assert [r.levelname for r in caplog.records if "monitor-Failing failed" in r.message] == [
        "WARNING"
    ]


def test_a_hanging_monitor_holds_up_nobody(foreign: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "PATIENCE", 0.1)
    monkeypatch.setattr(registry, "MOST_WAITING", 10)
    Hanging.hangs, Hanging.free = threading.Event(), threading.Event()
    with running(monitors(Monitors={"errors": ["Hanging"]})):
        for _ in range(100):
            log.error("a flood")
        assert Hanging.hangs.wait(PATIENCE)
    Hanging.free.set()


def test_metrics_that_cannot_be_read_are_told_of(
    packets: Packets, caplog: pytest.LogCaptureFixture
) -> None:
    asked = threading.Event()

    def source() -> bytes:
        asked.set()
        raise TimeoutError("the database is away")

    made = monitors(Monitors={"stats": ["statsd"]}, StatsdMonitor={"port": packets.port})
    run = made.start("manager", source)
    assert asked.wait(PATIENCE)
    run.close()
    assert "monitor-StatsdMonitor failed" in caplog.text


def test_nothing_is_loaded_without_being_named(caplog: pytest.LogCaptureFixture) -> None:
    before = threading.active_count()
    with running(monitors()) as run:
        assert run.handler is None
        assert threading.active_count() == before
    assert caplog.records == []


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"Monitors": {"stats": ["statds"]}}, "monitors.stats 'statds': one of datadog, statsd"),
        ({"Monitors": {"errors": ["sentry"]}}, "dsn is missing"),
        (
            {"Monitors": {"errors": ["sentry"]}, "SentryMonitor": {"dsn": "http://nowhere"}},
            "dsn is 'http://nowhere'",
        ),
        (
            {"Monitors": {"stats": ["statsd"]}, "StatsdMonitor": {"prefix": "{who}"}},
            "{host} and {process} are known",
        ),
        ({"Monitors": {"stats": ["statsd"]}, "StatsdMonitor": {"port": 0}}, "port"),
    ],
)
def test_what_cannot_be_used_is_named(
    config: Any, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SENTRY_DSN", raising=False)
    with pytest.raises(MonitorError) as told:
        monitors(**config).start("manager", Metrics().text)
    assert sentence in str(told.value)


def test_no_monitor(foreign: None) -> None:
    with pytest.raises(MonitorError, match="'Nothing' is not a StatsMonitor"):
        monitors(Monitors={"stats": ["Nothing"]}).start("manager", Metrics().text)


def test_a_wrong_expression_is_refused() -> None:
    with pytest.raises(TraitError, match="metrics is"):
        Monitors(metrics="(")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sentry_sdk", None)
    monkeypatch.setitem(__import__("sys").modules, "datadog.dogstatsd.base", None)
    with pytest.raises(ValueError, match=r"install perijove\[sentry\]"):
        SentryMonitor(dsn="http://key@127.0.0.1:9/1").open("hub")
    with pytest.raises(ValueError, match=r"install perijove\[statsd\]"):
        StatsdMonitor().open("hub")
