"""Placements per CPU second of the pure scheduler, over agents x pending sessions x workloads.

Beside it in the same run, on the same seeded workload: the decision code of Backend.AI's manager as
published (``benchmarks/peers``), which checks, places on devices and explains nothing here; and a floor,
the naive loop that one would write first: for each session look at every agent, rate those that fit,
take the best.

    scripts/bench scheduler [--quick] [--no-peer | --only-peer]
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable

from benchmarks.peers import PeerMissing, run_backend_ai
from benchmarks.reporting import finish, note
from spawner.scheduler.model import (
    Agent,
    Device,
    GroupPolicy,
    KernelRequest,
    SessionRequest,
    Snapshot,
)
from spawner.scheduler.plan import plan
from spawner.scheduler.policies import BUILT_IN
from spawner.scheduler.slots import MICRO

GIB = 2**30
ARCHITECTURE = "x86_64"
PATIENCE = 12.0
"""CPU seconds after which Backend.AI's code is stopped; what it placed until then counts."""
PLAIN = ((1, 2, 0), (2, 4, 0), (4, 16, 0))
SPECIAL = ((4, 32, 1), (8, 64, 2))
"""CPUs, GiB and GPUs of what people pick from a form."""

Workload = Callable[[int, random.Random, float], dict[str, int]]
"""What session number so and so asks for; the last argument is the part that may want GPUs."""


def one_cpu(number: int, chance: random.Random, special: float) -> dict[str, int]:
    """Everybody asks for the same."""
    return {"cpu": MICRO}


def presets(number: int, chance: random.Random, special: float) -> dict[str, int]:
    """A handful of kinds of requests, some with GPUs."""
    cpu, mem, gpu = chance.choice(SPECIAL if chance.random() < special else PLAIN)
    slots = {"cpu": cpu * MICRO, "mem": mem * GIB}
    return {**slots, "cuda.device": gpu * MICRO} if gpu else slots


def all_different(number: int, chance: random.Random, special: float) -> dict[str, int]:
    """No two requests are equal: nothing can be shared within a pass."""
    return {"cpu": chance.randint(1, 40) * MICRO // 10, "mem": GIB + number}


def cluster(
    agents: int, cpus: int, gpus_each_fourth: int, *, memory: int = 256, busy: int = 0
) -> tuple[Agent, ...]:
    """Agents of one size (``memory`` in GiB), ``busy`` CPUs of each taken; each fourth has GPUs."""
    return tuple(
        Agent(
            f"agent-{number:05}",
            "default",
            ARCHITECTURE,
            (
                Device("cpu", "cpu", cpus * MICRO, (cpus - busy) * MICRO),
                Device("mem", "mem", memory * GIB, memory * GIB),
                *(
                    Device("cuda.device", f"gpu{gpu}", MICRO, MICRO)
                    for gpu in range(gpus_each_fourth if number % 4 == 0 else 0)
                ),
            ),
        )
        for number in range(agents)
    )


def queue(pending: int, workload: Workload, special: float = 0.4) -> tuple[SessionRequest, ...]:
    """Sessions of a hundred users, submitted one after another; a part ``special`` may want GPUs."""
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
            (
                KernelRequest(
                    f"kernel-{number}", workload(number, chance, special), "image", ARCHITECTURE
                ),
            ),
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


def situation(
    agents: int, pending: int, workload: Workload, *, full: bool, sequencer: str, selector: str
) -> Snapshot:
    """A cluster and its queue. ``full``: twice as many CPUs are asked for as there are."""
    sessions = queue(pending, workload, min(0.4, agents / pending))
    asked = sum(session.kernels[0].slots["cpu"] for session in sessions) // MICRO
    memory = sum(session.kernels[0].slots.get("mem", 0) for session in sessions) // GIB
    cpus = max(8, asked // (2 * agents)) if full else max(16, 4 * asked // agents)
    policy = GroupPolicy("default", sequencer=sequencer, selector=selector)
    nodes = cluster(agents, cpus, 8, memory=max(512, 4 * memory // agents))
    return Snapshot(0.0, (policy,), nodes, sessions)


def measure(
    agents: int,
    pending: int,
    workload: Workload = presets,
    *,
    full: bool,
    sequencer: str = "fifo",
    selector: str = "dispersed",
    floor: bool = False,
    peer: float = 0.0,
) -> dict[str, object]:
    """One point of the sweep; ``peer``: CPU seconds that Backend.AI's code gets on the same workload."""
    snapshot = situation(
        agents, pending, workload, full=full, sequencer=sequencer, selector=selector
    )
    seconds, answer = cpu_seconds(lambda: plan(snapshot))
    if seconds < 1.0:  # short runs jump about on a shared machine: the median of three
        more = [cpu_seconds(lambda: plan(snapshot))[0] for _ in range(2)]
        seconds = sorted([seconds, *more])[1]
    placed = len(answer.placements)  # type: ignore[attr-defined]  # a Plan
    point: dict[str, object] = {
        "agents": agents,
        "pending": pending,
        "workload": workload.__name__,
        "full": full,
        "sequencer": sequencer,
        "selector": selector,
        "placed": placed,
        "cpu_seconds": round(seconds, 4),
        "placements_per_cpu_second": round(placed / seconds),
        "decisions_per_cpu_second": round(pending / seconds),
    }
    if floor:
        floor_seconds, floor_placed = cpu_seconds(lambda: naive(snapshot))
        point["floor_cpu_seconds"] = round(floor_seconds, 4)
        point["floor_placed"] = floor_placed
        point["floor_ratio"] = round(floor_seconds / seconds, 2)
    if peer:
        beside = run_backend_ai(workload_for_peer(snapshot, peer))
        theirs = beside["placed"] / max(beside["cpu_seconds"], 1e-9)
        point["backendai"] = beside
        point["backendai_placements_per_cpu_second"] = round(theirs, 1)
        point["backendai_ratio"] = round(placed / seconds / theirs, 1) if theirs else None
    note(f"{agents} x {pending} {workload.__name__} {sequencer} {selector} full={full}: {point}")
    return point


def workload_for_peer(snapshot: Snapshot, budget: float) -> dict[str, object]:
    """The same agents and sessions in the words of ``benchmarks/peers/backendai.py``."""
    policy = snapshot.groups[0]
    agents: list[dict[str, int]] = []
    for agent in snapshot.agents:
        amounts: dict[str, int] = {}
        for device in agent.devices:
            amounts[device.slot] = amounts.get(device.slot, 0) + device.free
        agents.append(amounts)
    return {
        "sequencer": policy.sequencer,
        "selector": policy.selector,
        "budget": budget,
        "agents": agents,
        "sessions": [
            [session.access_key, dict(session.kernels[0].slots)] for session in snapshot.pending
        ],
    }


def sweep(quick: bool) -> list[dict[str, object]]:
    """All sizes under one policy, then all policies at one size and at the largest."""
    sizes = (100, 500) if quick else (100, 1000, 10_000)
    queues = (1000, 4000) if quick else (1000, 5000, 50_000)
    points = [
        measure(agents, pending, full=full, floor=agents * pending <= 1_000_000)
        for agents in sizes
        for pending in queues
        for full in (False, True)
    ]
    largest = (sizes[-1], queues[-1])
    for agents, pending in ((sizes[1], queues[1]), largest):
        points += [
            measure(agents, pending, full=full, sequencer=sequencer, selector=selector)
            for sequencer in sorted(BUILT_IN.sequencers)
            for selector in sorted(BUILT_IN.selectors)
            for full in (False, True)
            if (sequencer, selector) != ("fifo", "dispersed")
            and ((agents, pending) != largest or selector == "dispersed")
        ]
    unequal = [(100, 500)] if quick else [(100, 2000), (1000, 2000)]
    points += [
        measure(agents, pending, workload, full=full, floor=True)
        for agents, pending in unequal
        for workload in (one_cpu, all_different)
        for full in (False, True)
    ]
    return points


def duel(quick: bool) -> list[dict[str, object]]:
    """The points at which Backend.AI's decision code runs beside ours."""
    sizes = ((100, 200),) if quick else ((100, 1000), (1000, 1000))
    return [
        measure(agents, pending, full=full, sequencer=sequencer, selector=selector, peer=PATIENCE)
        for agents, pending in sizes
        for sequencer, selector in (
            ("fifo", "dispersed"),
            ("fifo", "concentrated"),
            ("drf", "dispersed"),
            ("lifo", "dispersed"),
        )
        if sequencer in BUILT_IN.sequencers
        for full in (False, True)
    ]


def main() -> None:
    """Run the sweep and print the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--quick", action="store_true", help="small sizes only, some seconds in all"
    )
    parser.add_argument(
        "--no-peer", action="store_true", help="without Backend.AI, which is installed once"
    )
    parser.add_argument("--only-peer", action="store_true", help="only the sizes beside Backend.AI")
    chosen = parser.parse_args()
    if chosen.no_peer and chosen.only_peer:
        parser.error("--no-peer and --only-peer leave nothing to run: give one of them")
    fights: list[dict[str, object]] = []
    if not chosen.no_peer:
        try:
            fights = duel(chosen.quick)
        except PeerMissing as missing:
            note(f"without the peer: {missing}")
    points = [*fights, *(() if chosen.only_peer else sweep(chosen.quick))]
    name = "{agents}x{pending}-{workload}-{sequencer}-{selector}-{state}"
    ratios = {
        f"{name.format(**point, state='full' if point['full'] else 'free')}-{kind}": point[key]
        for point in points
        for kind, key in (("naive", "floor_ratio"), ("backendai", "backendai_ratio"))
        if key in point
    }
    finish(
        {
            "benchmark": "scheduler",
            "ratios": ratios,
            "points": points,
        }
    )


if __name__ == "__main__":
    main()
