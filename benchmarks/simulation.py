"""Days of simulated time under each policy: how long people wait, how fair it is, how full the cluster.

``python -m benchmarks.simulation`` prints one JSON line; ``--plots docs/images`` also draws PNG files
(needs matplotlib: ``pip install .[bench]``).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import plots
from benchmarks.baselines import fifo_continue, fifo_stop
from benchmarks.reporting import finish, note
from benchmarks.simulator import Life, Policy, Result, Simulation
from benchmarks.workloads import GROUP, WORKLOADS, Workload
from spawner.scheduler.model import GroupPolicy
from spawner.scheduler.plan import plan
from spawner.scheduler.policies import BUILT_IN

BASELINES: dict[str, Policy] = {"FIFO, stop": fifo_stop, "FIFO, continue": fifo_continue}


@dataclass(frozen=True, slots=True)
class Contender:
    """A policy to be simulated, and the resource group it runs with."""

    name: str
    policy: Policy
    group: GroupPolicy


def contenders(ageing: float) -> list[Contender]:
    """The two baselines and every sequencer of the scheduler but last come, first served."""
    plain = GroupPolicy(GROUP)
    found = [Contender(name, policy, plain) for name, policy in BASELINES.items()]
    for name in sorted(set(BUILT_IN.sequencers) - {"lifo"}):
        group = GroupPolicy(GROUP, sequencer=name, selector="concentrated", ageing=ageing)
        found.append(Contender(f"perijove {name}", plan, group))
    return found


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
    by_kind: dict[str, list[float]] = defaultdict(list)
    for life in result.lives:
        if life.job.request.submitted_at < result.until:
            by_kind[life.job.kind].append(life.waited(result.until) / 3600)
    return {
        kind: {
            "sessions": len(values),
            "median": round(statistics.median(values), 3),
            "p95": round(quantile(values, 0.95), 3),
            "max": round(max(values), 3),
        }
        for kind, values in sorted(by_kind.items())
    }


def report(workload: Workload, result: Result) -> dict[str, object]:
    """The numbers of one run."""
    return {
        "waits_hours": waits(result),
        "fairness": round(fairness(result, workload.window), 3),
        "utilisation": round(utilisation(result, while_waiting=False), 3),
        "utilisation_while_waiting": round(utilisation(result, while_waiting=True), 3),
        "ended": sum(life.ended_at is not None for life in result.lives),
        "started": sum(life.started_at is not None for life in result.lives),
        "passes": result.passes,
        "cpu_seconds": round(result.cpu_seconds, 2),
        "slowest_pass_seconds": round(result.slowest_pass, 4),
    }


def run(make: Callable[[], Workload], folder: Path | None) -> dict[str, object]:
    """All contenders on one workload."""
    workload = make()
    results: dict[str, Result] = {}
    numbers: dict[str, object] = {}
    for contender in contenders(workload.ageing):
        start = time.monotonic()
        results[contender.name] = simulate(workload, contender)
        numbers[contender.name] = report(workload, results[contender.name])
        took = time.monotonic() - start
        note(f"{workload.name}, {contender.name} ({took:.1f} s): {numbers[contender.name]}")
    if folder is not None:
        for path in plots.draw(workload.name, workload.text, results, folder):
            note(f"drawn: {path}")
    return {"text": workload.text, "jobs": len(workload.jobs), "policies": numbers}


def main() -> None:
    """Simulate and print the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw PNG files there")
    parser.add_argument("--only", choices=sorted(WORKLOADS), help="one workload instead of all")
    chosen = parser.parse_args()
    names = [chosen.only] if chosen.only else list(WORKLOADS)
    found = {name: run(WORKLOADS[name], chosen.plots) for name in names}
    finish({"benchmark": "simulation", "workloads": found})


if __name__ == "__main__":
    main()
