"""Placements per CPU second of the pure scheduler, over agents x pending sessions x workloads x policies.

Beside it in the same run, on the same seeded workload: the decision code of Backend.AI's manager as
published (``benchmarks/peers``), and two floors, the loops that one would write first: for each session
go through the agents and take the first that fits, or rate all that fit and take the best.

    scripts/bench scheduler [--quick] [--no-peer | --only-peer] [--keep FILE]

``--keep FILE`` adds each point to FILE as it comes and does not measure again what is there already.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.peers import Peer, PeerMissing
from benchmarks.queues import (
    Workload,
    all_different,
    one_cpu,
    presets,
    situation,
)
from benchmarks.reporting import finish, note
from spawner.scheduler.model import Snapshot
from spawner.scheduler.plan import plan
from spawner.scheduler.policies import BUILT_IN

PATIENCE = 12.0
"""CPU seconds after which Backend.AI's code, or a floor, is stopped; what it placed until then counts."""
WORKLOADS: dict[str, Workload] = {each.__name__: each for each in (presets, one_cpu, all_different)}
GOALS = {100: 50, 1000: 200}
"""By agents: how many times as many placements per CPU second as Backend.AI's code."""
LARGEST_PASS = 10.0
"""CPU seconds for 10,000 agents and 50,000 pending sessions."""

PLAIN = ("fifo", "dispersed")
"""The order and the strategy where it is about something else."""

Point = dict[str, Any]


class Case(NamedTuple):
    """One point of the sweep, and what runs beside it."""

    agents: int
    pending: int
    workload: str = "presets"
    full: bool = False
    sequencer: str = "fifo"
    selector: str = "dispersed"
    floor: bool = False
    peer: bool = False

    @property
    def name(self) -> str:
        """Its name among the results."""
        state = "full" if self.full else "free"
        policies = f"{self.sequencer}-{self.selector}"
        return f"{self.agents}x{self.pending}-{self.workload}-{policies}-{state}"


def floor(snapshot: Snapshot, first: bool) -> tuple[int, int]:
    """How many sessions a loop over all agents for each session places, and how many it decides on.

    It takes the ``first`` agent that fits, or else that with the most CPUs free.
    """
    free = {
        agent.agent_id: {
            slot: sum(device.free for device in agent.devices if device.slot == slot)
            for slot in ("cpu", "mem", "cuda.device")
        }
        for agent in snapshot.agents
    }
    placed = decided = 0
    ends = time.process_time() + PATIENCE
    for session in snapshot.pending:
        if time.process_time() > ends:
            break
        decided += 1
        wants = session.kernels[0].slots
        fitting = (
            (-has["cpu"], agent_id)
            for agent_id, has in free.items()
            if all(has[slot] >= amount for slot, amount in wants.items())
        )
        best = next(fitting, None) if first else min(fitting, default=None)
        if best is not None:
            taken = free[best[1]]
            for slot, amount in wants.items():
                taken[slot] -= amount
            placed += 1
    return placed, decided


def cpu_seconds(work: Callable[[], object]) -> tuple[float, Any]:
    """CPU time of this process for one call, and what it returned."""
    start = time.process_time()
    answer = work()
    return time.process_time() - start, answer


def per_second(placed: int, seconds: float) -> float:
    """Placements per CPU second."""
    return round(placed / max(seconds, 1e-9), 1)


def measure(case: Case, peer: Peer) -> Point:
    """One point of the sweep. Ours and the peer's runs take turns, so that what else runs hits both."""
    snapshot = situation(
        case.agents,
        case.pending,
        WORKLOADS[case.workload],
        full=case.full,
        sequencer=case.sequencer,
        selector=case.selector,
    )
    times: list[float] = []
    theirs: list[Point] = []
    placed = waiting = 0
    seconds = 0.0
    for _ in range(2):
        for _ in range(3):
            seconds, answer = cpu_seconds(lambda: plan(snapshot))
            placed, waiting = len(answer.placements), len(answer.waiting)
            times.append(seconds)
            if seconds > 1.0:  # short runs jump about on a shared machine
                break
        if case.peer and (not theirs or theirs[0].get("cpu_seconds", PATIENCE) < 2.0):
            theirs.append(peer.run(workload_for_peer(snapshot, goes_on=True)))
        if seconds > 1.0:
            break
    seconds = statistics.median(times)
    point: Point = {"name": case.name, **case._asdict(), "placed": placed, "waiting": waiting}
    point["cpu_seconds"] = round(seconds, 4)
    point["fastest"] = round(min(times), 4)
    point["runs"] = len(times)
    point["placements_per_cpu_second"] = per_second(placed, seconds)
    if theirs:
        point["backendai"] = beside(theirs, point)
        if case.full and (case.sequencer, case.selector) == PLAIN and case.workload == "presets":
            stops = [peer.run(workload_for_peer(snapshot, goes_on=False))]
            point["backendai_stops"] = beside(stops, point)
    if case.floor:
        for kind in ("first", "best"):
            spent, (fits, decided) = cpu_seconds(lambda kind=kind: floor(snapshot, kind == "first"))  # type: ignore[misc]
            point[f"floor_{kind}"] = {
                "placed": fits,
                "decided": decided,
                "cpu_seconds": round(spent, 4),
                "placements_per_cpu_second": per_second(fits, spent),
                "ratio": round(per_second(placed, seconds) / max(per_second(fits, spent), 1e-9), 2),
            }
    point["load_average"] = round(os.getloadavg()[0], 2)
    return point


def beside(runs: Sequence[Point], point: Point) -> Point:
    """What the peer did, with the median of its ``runs``, and the ratios of ours to it.

    ``ratio`` compares placements per CPU second, ``decisions_ratio`` sessions decided on: a peer that was
    stopped before an over-full cluster was full has had no session that waits.
    """
    found = dict(runs[0])
    if "lacks" in found:
        return found
    found["cpu_seconds"] = round(statistics.median(run["cpu_seconds"] for run in runs), 4)
    rate = per_second(found["placed"], found["cpu_seconds"])
    found["placements_per_cpu_second"] = rate
    found["ratio"] = round(point["placements_per_cpu_second"] / rate, 1) if rate else None
    decided = per_second(found["decided"], found["cpu_seconds"])
    ours = per_second(point["pending"], point["cpu_seconds"])
    found["decisions_ratio"] = round(ours / decided, 1) if decided else None
    return found


def workload_for_peer(snapshot: Snapshot, *, goes_on: bool) -> dict[str, object]:
    """The same agents and sessions in the words of ``benchmarks/peers``."""
    policy = snapshot.groups[0]
    agents: list[dict[str, list[int]]] = []
    for agent in snapshot.agents:
        amounts: dict[str, list[int]] = {}
        for device in agent.devices:
            each = amounts.setdefault(device.slot, [0, 0])
            each[0] += device.capacity
            each[1] += device.capacity - device.free
        agents.append(amounts)
    return {
        "sequencer": policy.sequencer,
        "selector": policy.selector,
        "budget": PATIENCE,
        "goes_on": goes_on,
        "agents": agents,
        "sessions": [
            [session.access_key, dict(session.kernels[0].slots)] for session in snapshot.pending
        ],
    }


def sweep(quick: bool) -> Iterator[Case]:
    """Every policy and every strategy beside the peer, all sizes, the other workloads, all policies at large sizes.

    What the goals are about comes first, so that a run that ends early has it.
    """
    small, middle, large = (50, 200, 500) if quick else (100, 1000, 10_000)
    few, some, many = (100, 200, 4000) if quick else (1000, 5000, 50_000)
    pairs = [
        (one, other) for one in sorted(BUILT_IN.sequencers) for other in sorted(BUILT_IN.selectors)
    ]
    pairs.remove(PLAIN)
    crossed = [pair for pair in pairs if pair[0] == PLAIN[0] or pair[1] == PLAIN[1]]
    states = (False, True)
    for agents in (small, middle):
        for pair in (PLAIN, *crossed):
            for full in states:
                yield Case(agents, few, "presets", full, *pair, floor=pair == PLAIN, peer=True)
    for full in states:
        yield Case(large, many, "presets", full)
    for agents, pending in (
        (small, some),
        (middle, some),
        (small, many),
        (middle, many),
        (large, few),
        (large, some),
    ):
        for full in states:
            peer = agents < large and pending < many
            yield Case(agents, pending, full=full, floor=agents * pending <= 10**7, peer=peer)
    for workload in ("one_cpu", "all_different"):
        for full in states:
            for agents in (small, middle):
                yield Case(agents, 2 * few, workload, full, floor=True, peer=True)
            yield Case(large, many, workload, full)
    for pair in crossed:
        for full in states:
            yield Case(large, many, "presets", full, *pair)
    for pair in pairs:
        for full in states:
            yield Case(middle, some, "presets", full, *pair)


def goals(points: Sequence[Point]) -> Point:
    """How far the points reach what was aimed at."""
    found: Point = {}
    for agents, goal in GOALS.items():
        ratios = {
            point["name"]: point["backendai"]["ratio"]
            for point in points
            if point.get("agents") == agents and (point.get("backendai") or {}).get("ratio")
        }
        found[f"{goal} times the peer at {agents} agents"] = {
            "points": len(ratios),
            "reached": sum(ratio >= goal for ratio in ratios.values()),
            "least": min(ratios.values(), default=None),
            "missed": {name: ratio for name, ratio in ratios.items() if ratio < goal},
        }
    passes = {
        point["name"]: point["cpu_seconds"]
        for point in points
        if (point.get("agents"), point.get("pending")) == (10_000, 50_000)
    }
    found[f"a pass over 10,000 x 50,000 within {LARGEST_PASS:g} CPU seconds"] = {
        "points": len(passes),
        "reached": sum(seconds <= LARGEST_PASS for seconds in passes.values()),
        "longest": max(passes.values(), default=None),
        "missed": {name: seconds for name, seconds in passes.items() if seconds > LARGEST_PASS},
    }
    return found


def growth(points: Sequence[Point]) -> Point:
    """CPU microseconds per placement by agents, where everything fits: linear would be tenfold each time."""
    return {
        f"{pending} pending": {
            str(point["agents"]): round(1e6 / point["placements_per_cpu_second"], 1)
            for point in points
            if point.get("pending") == pending
            and point["name"].endswith("presets-fifo-dispersed-free")
        }
        for pending in sorted({point["pending"] for point in points if "pending" in point})
    }


class Points:
    """What was measured: kept in a file, one JSON object in a line, so that a run can be taken up again."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path is not None and path.exists() else []
        self._known: dict[str, Point] = {each["name"]: each for each in map(json.loads, lines)}

    def get(self, name: str, measured: Callable[[], Point]) -> Point:
        """The point ``name``, measured unless it is there."""
        point = self._known.get(name)
        if point is None:
            self._known[name] = point = measured()
            note(json.dumps(point))
            if self._path is not None:
                with self._path.open("a") as file:
                    file.write(json.dumps(point) + "\n")
        return point


def measured(chosen: argparse.Namespace, kept: Points, peer: Peer) -> list[Point]:
    """All points of the sweep that was asked for; without the peer when it cannot run here."""
    points: list[Point] = []
    alone = chosen.no_peer
    for case in sweep(chosen.quick):
        asked = case._replace(peer=case.peer and not alone)
        if chosen.only_peer and not case.peer:
            continue
        try:
            points.append(kept.get(asked.name, lambda asked=asked: measure(asked, peer)))  # type: ignore[misc]
        except PeerMissing as missing:
            note(f"without the peer from here on: {missing}")
            alone = True
            asked = asked._replace(peer=False)
            points.append(kept.get(asked.name, lambda asked=asked: measure(asked, peer)))  # type: ignore[misc]
    return points


def main() -> None:
    """Run the sweep and print the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="small sizes only, a minute in all")
    parser.add_argument(
        "--no-peer", action="store_true", help="without Backend.AI, which is installed once"
    )
    parser.add_argument(
        "--only-peer", action="store_true", help="only the points beside Backend.AI"
    )
    parser.add_argument("--keep", type=Path, metavar="FILE", help="take up the run kept in FILE")
    chosen = parser.parse_args()
    if chosen.no_peer and chosen.only_peer:
        parser.error("--no-peer and --only-peer leave nothing to run: give one of them")
    kept = Points(chosen.keep)
    with Peer() as peer:
        points = measured(chosen, kept, peer)
    result = {"benchmark": "scheduler", "goals": goals(points), "microseconds": growth(points)}
    result["ratios"] = {
        f"{point['name']}-{kind}": point[kind]["ratio"]
        for point in points
        for kind in ("backendai", "backendai_stops", "floor_first", "floor_best")
        if point.get(kind, {}).get("ratio") is not None
    }
    finish({**result, "points": points})


if __name__ == "__main__":
    main()
