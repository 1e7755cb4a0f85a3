"""Metrics for StatsD, and for DogStatsD, which knows tags. Needs ``datadog`` (extra ``statsd``)."""

from __future__ import annotations

import importlib
import re
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from traitlets import Dict, Integer, Unicode

from spawner.monitors.base import Repeats, Sample, SampleKind, StatsMonitor


class StatsdMonitor(StatsMonitor):
    """Where metrics are sent by UDP. Labels of a metric become parts of its name."""

    host = Unicode("127.0.0.1", help="Host of the StatsD server.").tag(config=True)
    port = Integer(8125, min=1, max=65535, help="Its UDP port.").tag(config=True)
    prefix = Unicode(
        "{host}.{process}.",
        help="Beginning of all names; `{host}` is this host's name, `{process}` hub, manager or agent.",
    ).tag(config=True)

    def __init__(self, **traits: Any) -> None:
        super().__init__(**traits)
        self._client: Any = None
        self._prefix = ""

    def open(self, process: str) -> None:
        """Make the client; nothing is sent yet."""
        words = {"host": _word(socket.gethostname()), "process": process}
        try:
            self._prefix = self.prefix.format(**words)
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(
                f"prefix is {self.prefix!r}: {error!r}; {{host}} and {{process}} are known"
            ) from error
        try:
            library = importlib.import_module("datadog.dogstatsd.base")
        except ImportError as error:
            raise ValueError("the package datadog is missing: install perijove[statsd]") from error
        library.log.addFilter(Repeats())
        self._client = library.DogStatsd(
            host=self.host,
            port=self.port,
            disable_buffering=False,
            flush_interval=0,  # flushed after each report, by no thread
            disable_telemetry=True,
            origin_detection_enabled=False,
            constant_tags=self.constant_tags(process),
        )

    def report(self, samples: Sequence[Sample]) -> None:
        """Many in one packet."""
        for sample in samples:
            name, tags = self.named(sample)
            if sample.kind is SampleKind.GAUGE:
                self._client.gauge(self._prefix + name, sample.value, tags=tags)
            elif sample.value:
                self._client.increment(self._prefix + name, sample.value, tags=tags)
        self._client.flush()

    def close(self) -> None:
        """Close the socket."""
        if self._client is not None:
            self._client.close_socket()

    def constant_tags(self, process: str) -> list[str]:
        """Tags of all metrics; StatsD itself knows none."""
        return []

    def named(self, sample: Sample) -> tuple[str, list[str] | None]:
        """Name and tags of a sample."""
        return ".".join([sample.name, *(_word(v) for _, v in sorted(sample.labels.items()))]), None


class DatadogMonitor(StatsdMonitor):
    """Where metrics are sent by UDP, with their labels as tags, as Datadog's agent reads them."""

    prefix = Unicode("", help="Beginning of all names.").tag(config=True)
    tags = Dict(help="Tags of all metrics, besides `process`.").tag(config=True)

    def constant_tags(self, process: str) -> list[str]:
        """Those that are set, and which process it is."""
        return _tags({"process": process, **self.tags})

    def named(self, sample: Sample) -> tuple[str, list[str] | None]:
        """Its own name; labels are tags."""
        return sample.name, _tags(sample.labels)


def _tags(labels: Mapping[str, object]) -> list[str]:
    # A comma ends a tag and a bar all of them.
    return [re.sub(r"[,|\s]", "_", f"{name}:{value}") for name, value in labels.items()]


def _word(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "_", text) or "_"
