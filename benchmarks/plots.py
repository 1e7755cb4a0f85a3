"""Pictures of simulations: waits by class, fairness, and how full the cluster is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

from benchmarks.simulator import Result

HOUR = 3600.0
COLOURS = ("#000000", "#8c8c8c", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e6a800")
"""Distinct for people who do not see red and green apart (Okabe and Ito 2008), the plain lines grey."""
DASHES = ("-", (0, (4, 2)))
SMOOTH = 4
"""Hours of which the utilisation is the mean."""


def draw(
    name: str,
    text: str,
    results: Mapping[str, Result],
    numbers: Mapping[str, Mapping[str, Any]],
    folder: Path,
) -> Path:
    """Write the picture of one experiment into ``folder``; returns its path.

    ``numbers`` are the reports of the runs, of which ``fairness`` is drawn.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    kinds = sorted({life.job.kind for result in results.values() for life in result.lives})
    figure: Any = pyplot.figure(figsize=(10.5, 7.6), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1.08, 1.0))
    figure.suptitle(text, fontsize=12)
    lines = above.subplots(1, len(kinds), sharey=True)
    use, bars = below.subplots(1, 2, width_ratios=(2.1, 1.0))
    looks = list(zip(results, cycle(COLOURS), cycle(DASHES), strict=False))
    for number, (policy, colour, dashes) in enumerate(looks):
        # Equal lines lie upon each other: the first ones are the thickest.
        width = 4.0 - 2.6 * number / max(1, len(looks) - 1)
        look: dict[str, Any] = {
            "color": colour,
            "linestyle": dashes,
            "label": policy,
        }
        result = results[policy]
        for axis, kind in zip(lines, kinds, strict=True):
            axis.plot(*_spread(result, kind), linewidth=width, **look)
        use.plot(*_hourly(result), linewidth=0.6 * width + 0.4, **look)
    for axis, kind in zip(lines, kinds, strict=True):
        _waits(axis, kind, max(result.until for result in results.values()) / HOUR)
    lines[0].set_ylabel("part of the sessions")
    use.set(xlabel="hour", ylabel=f"CPUs in use (mean of {SMOOTH} h)", ylim=(0, 1.05))
    use.set_title("utilisation", fontsize=11)
    use.grid(alpha=0.3)
    _bars(bars, [policy for policy, _, _ in looks], [c for _, c, _ in looks], numbers)
    handles, labels = lines[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9, handlelength=3)
    path = folder / f"simulation-{name}.png"
    figure.savefig(path, dpi=90)
    pyplot.close(figure)
    return path


def _waits(axis: Any, kind: str, most: float) -> None:
    """How the axes of a class's waits look."""
    from matplotlib.ticker import FixedLocator, NullLocator

    axis.set_title(f"waits: {kind}", fontsize=11)
    axis.set_xscale("symlog", linthresh=0.1, linscale=0.5)
    ticks = {0: "0", 0.1: "6 min", 1: "1 h", 6: "6 h", 24: "1 d", 96: "4 d"}
    shown = [at for at in ticks if at <= most]
    axis.xaxis.set_major_locator(FixedLocator(shown))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticklabels([ticks[at] for at in shown])
    axis.set(xlabel="waited at most", xlim=(0, most * 1.1), ylim=(0, 1.02))
    axis.grid(alpha=0.3)


def _bars(axis: Any, names: list[str], colours: list[str], numbers: Mapping[str, Any]) -> None:
    """Jain's index of each policy."""
    values = [numbers[name]["fairness"] for name in names]
    drawn = axis.barh(range(len(names)), values, color=colours, height=0.7)
    axis.bar_label(drawn, labels=[f"{value:.2f}" for value in values], padding=3, fontsize=9)
    axis.set_yticks([])
    axis.invert_yaxis()
    axis.set(xlim=(0, 1.18), xlabel="1: everybody gets the fair share")
    axis.set_title("Jain's index", fontsize=11)
    axis.grid(alpha=0.3, axis="x")


def _spread(result: Result, kind: str) -> tuple[list[float], list[float]]:
    """Hours waited, and the part of the class that waited at most so long."""
    values = sorted(
        life.waited(result.until) / HOUR
        for life in result.lives
        if life.job.kind == kind and life.job.request.submitted_at < result.until
    )
    return values, [(number + 1) / len(values) for number in range(len(values))]


def _hourly(result: Result) -> tuple[list[float], list[float]]:
    """Mean use around each hour."""
    used: dict[int, float] = defaultdict(float)
    for before, after in zip(result.points, result.points[1:], strict=False):
        at = before.at
        while at < after.at:
            hour = int(at // HOUR)
            end = min(after.at, (hour + 1) * HOUR)
            used[hour] += before.used * (end - at) / HOUR
            at = end
    hours = range(max(1, int(result.until // HOUR)))
    spans = [range(max(0, at - SMOOTH // 2), min(hours[-1] + 1, at + SMOOTH // 2)) for at in hours]
    return [float(at) for at in hours], [sum(used[at] for at in span) / len(span) for span in spans]
