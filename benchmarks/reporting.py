"""How a benchmark says what it measured: the machine, samples, and ratios as one JSON line."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Sequence


def machine() -> dict[str, object]:
    """What the numbers were taken on."""
    with open("/proc/meminfo", encoding="ascii") as facts:
        memory_kib = int(facts.readline().split()[1])
    with open("/proc/cpuinfo", encoding="utf-8") as facts:
        models = {line.partition(":")[2].strip() for line in facts if line.startswith("model name")}
    return {
        "processor": ", ".join(sorted(models)),
        "cpus": os.cpu_count(),
        "memory_gib": round(memory_kib / 2**20, 1),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def summary(samples: Sequence[float]) -> dict[str, float]:
    """Minimum, median and maximum."""
    return {
        "min": round(min(samples), 4),
        "median": round(statistics.median(samples), 4),
        "max": round(max(samples), 4),
    }


def note(text: str) -> None:
    """A line for the person who watches; the result itself goes to standard output."""
    print(text, file=sys.stderr, flush=True)


def finish(result: dict[str, object]) -> None:
    """Print the result with the machine as the last line."""
    print(json.dumps({**result, "machine": machine()}))
