"""Seeded workloads of the simulator: who submits what when, and on which cluster."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
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

    text: str
    agents: tuple[Agent, ...]
    jobs: tuple[Job, ...]
    until: float
    window: tuple[float, float]
    """When fairness is measured: while there is more work than the cluster can do."""
    pause: float = 60.0
    """Seconds in which wake-ups are gathered; long ones keep long queues cheap to simulate."""


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
    priority: int = 10,
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
        priority,
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
    seed: int = 1,
    *,
    nodes: int = 10,
    sessions: int = 5000,
    users: int = 40,
    days: float = 1.5,
    declared: float | None = None,
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
            declared=declared,
            kind="flood",
        )
        for number in range(sessions)
    ]
    each, length = 2, 1.5 * HOUR  # mean of the others' sessions, for the rate of arrivals
    for number, at in enumerate(_arrivals(chance, 600.0, 0.6 * cpus / (each * length), days)):
        duration = _lengths(chance, 1.1 * HOUR, 0.8, 8 * HOUR)
        size = chance.choice((1, 1, 2, 2, 4))
        owner, name = chance.randint(1, users - 1), f"other-{number:05}"
        jobs.append(job(name, owner, at, duration, cpus=size, declared=declared, kind="others"))
    text = f"user-00 submits {sessions} sessions at once; {users - 1} others keep 60 % of the CPUs busy"
    window = (HOUR, days * DAY / 2)
    return Workload(text, tuple(agents), tuple(jobs), days * DAY, window, 600.0)


def _arrivals(chance: random.Random, at: float, rate: float, days: float) -> Iterator[float]:
    """Moments of a Poisson process."""
    while (at := at + chance.expovariate(rate)) < days * DAY:
        yield at


@dataclass(frozen=True, slots=True)
class Stream:
    """Sessions of one kind that come at random; ``load``: the part of the CPUs that they ask for."""

    kind: str
    load: float
    sizes: tuple[int, ...]
    """CPUs of a session, each as likely."""
    median: float
    """Hours that it runs."""
    spread: float
    most: float
    """Hours that the longest runs."""
    priority: int = 10
    declared: bool = False
    """Everybody promises ``most``; otherwise half of the people promise something nearer."""

    @property
    def mean(self) -> float:
        """Mean run time in seconds: a logarithmic normal distribution's, before the longest are cut."""
        return self.median * HOUR * math.exp(self.spread**2 / 2)


def streams(
    seed: int,
    text: str,
    kinds: tuple[Stream, ...],
    *,
    nodes: int,
    users: int,
    days: float,
    pause: float = 60.0,
) -> Workload:
    """Sessions of several kinds on equal nodes of 32 CPUs."""
    chance, cpus = random.Random(seed), 32
    jobs: list[Job] = []
    for each in kinds:
        mean_size = sum(each.sizes) / len(each.sizes)
        rate = each.load * nodes * cpus / (mean_size * each.mean)
        for number, at in enumerate(_arrivals(chance, 0.0, rate, days)):
            duration = _lengths(chance, each.median * HOUR, each.spread, each.most * HOUR)
            size, owner = chance.choice(each.sizes), chance.randrange(users)
            declared = each.most * HOUR if each.declared else _promise(chance, duration)
            jobs.append(
                job(
                    f"{each.kind}-{number:05}",
                    owner,
                    at,
                    duration,
                    cpus=size,
                    declared=declared,
                    kind=each.kind,
                    priority=each.priority,
                )
            )
    jobs.sort(key=lambda each: each.request.submitted_at)
    agents = tuple(hosts(nodes, cpus, 128))
    return Workload(text, agents, tuple(jobs), days * DAY, (0.0, days * DAY), pause)


def mixture(
    seed: int = 2, *, nodes: int = 10, load: float = 0.95, users: int = 40, days: float = 4.0
) -> Workload:
    """Whole-node sessions among small ones on a nearly full cluster; half of the people say how long."""
    kinds = (
        Stream("small", 0.7 * load, (1, 2, 2, 4), 0.8, 0.8, 12),
        Stream("big", 0.3 * load, (32,), 2.0, 0.5, 12),
    )
    text = f"whole-node sessions among small ones, {100 * load:.0f} % of the CPUs asked for"
    return streams(seed, text, kinds, nodes=nodes, users=users, days=days)


def bands(
    seed: int = 4, *, nodes: int = 10, load: float = 1.0, users: int = 40, days: float = 4.0
) -> Workload:
    """Two priorities: the higher one alone could fill the cluster, and all promise a run time."""
    kinds = (
        Stream("usual", load, (1, 2, 2, 4), 1.0, 0.6, 4, 10, declared=True),
        Stream("background", 0.1 * load, (4, 8), 2.0, 0.4, 6, 0, declared=True),
    )
    text = f"priority 10 asks for {100 * load:.0f} % of the CPUs, priority 0 for {10 * load:.0f} % more"
    return streams(seed, text, kinds, nodes=nodes, users=users, days=days, pause=180.0)


def urgent(
    seed: int = 5, *, nodes: int = 10, load: float = 1.05, users: int = 40, days: float = 4.0
) -> Workload:
    """Short sessions of high priority among long ones of low priority."""
    kinds = (
        Stream("long", load, (4, 8, 16), 5.0, 0.5, 24),
        Stream("urgent", 0.03, (4, 8, 16), 0.25, 0.4, 1, 80),
    )
    text = f"short sessions of priority 80 among long ones of priority 10 that ask for {100 * load:.0f} %"
    return streams(seed, text, kinds, nodes=nodes, users=users, days=days)


def campus(seed: int = 3, *, users: int = 120, days: float = 5.0) -> Workload:
    """CPU and GPU nodes, people who work by day, a few of whom do most of the work."""
    chance = random.Random(seed)
    agents = [*hosts(8, 32, 128), *hosts(4, 64, 512, 8, "gpu")]
    weights = [1.0 / (1 + rank) for rank in range(users)]
    jobs: list[Job] = []
    for at in _arrivals(chance, 0.0, 1 / 75.0, days):
        hour = at % DAY / HOUR
        if chance.random() > 0.25 + 0.75 * max(0.0, math.sin((hour - 6) / 16 * math.pi)):
            continue
        owner = chance.choices(range(users), weights)[0]
        gpus = chance.choice((1, 1, 1, 2, 4, 8)) if chance.random() < 0.13 else 0
        size = 4 * gpus if gpus else chance.choice((1, 2, 2, 4, 8, 16))
        kind = "GPU" if gpus else "CPU"
        duration = _lengths(chance, (2.0 if gpus else 1.2) * HOUR, 0.9, 24 * HOUR)
        declared = _promise(chance, duration)
        name = f"s-{len(jobs):05}"
        jobs.append(
            job(name, owner, at, duration, cpus=size, gpus=gpus, declared=declared, kind=kind)
        )
    text = f"{users} people by day and night, GPUs on a third of the nodes"
    return Workload(text, tuple(agents), tuple(jobs), days * DAY, (0.0, days * DAY))
