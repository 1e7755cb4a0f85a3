"""CPU milliseconds of a dry run on a cluster whose queue waits already, over queues of several kinds.

Beside it the whole pass over the same queue, which is what a dry run would cost if it worked everybody out.

    scripts/bench dryrun [--quick]
"""

from __future__ import annotations

import argparse
import random
from dataclasses import replace

from benchmarks.queues import GIB, Workload, all_different, cluster, presets, queue, three_cpus
from benchmarks.reporting import finish, note
from benchmarks.scheduler import cpu_seconds
from spawner.scheduler.dryrun import fit
from spawner.scheduler.model import Agent, GroupPolicy, Quota, Snapshot
from spawner.scheduler.plan import plan
from spawner.scheduler.slots import MICRO

RUNS = 7


def large_and_different(number: int, chance: random.Random, special: float) -> dict[str, int]:
    """No two are equal, and each wants more memory than any agent has free."""
    return {"cpu": chance.randint(1, 40) * MICRO // 10, "mem": 32 * GIB + number}


def crumbs(agents: int) -> tuple[Agent, ...]:
    """Agents on which something is free of everything, of each another amount."""
    chance = random.Random(agents)
    return tuple(
        replace(
            agent,
            devices=tuple(
                replace(
                    device,
                    free=chance.randint(0, 20) * MICRO // 10
                    if device.slot == "cpu"
                    else chance.randint(0, 32) * GIB,
                )
                for device in agent.devices
            ),
        )
        for agent in cluster(agents, 64, 0)
    )


CASES: tuple[tuple[str, Workload, str, bool], ...] = (
    ("equal requests", three_cpus, "fifo", False),
    ("picked from a form", presets, "fifo", False),
    ("all different", all_different, "fifo", False),
    ("all different, limits, fair-share", all_different, "fair-share", False),
    ("all different, something free everywhere", large_and_different, "fifo", True),
)


def measure(
    agents: int, pending: int, name: str, workload: Workload, sequencer: str, crumbly: bool
) -> dict[str, object]:
    """The median of some runs, and the worst: a collection of garbage may fall into any of them."""
    nodes = crumbs(agents) if crumbly else cluster(agents, 64, 0, busy=64)
    if workload is three_cpus:
        nodes = cluster(agents, 64, 0, busy=62)
    sessions = queue(pending, workload, 0.0)
    limits = tuple(
        Quota("keypair", f"key-{number}", {"cpu": 200 * MICRO}, {"cpu": MICRO}, max_sessions=90)
        for number in range(100)
    )
    limited = sequencer == "fair-share"
    policy = GroupPolicy("default", sequencer=sequencer)
    snapshot = Snapshot(0.0, (policy,), nodes, sessions, limits if limited else ())
    request = queue(1, lambda number, chance, special: {"cpu": 4 * MICRO, "mem": 48 * GIB})[0]
    request = replace(request, session_id="asked", submitted_at=float(pending))
    runs = [cpu_seconds(lambda: fit(snapshot, request)) for _ in range(RUNS)]
    seconds = sorted(taken for taken, _ in runs)
    whole = cpu_seconds(lambda: plan(replace(snapshot, pending=(*sessions, request))))[0]
    verdict = runs[0][1]
    point: dict[str, object] = {
        "agents": agents,
        "pending": pending,
        "queue": name,
        "milliseconds": round(seconds[RUNS // 2] * 1000, 2),
        "worst_milliseconds": round(seconds[-1] * 1000, 2),
        "pass_milliseconds": round(whole * 1000, 2),
        "message": verdict.message,
    }
    note(f"dry run: {point}")
    return point


def main() -> None:
    """All kinds of queues at each size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="short queues only")
    sizes = ((1000, 100),) if parser.parse_args().quick else ((1000, 100), (1000, 5000))
    points = [
        measure(agents, pending, name, workload, sequencer, crumbly)
        for agents, pending in sizes
        for name, workload, sequencer, crumbly in CASES
    ]
    ratios = {
        f"{p['agents']}x{p['pending']}-{p['queue']}": round(
            float(str(p["milliseconds"])) / float(str(p["pass_milliseconds"])), 3
        )
        for p in points
    }
    finish({"benchmark": "dryrun", "ratios": ratios, "points": points})


if __name__ == "__main__":
    main()
