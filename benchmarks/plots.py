"""Pictures of simulations: waits by class, and how full the cluster is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from benchmarks.simulator import Result

HOUR = 3600.0
COLOURS = ("#9aa0a6", "#5f6368", "#1a73e8", "#e8710a", "#188038", "#a142f4")


def draw(name: str, text: str, results: Mapping[str, Result], folder: Path) -> list[Path]:
    """Write the pictures of one workload into ``folder``; returns their paths."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    kinds = sorted({life.job.kind for result in results.values() for life in result.lives})
    figure, axes = pyplot.subplots(
        1, len(kinds) + 1, figsize=(4.6 * (len(kinds) + 1), 4.0), layout="constrained"
    )
    figure.suptitle(text, fontsize=11)
    for colour, (policy, result) in zip(COLOURS, results.items(), strict=False):
        by_kind: dict[str, list[float]] = defaultdict(list)
        for life in result.lives:
            if life.job.request.submitted_at < result.until:
                by_kind[life.job.kind].append(life.waited(result.until) / HOUR)
        for axis, kind in zip(axes, kinds, strict=False):
            values = sorted(by_kind[kind])
            parts = [(number + 1) / len(values) for number in range(len(values))]
            axis.plot(values, parts, color=colour, label=policy, linewidth=1.5)
        xs, ys = _hourly(result)
        axes[-1].plot(xs, ys, color=colour, label=policy, linewidth=1.2)
    for axis, kind in zip(axes, kinds, strict=False):
        axis.set(xlabel="hours waited", ylabel="part of the sessions", title=f"waits: {kind}")
        axis.set_xscale("symlog", linthresh=0.1)
        axis.set_xlim(left=0)
        axis.set_ylim(0, 1.02)
        axis.grid(alpha=0.3)
    axes[-1].set(
        xlabel="hour", ylabel="part of the CPUs in use", title="utilisation", ylim=(0, 1.05)
    )
    axes[-1].grid(alpha=0.3)
    axes[0].legend(fontsize=8, loc="lower right")
    path = folder / f"simulation-{name}.png"
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return [path]


def _hourly(result: Result) -> tuple[list[float], list[float]]:
    """Mean use in each hour."""
    hours = int(result.until // HOUR)
    used = [0.0] * hours
    for before, after in zip(result.points, result.points[1:], strict=False):
        at = before.at
        while at < after.at:
            hour = int(at // HOUR)
            end = min(after.at, (hour + 1) * HOUR)
            if hour < hours:
                used[hour] += before.used * (end - at) / HOUR
            at = end
    return [hour + 0.5 for hour in range(hours)], used
