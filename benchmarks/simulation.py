"""Days of simulated time under each policy: how long people wait, how fair it is, how full the cluster.

``python -m benchmarks.simulation`` prints one JSON line. ``--save`` also writes it to
``benchmarks/results``, draws PNG files into ``docs/images`` and fills in the tables of
``docs/scheduling.md`` (needs matplotlib: ``pip install .[bench]``).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from bisect import bisect_right, insort
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import plots, tables
from benchmarks.contenders import EXPERIMENTS, Contender, Experiment
from benchmarks.reporting import finish, machine, note
from benchmarks.simulator import TICK, Life, Result, Simulation
from benchmarks.workloads import Workload
from spawner.scheduler.model import GroupPolicy

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "simulation.json"
PAGE = ROOT / "docs" / "scheduling.md"
IMAGES = ROOT / "docs" / "images"


def simulate(workload: Workload, contender: Contender) -> Result:
    """Run ``workload`` under ``contender``."""
    return Simulation(
        workload.agents,
        workload.jobs,
        contender.policy,
        contender.group,
        workload.until,
        pause=workload.pause,
    ).run()


def jain(values: Sequence[float]) -> float:
    """Jain's index: 1 when all are equal, 1/n when one has everything."""
    square = sum(value * value for value in values)
    return 1.0 if not square else sum(values) ** 2 / (len(values) * square)


def fairness(result: Result, window: tuple[float, float]) -> float:
    """Jain's index over users of what each got within ``window`` as part of the fair share.

    Fair is max-min: nobody's part of the cluster is larger than another's who wants more. Amounts are
    dominant shares times seconds; what a user wants is what was submitted before the window's end.
    """
    since, until = window
    got: dict[str, float] = defaultdict(float)
    wants: dict[str, float] = defaultdict(float)
    for life in result.lives:
        submitted = life.job.request.submitted_at
        if submitted >= until:
            continue
        share = dominant(life, result.capacity)
        before = life.ran(0.0, since)
        got[life.owner] += share * life.ran(since, until)
        possible = until - max(submitted, since)
        wants[life.owner] += share * max(0.0, min(life.job.duration - before, possible))
    entitled = max_min(wants, sum(got.values()))
    return jain([min(1.0, got[user] / entitled[user]) for user in entitled if entitled[user] > 0])


def dominant(life: Life, capacity: Mapping[str, int]) -> float:
    """The largest part of any slot of the cluster that a session holds."""
    return max(amount / capacity[slot] for slot, amount in life.job.slots.items())


def max_min(wants: Mapping[str, float], supply: float) -> dict[str, float]:
    """Divide ``supply``: equal parts, and what somebody does not want goes to the others."""
    given: dict[str, float] = {}
    left, users = supply, sorted(wants, key=lambda user: wants[user])
    for number, user in enumerate(users):
        given[user] = min(wants[user], left / (len(users) - number))
        left -= given[user]
    return given


def utilisation(result: Result, *, while_waiting: bool) -> float:
    """Mean part of the CPUs in use; ``while_waiting``: of the time in which somebody waited."""
    used, passed = 0.0, 0.0
    for before, after in zip(result.points, result.points[1:], strict=False):
        span = after.at - before.at
        if before.waiting or not while_waiting:
            used += before.used * span
            passed += span
    return used / passed if passed else 1.0


def quantile(values: Sequence[float], part: float) -> float:
    """The smallest value that ``part`` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0


def waits(result: Result) -> dict[str, dict[str, float]]:
    """Hours of waiting by class; a session that still waits counts with its wait so far."""
    by_kind: dict[str, list[Life]] = defaultdict(list)
    for life in result.lives:
        if life.job.request.submitted_at < result.until:
            by_kind[life.job.kind].append(life)
    found: dict[str, dict[str, float]] = {}
    for kind, lives in sorted(by_kind.items()):
        values = [life.waited(result.until) / 3600 for life in lives]
        found[kind] = {
            "sessions": len(values),
            "waiting": sum(life.started_at is None for life in lives),
            "median": round(statistics.median(values), 3),
            "p95": round(quantile(values, 0.95), 3),
            "max": round(max(values), 3),
        }
    return found


def longest_of_bound(result: Result, group: GroupPolicy, pause: float) -> float | None:
    """The largest part of the longest wait promised to it that any session waited.

    None: nothing is promised, or nobody can have waited so long.

    With run times of at most D and k sessions ahead of it that are as old, whoever has waited for
    ``ageing`` (with several priorities: ``rise``) starts within (k + 1) D, and a pass later each time.
    """
    jobs = [life.job for life in result.lives]
    if any(each.request.run_time is None for each in jobs) or group.preemption is not None:
        return None
    patience = group.ageing
    if len({each.request.priority for each in jobs}) > 1:
        if group.rise is None:
            return None
        patience = max(group.ageing, group.rise)
    if patience >= result.until:
        return None
    most = max(each.request.run_time or 0.0 for each in jobs) + pause
    worst = 0.0
    starts: list[float] = []
    by_age = sorted(
        result.lives, key=lambda life: (life.job.request.submitted_at, life.job.request.session_id)
    )
    for life in by_age:
        aged = life.job.request.submitted_at + patience
        ahead = len(starts) - bisect_right(starts, aged)
        promised = patience + TICK + (ahead + 1) * most
        worst = max(worst, life.waited(result.until) / promised)
        insort(starts, math.inf if life.started_at is None else life.started_at)
    return worst


def lost(result: Result) -> dict[str, float]:
    """What preemption cost: sessions put back or ended, CPU hours that they had run in vain."""
    lives = [life for life in result.lives if life.preemptions]
    wasted = sum(life.lost * life.job.slots["cpu"] for life in lives)
    used = sum(
        before.used * (after.at - before.at)
        for before, after in zip(result.points, result.points[1:], strict=False)
    )
    return {
        "preemptions": sum(life.preemptions for life in lives),
        "cut": sum(life.cut for life in lives),
        "cpu_hours_lost": round(wasted / 1e6 / 3600, 1),
        "part_lost": round(wasted / (used * result.capacity["cpu"]), 4) if used else 0.0,
    }


def report(workload: Workload, contender: Contender, result: Result) -> dict[str, Any]:
    """The numbers of one run."""
    found: dict[str, Any] = {
        "waits_hours": waits(result),
        "fairness": round(fairness(result, workload.window), 3),
        "utilisation": round(utilisation(result, while_waiting=False), 3),
        "utilisation_while_waiting": round(utilisation(result, while_waiting=True), 3),
        "ended": sum(life.ended_at is not None and not life.cut for life in result.lives),
        "started": sum(life.started_at is not None for life in result.lives),
        "passes": result.passes,
        "cpu_seconds": round(result.cpu_seconds, 2),
        "slowest_pass_seconds": round(result.slowest_pass, 4),
    }
    if contender.group.preemption is not None:
        found["preemption"] = lost(result)
    if contender.ours:
        part = longest_of_bound(result, contender.group, workload.pause)
        found["longest_of_bound"] = None if part is None else round(part, 4)
    return found


def run(name: str, experiment: Experiment, folder: Path | None, quick: bool) -> dict[str, Any]:
    """All contenders on one workload."""
    workload = experiment.make(**({"days": 0.25} if quick else {}))
    results: dict[str, Result] = {}
    numbers: dict[str, Any] = {}
    for contender in experiment.contenders:
        start = time.monotonic()
        result = results[contender.name] = simulate(workload, contender)
        numbers[contender.name] = report(workload, contender, result)
        took = time.monotonic() - start
        note(f"{name}, {contender.name} ({took:.1f} s): {numbers[contender.name]}")
    if folder is not None:
        note(f"drawn: {plots.draw(name, workload.text, results, numbers, folder)}")
    return {
        "text": workload.text,
        "jobs": len(workload.jobs),
        "days": workload.until / 86400,
        "policies": numbers,
    }


def main() -> None:
    """Simulate and print the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw PNG files there")
    parser.add_argument("--only", choices=sorted(EXPERIMENTS), help="one experiment instead of all")
    parser.add_argument("--quick", action="store_true", help="six simulated hours instead of days")
    parser.add_argument("--save", action="store_true", help="write results, pictures and tables")
    chosen = parser.parse_args()
    if chosen.save and (chosen.only or chosen.quick or chosen.plots):
        parser.error("--save writes everything: it goes without --only, --quick and --plots")
    names = [chosen.only] if chosen.only else list(EXPERIMENTS)
    folder = IMAGES if chosen.save else chosen.plots
    found = {name: run(name, EXPERIMENTS[name], folder, chosen.quick) for name in names}
    result: dict[str, object] = {"benchmark": "simulation", "experiments": found}
    if chosen.save:
        RESULTS.write_text(json.dumps({**result, "machine": machine()}, indent=1) + "\n")
        PAGE.write_text(tables.filled(PAGE.read_text(), found))
    finish(result)


if __name__ == "__main__":
    main()
