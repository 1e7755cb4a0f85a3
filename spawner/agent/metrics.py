"""Metrics of an agent: its kernels, its engine's calls, its pulls, its measures."""

from __future__ import annotations

import inspect
import time
from collections import Counter as Count
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest

from spawner.agent.engines.base import Engine
from spawner.agent.exposition import Exposition
from spawner.agent.protocol import ImagePull, KernelReport, Measures

STATES = ("PREPARING", "CREATING", "RUNNING", "TERMINATING", "TERMINATED")
CALLS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
PULLS = (1, 5, 15, 30, 60, 120, 300, 600, 1800, 3600)
SCRATCH = "io_scratch_size"


class AgentMetrics:
    """What one agent tells Prometheus."""

    def __init__(self, agent_id: str) -> None:
        self._agent_id = agent_id
        self._heard_at = time.monotonic()
        self.registry = CollectorRegistry()
        self._calls = Histogram(
            "perijove_agent_engine_call_seconds",
            "Duration of calls of the engine.",
            ("call", "outcome"),
            buckets=CALLS,
            registry=self.registry,
        )
        self._pulls = Histogram(
            "perijove_agent_image_pull_seconds",
            "Time that kernels and administrators waited for images that were pulled.",
            ("outcome",),
            buckets=PULLS,
            registry=self.registry,
        )
        self._pulling = self._gauge("pulling", "Waits for images that are being pulled now.")
        self._connected = self._gauge(
            "connected", "Whether the manager has this agent's connection."
        )
        self._heartbeat = self._gauge(
            "heartbeat_sent_age_seconds", "Time since the manager was sent a sign of life."
        )
        self._scratch = self._gauge(
            "scratch_bytes", "What lies in the temporary folders of kernels."
        )
        self._kernels = Gauge(
            "perijove_agent_kernels", "Kernels by state.", ("status",), registry=self.registry
        )
        for outcome in ("done", "failed"):
            self._pulls.labels(outcome)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"perijove_agent_{name}", text, registry=self.registry)

    def beat(self) -> None:
        """The manager was sent a sign of life."""
        self._heard_at = time.monotonic()

    def connected(self, connected: bool) -> None:
        """The connection begins or ends."""
        self._connected.set(connected)

    def timed(self, engine: Engine) -> Engine:
        """The engine, its calls timed."""
        return cast(Engine, _Timed(engine, self))

    def render(self, reports: tuple[KernelReport, ...], measures: Measures | None) -> bytes:
        """The text format as of now, the process's own metrics included."""
        self._heartbeat.set(time.monotonic() - self._heard_at)
        counts = Count(report.status for report in reports)
        for state in STATES:
            self._kernels.labels(state).set(counts[state])
        series = Exposition()
        if measures is not None:
            series.node(self._agent_id, measures.node, measures.devices)
            self._scratch.set(sum(_bytes(each) for each in measures.kernels.values()))
        parts = (self.registry, series.registry)
        return b"".join(generate_latest(part) for part in parts) + generate_latest()

    @contextmanager
    def timing(self, call: str) -> Iterator[None]:
        """Time a call of the engine; one that is cut off has failed."""
        begin, outcome = time.perf_counter(), "failed"
        try:
            yield
            outcome = "done"
        finally:
            self._calls.labels(call, outcome).observe(time.perf_counter() - begin)

    @contextmanager
    def pulling(self) -> Iterator[None]:
        """Time a wait for a pull."""
        begin, outcome = time.perf_counter(), "failed"
        self._pulling.inc()
        try:
            yield
            outcome = "done"
        finally:
            self._pulling.dec()
            self._pulls.labels(outcome).observe(time.perf_counter() - begin)


def _bytes(metrics: Mapping[str, Any]) -> float:
    return float(metrics.get(SCRATCH, {}).get("current") or 0)


class _Timed:
    """Passes everything on to an engine, and times what is awaited."""

    def __init__(self, engine: Engine, metrics: AgentMetrics) -> None:
        self._engine, self._metrics = engine, metrics

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._engine, name)
        if inspect.iscoroutinefunction(found):
            found = self._awaited(name, found)
        setattr(self, name, found)  # the next time it is found at once
        return found

    def _awaited(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        async def timed(*arguments: Any, **named: Any) -> Any:
            with self._metrics.timing(name):
                return await call(*arguments, **named)

        return timed

    async def ensure_image(self, name: str, pull: ImagePull | None = None) -> AsyncIterator[str]:
        """An engine that says something has to get the image."""
        sentences = self._engine.ensure_image(name, pull)
        first = await anext(sentences, None)
        if first is None:
            return
        with self._metrics.pulling():
            yield first
            async for sentence in sentences:
                yield sentence
