"""Samples from the text that Prometheus would read. Buckets of histograms are left out; sum and count stay."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from prometheus_client.parser import text_string_to_metric_families

from spawner.monitors.base import Sample, SampleKind

TOTALS = ("_total", "_count", "_sum")
LEFT_OUT = ("_bucket", "_created")
CUMULATIVE = ("counter", "histogram", "summary")


class Sampler:
    """Remembers totals, to tell by how much they grew."""

    def __init__(self, wanted: str = ".*") -> None:
        self._wanted = re.compile(wanted)
        self._totals: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}

    def read(self, text: str) -> list[Sample]:
        """All samples of the metrics that are wanted."""
        return list(self._read(text))

    def _read(self, text: str) -> Iterator[Sample]:
        before, self._totals = self._totals, {}
        for family in text_string_to_metric_families(text):
            for each in family.samples:
                name, labels, value = each.name, each.labels, float(each.value)
                cumulative = family.type in CUMULATIVE
                if name.endswith(LEFT_OUT) or not math.isfinite(value):
                    continue
                if not self._wanted.fullmatch(name):
                    continue
                if not cumulative or not name.endswith(TOTALS):
                    yield Sample(name, SampleKind.GAUGE, value, labels)
                    continue
                key = name, frozenset(labels.items())
                self._totals[key] = value
                grown = value - before.get(key, 0.0)
                # A total that fell began anew.
                yield Sample(name, SampleKind.COUNTER, grown if grown >= 0 else value, labels)
