"""Seeded workloads of the simulator: who submits what when, and on which cluster."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.simulator import Job
from spawner.scheduler.model import Agent, Device, KernelRequest, SessionRequest
from spawner.scheduler.slots import MICRO

GIB = 2**30
HOUR = 3600.0
DAY = 86400.0
ARCHITECTURE = "x86_64"
GROUP = "default"


@dataclass(frozen=True, slots=True)
class Workload:
    """A cluster and what is submitted to it within ``until`` seconds."""

    name: str
    text: str
    agents: tuple[Agent, ...]
    jobs: tuple[Job, ...]
    until: float
    window: tuple[float, float]
    """When fairness is measured: while there is more work than the cluster can do."""
    pause: float = 60.0
    """Seconds in which wake-ups are gathered; long ones keep long queues cheap to simulate."""
    ageing: float = 12 * HOUR
    """Seconds of waiting after which the scheduler lets nobody be overtaken any more."""


def hosts(count: int, cpus: int, memory: int, gpus: int = 0, name: str = "node") -> list[Agent]:
    """Equal agents: CPUs and memory as one device each, GPUs one by one."""
    return [
        Agent(
            f"{name}-{number:02}",
            GROUP,
            ARCHITECTURE,
            (
                Device("cpu", "cpu", cpus * MICRO, cpus * MICRO),
                Device("mem", "mem", memory * GIB, memory * GIB),
                *(Device("cuda.device", f"gpu{each}", MICRO, MICRO) for each in range(gpus)),
            ),
        )
        for number in range(count)
    ]


def job(
    name: str,
    owner: int,
    at: float,
    duration: float,
    *,
    cpus: int,
    memory: int = 0,
    gpus: int = 0,
    declared: float | None = None,
    kind: str = "session",
) -> Job:
    """A session of one container. ``declared``: the run time that its owner promised, if any."""
    slots = {"cpu": cpus * MICRO, "mem": (memory or 2 * cpus) * GIB}
    if gpus:
        slots["cuda.device"] = gpus * MICRO
    request = SessionRequest(
        name,
        f"user-{owner:02}",
        f"key-{owner:02}",
        f"project-{owner % 5}",
        "default",
        GROUP,
        10,
        at,
        (KernelRequest(f"{name}-k", slots, "image", ARCHITECTURE),),
        run_time=declared,
    )
    return Job(request, duration, kind)


def _lengths(chance: random.Random, median: float, spread: float, most: float) -> float:
    """A run time: many short ones and a few long ones."""
    return min(most, max(60.0, chance.lognormvariate(math.log(median), spread)))


def _promise(chance: random.Random, duration: float) -> float | None:
    """Half of the people say how long at most: rounded up to what people say."""
    if chance.random() < 0.5:
        return None
    steps = (0.5, 1, 2, 4, 8, 12, 24, 48)
    return HOUR * next(step for step in steps if step * HOUR >= duration)


def flood(
    seed: int = 1, *, nodes: int = 10, sessions: int = 5000, users: int = 40, days: float = 1.5
) -> Workload:
    """One user submits thousands of sessions at once, then everybody else comes to work as always."""
    chance = random.Random(seed)
    agents, cpus = hosts(nodes, 32, 128), 32 * nodes
    jobs = [
        job(
            f"flood-{number:05}",
            0,
            0.0,
            _lengths(chance, 1.0 * HOUR, 0.6, 6 * HOUR),
            cpus=2,
            kind="flood",
        )
        for number in range(sessions)
    ]
    each, length = 2, 1.5 * HOUR  # mean of the others' sessions, for the rate of arrivals
    rate = 0.6 * cpus / (each * length)
    at, number = 600.0, 0
    while (at := at + chance.expovariate(rate)) < days * DAY:
        duration = _lengths(chance, 1.1 * HOUR, 0.8, 8 * HOUR)
        size = chance.choice((1, 1, 2, 2, 4))
        owner = chance.randint(1, users - 1)
        jobs.append(job(f"other-{number:05}", owner, at, duration, cpus=size, kind="others"))
        number += 1
    text = f"user-00 submits {sessions} sessions at once; {users - 1} others keep 60 % of the CPUs busy"
    window = (HOUR, days * DAY / 2)
    return Workload("flood", text, tuple(agents), tuple(jobs), days * DAY, window, 600.0, 3 * DAY)


def mixture(
    seed: int = 2, *, nodes: int = 10, load: float = 0.95, users: int = 40, days: float = 4.0
) -> Workload:
    """Whole-node sessions among small ones on a nearly full cluster; half of the people say how long."""
    chance, cpus = random.Random(seed), 32
    agents = hosts(nodes, cpus, 128)
    jobs: list[Job] = []
    for kind, part in (("small", 0.7), ("big", 0.3)):
        mean_size = {"small": 2.25, "big": float(cpus)}[kind]
        mean_length = {"small": 1.1 * HOUR, "big": 2.3 * HOUR}[kind]
        rate = load * part * nodes * cpus / (mean_size * mean_length)
        at, number = 0.0, 0
        while (at := at + chance.expovariate(rate)) < days * DAY:
            median = {"small": 0.8 * HOUR, "big": 2.0 * HOUR}[kind]
            duration = _lengths(chance, median, 0.8 if kind == "small" else 0.5, 12 * HOUR)
            size = chance.choice((1, 2, 2, 4)) if kind == "small" else cpus
            name = f"{kind}-{number:05}"
            owner, declared = chance.randrange(users), _promise(chance, duration)
            jobs.append(job(name, owner, at, duration, cpus=size, declared=declared, kind=kind))
            number += 1
    jobs.sort(key=lambda each: each.request.submitted_at)
    text = f"whole-node sessions among small ones, {load:.0%} of the CPUs asked for"
    return Workload("mixture", text, tuple(agents), tuple(jobs), days * DAY, (0.0, days * DAY))


def campus(seed: int = 3, *, users: int = 120, days: float = 5.0) -> Workload:
    """CPU and GPU nodes, people who work by day, a few of whom do most of the work."""
    chance = random.Random(seed)
    agents = [*hosts(8, 32, 128), *hosts(4, 64, 512, 8, "gpu")]
    weights = [1.0 / (1 + rank) for rank in range(users)]
    at, number = 0.0, 0
    jobs: list[Job] = []
    while (at := at + chance.expovariate(1 / 75.0)) < days * DAY:
        hour = at % DAY / HOUR
        if chance.random() > 0.25 + 0.75 * max(0.0, math.sin((hour - 6) / 16 * math.pi)):
            continue
        owner = chance.choices(range(users), weights)[0]
        gpus = chance.choice((1, 1, 1, 2, 4, 8)) if chance.random() < 0.13 else 0
        size = 4 * gpus if gpus else chance.choice((1, 2, 2, 4, 8, 16))
        kind = "GPU" if gpus else "CPU"
        duration = _lengths(chance, (2.0 if gpus else 1.2) * HOUR, 0.9, 24 * HOUR)
        declared = _promise(chance, duration)
        name = f"s-{number:05}"
        jobs.append(
            job(name, owner, at, duration, cpus=size, gpus=gpus, declared=declared, kind=kind)
        )
        number += 1
    text = f"{users} people by day and night, GPUs on a third of the nodes"
    return Workload("campus", text, tuple(agents), tuple(jobs), days * DAY, (0.0, days * DAY))


WORKLOADS: dict[str, Callable[[], Workload]] = {
    "flood": flood,
    "mixture": mixture,
    "campus": campus,
}
