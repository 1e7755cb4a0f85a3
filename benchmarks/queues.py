"""Clusters and queues for the scheduler's benchmark, all from fixed seeds."""

from __future__ import annotations

import random
from collections.abc import Callable

from spawner.scheduler.model import (
    Agent,
    Device,
    GroupPolicy,
    KernelRequest,
    SessionRequest,
    Snapshot,
    Usage,
)
from spawner.scheduler.slots import MICRO

GIB = 2**30
ARCHITECTURE = "x86_64"
USERS = 100
STRIDE = 7919
"""A prime that no number of agents has as a factor: its multiples go round all of them."""
PLAIN = ((1, 2, 0), (2, 4, 0), (4, 16, 0))
SPECIAL = ((4, 32, 1), (8, 64, 2))
"""CPUs, GiB and GPUs of what people pick from a form."""

Workload = Callable[[int, random.Random, float], dict[str, int]]
"""What session number so and so asks for; the last argument is the part that may want GPUs."""


def one_cpu(number: int, chance: random.Random, special: float) -> dict[str, int]:
    """Everybody asks for the same."""
    return {"cpu": MICRO}


def three_cpus(number: int, chance: random.Random, special: float) -> dict[str, int]:
    """Everybody asks for more than the rest of an agent."""
    return {"cpu": 3 * MICRO}


def presets(number: int, chance: random.Random, special: float) -> dict[str, int]:
    """A handful of kinds of requests, some with GPUs."""
    cpu, mem, gpu = chance.choice(SPECIAL if chance.random() < special else PLAIN)
    slots = {"cpu": cpu * MICRO, "mem": mem * GIB}
    return {**slots, "cuda.device": gpu * MICRO} if gpu else slots


def all_different(number: int, chance: random.Random, special: float) -> dict[str, int]:
    """No two requests are equal: nothing can be shared within a pass."""
    return {"cpu": chance.randint(1, 40) * MICRO // 10, "mem": GIB + number}


def cluster(
    agents: int,
    cpus: int,
    gpus_each_fourth: int,
    *,
    memory: int = 256,
    busy: int = 0,
    opened: int | None = None,
) -> tuple[Agent, ...]:
    """Agents of one size (``memory`` in GiB), ``busy`` CPUs of each taken; each fourth has GPUs.

    Of all but ``opened`` of them, spread over all, every CPU is taken.
    """
    taken = [
        cpus if opened is not None and number * STRIDE % agents >= opened else busy
        for number in range(agents)
    ]
    return tuple(
        Agent(
            f"agent-{number:05}",
            "default",
            ARCHITECTURE,
            (
                Device("cpu", "cpu", cpus * MICRO, (cpus - taken[number]) * MICRO),
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
            f"user-{number % USERS}",
            f"key-{number % USERS:02}",
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


def usage() -> tuple[Usage, ...]:
    """What ``fair-share`` goes by: each of the users has used an hour of a CPU more than the one before."""
    return tuple(
        Usage("user", f"project/user-{number}", {"cpu": 3600.0 * MICRO * number}, 0.0)
        for number in range(USERS)
    )


def situation(
    agents: int, pending: int, workload: Workload, *, full: bool, sequencer: str, selector: str
) -> Snapshot:
    """A cluster and its queue. ``full``: twice as many CPUs are asked for as are free."""
    sessions = queue(pending, workload, min(0.4, agents / pending))
    asked = sum(session.kernels[0].slots["cpu"] for session in sessions) // MICRO
    memory = sum(session.kernels[0].slots.get("mem", 0) for session in sessions) // GIB
    cpus = max(8, asked // (2 * agents)) if full else max(16, 4 * asked // agents)
    nodes = cluster(
        agents,
        cpus,
        8,
        memory=max(512, 4 * memory // agents),
        opened=max(1, asked // (2 * cpus)) if full else None,
    )
    policy = GroupPolicy("default", sequencer=sequencer, selector=selector)
    history = usage() if sequencer == "fair-share" else ()
    return Snapshot(0.0, (policy,), nodes, sessions, usage=history)
