"""Placements per CPU second of the pure scheduler, over agents x pending sessions x workloads.

The floor in the same run is the naive loop that one would write first: for each session look at every
agent, rate those that fit, take the best. It knows no waiting line, quotas, devices or explanations, so
it does less per placement, and it grows with the number of agents.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable

from benchmarks.reporting import finish, note
from spawner.scheduler.model import (
    Agent,
    Device,
    GroupPolicy,
    KernelRequest,
    SessionRequest,
    Snapshot,
)
from spawner.scheduler.plan import fit, plan
from spawner.scheduler.slots import MICRO

GIB = 2**30
ARCHITECTURE = "x86_64"
PRESETS = ((1, 2, 0), (2, 4, 0), (4, 16, 0), (4, 32, 1), (8, 64, 2))
"""CPUs, GiB and GPUs of what people pick from a form."""

Workload = Callable[[int, random.Random], dict[str, int]]


def one_cpu(number: int, chance: random.Random) -> dict[str, int]:
    """Everybody asks for the same."""
    return {"cpu": MICRO}


def presets(number: int, chance: random.Random) -> dict[str, int]:
    """A handful of kinds of requests, some with GPUs."""
    cpu, mem, gpu = chance.choice(PRESETS)
    return {"cpu": cpu * MICRO, "mem": mem * GIB, "cuda.device": gpu * MICRO}


def all_different(number: int, chance: random.Random) -> dict[str, int]:
    """No two requests are equal: nothing can be shared within a pass."""
    return {"cpu": chance.randint(1, 40) * MICRO // 10, "mem": GIB + number}


def cluster(agents: int, cpus: int, gpus_each_fourth: int, *, busy: int = 0) -> tuple[Agent, ...]:
    """Agents of one size, ``busy`` CPUs of each taken; each fourth has GPUs."""
    return tuple(
        Agent(
            f"agent-{number:05}",
            "default",
            ARCHITECTURE,
            (
                Device("cpu", "cpu", cpus * MICRO, (cpus - busy) * MICRO),
                Device("mem", "mem", 256 * GIB, 256 * GIB),
                *(
                    Device("cuda.device", f"gpu{gpu}", MICRO, MICRO)
                    for gpu in range(gpus_each_fourth if number % 4 == 0 else 0)
                ),
            ),
        )
        for number in range(agents)
    )


def queue(pending: int, workload: Workload) -> tuple[SessionRequest, ...]:
    """Sessions of a hundred users, submitted one after another."""
    chance = random.Random(pending)
    return tuple(
        SessionRequest(
            f"session-{number:06}",
            f"user-{number % 100}",
            f"key-{number % 100}",
            "project",
            "domain",
            "default",
            10,
            float(number),
            (KernelRequest(f"kernel-{number}", workload(number, chance), "image", ARCHITECTURE),),
        )
        for number in range(pending)
    )


def naive(snapshot: Snapshot) -> int:
    """The floor: how many sessions a loop over all agents for each session places."""
    free = {
        agent.agent_id: {
            slot: sum(device.free for device in agent.devices if device.slot == slot)
            for slot in ("cpu", "mem", "cuda.device")
        }
        for agent in snapshot.agents
    }
    placed = 0
    for session in snapshot.pending:
        wants = session.kernels[0].slots
        fitting = [
            (-has["cpu"], agent_id)
            for agent_id, has in free.items()
            if all(has[slot] >= amount for slot, amount in wants.items())
        ]
        if fitting:
            taken = free[min(fitting)[1]]
            for slot, amount in wants.items():
                taken[slot] -= amount
            placed += 1
    return placed


def cpu_seconds(work: Callable[[], object]) -> tuple[float, object]:
    """CPU time of this process for one call, and what it returned."""
    start = time.process_time()
    answer = work()
    return time.process_time() - start, answer


def measure(
    agents: int, pending: int, workload: Workload, *, full: bool, selector: str, with_floor: bool
) -> dict[str, object]:
    """One point of the sweep. ``full``: twice as many CPUs are asked for as there are."""
    sessions = queue(pending, workload)
    asked = sum(session.kernels[0].slots["cpu"] for session in sessions) // MICRO
    cpus = max(1, asked // (2 * agents)) if full else max(16, 4 * asked // agents)
    snapshot = Snapshot(
        0.0,
        (GroupPolicy("default", selector=selector),),
        cluster(agents, cpus, 8),
        sessions,
    )
    seconds, answer = cpu_seconds(lambda: plan(snapshot))
    placed = len(answer.placements)  # type: ignore[attr-defined]  # a Plan
    point: dict[str, object] = {
        "agents": agents,
        "pending": pending,
        "workload": workload.__name__,
        "full": full,
        "selector": selector,
        "placed": placed,
        "cpu_seconds": round(seconds, 4),
        "placements_per_cpu_second": round(placed / seconds),
        "decisions_per_cpu_second": round(pending / seconds),
    }
    if with_floor:
        floor_seconds, floor_placed = cpu_seconds(lambda: naive(snapshot))
        point["floor_cpu_seconds"] = round(floor_seconds, 4)
        point["floor_placed"] = floor_placed
        point["floor_ratio"] = round(floor_seconds / seconds, 2)
    note(f"{agents} x {pending} {workload.__name__} {selector} full={full}: {point}")
    return point


def dry_run(agents: int, pending: int) -> dict[str, object]:
    """Milliseconds of one dry run on a cluster whose queue waits already."""
    snapshot = Snapshot(
        0.0,
        (GroupPolicy("default"),),
        cluster(agents, 4, 0, busy=2),
        queue(pending, lambda number, chance: {"cpu": 3 * MICRO}),
    )
    request = queue(1, presets)[0]
    seconds, verdict = cpu_seconds(lambda: fit(snapshot, request))
    return {
        "agents": agents,
        "pending": pending,
        "milliseconds": round(seconds * 1000, 2),
        "verdict": verdict.verdict,  # type: ignore[attr-defined]  # a Verdict
    }


def main() -> None:
    """Run the sweep and print the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--quick", action="store_true", help="small sizes only, some seconds in all"
    )
    quick = parser.parse_args().quick
    sizes = [(100, 1000), (500, 4000)] if quick else [(100, 5000), (1000, 5000), (10_000, 50_000)]
    points = [
        measure(
            agents,
            pending,
            workload,
            full=full,
            selector=selector,
            with_floor=agents <= 1000 and selector == "dispersed",
        )
        for agents, pending in sizes
        for workload in (one_cpu, presets)
        for full in (False, True)
        for selector in ("dispersed", "concentrated")
    ]
    unequal = [(100, 500)] if quick else [(100, 2000), (1000, 2000)]
    points += [
        measure(agents, pending, all_different, full=full, selector="dispersed", with_floor=True)
        for agents, pending in unequal
        for full in (False, True)
    ]
    ratios = {
        "{agents}x{pending}-{workload}-{selector}-{state}".format(
            **point, state="full" if point["full"] else "free"
        ): point["floor_ratio"]
        for point in points
        if "floor_ratio" in point
    }
    finish(
        {
            "benchmark": "scheduler",
            "ratios": ratios,
            "points": points,
            "dry_run": [dry_run(1000, 100), dry_run(1000, 100 if quick else 5000)],
        }
    )


if __name__ == "__main__":
    main()
