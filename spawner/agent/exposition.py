"""Measures as Prometheus series, the same from the manager and from a node itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Gauge

VALUES = ("current", "capacity", "pct")
OWNER = ("session", "kernel", "user", "project")


class Exposition:
    """Series of nodes, their devices and kernels; made anew each time, so that nothing stays that is gone."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._node = self._gauge("node", "Measures of a node.")
        self._device = self._gauge("device", "Measures of a device.", "device")
        self._kernel = self._gauge("kernel", "Measures of a kernel.", *OWNER)

    def _gauge(self, what: str, text: str, *labels: str) -> Gauge:
        names = ("agent", *labels, "metric", "value")
        return Gauge(f"perijove_{what}_measure", text, names, registry=self.registry)

    def node(self, agent: str, node: Mapping[str, Any], devices: Mapping[str, Any]) -> None:
        """Add a node: its measures by metric, those of devices by metric and device."""
        _set(self._node, (agent,), node)
        for metric, values in devices.items():
            for name, shape in values.items():
                _set(self._device, (agent, name), {metric: shape})

    def kernel(self, agent: str, owner: Sequence[str], metrics: Mapping[str, Any]) -> None:
        """Add a kernel; ``owner`` are the values of ``OWNER``."""
        _set(self._kernel, (agent, *owner), metrics)


def _set(gauge: Gauge, labels: tuple[str, ...], metrics: Mapping[str, Any]) -> None:
    for metric, shape in metrics.items():
        for value in VALUES:
            try:
                number = float(shape.get(value))
            except (AttributeError, TypeError, ValueError):  # not told
                continue
            gauge.labels(*labels, metric, value).set(number)
