"""Who competes in the simulations: the two plain lines, the scheduler's sequencers, and its settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.baselines import fifo_continue, fifo_stop
from benchmarks.simulator import Policy
from benchmarks.workloads import DAY, GROUP, HOUR, Workload, bands, campus, flood, mixture, urgent
from spawner.scheduler.model import GroupPolicy, PreemptionRules
from spawner.scheduler.plan import plan
from spawner.scheduler.policies import BUILT_IN

BASELINES: dict[str, Policy] = {"FIFO, stop": fifo_stop, "FIFO, continue": fifo_continue}


@dataclass(frozen=True, slots=True)
class Contender:
    """A policy to be simulated, and the resource group it runs with."""

    name: str
    policy: Policy
    group: GroupPolicy

    @property
    def ours(self) -> bool:
        """Whether it is the scheduler and not one of the plain lines."""
        return self.policy is plan


def plain(*names: str) -> tuple[Contender, ...]:
    """Those of ``BASELINES``, or all of them."""
    return tuple(
        Contender(name, BASELINES[name], GroupPolicy(GROUP)) for name in names or BASELINES
    )


def ours(sequencer: str, name: str = "", **options: Any) -> Contender:
    """The scheduler with a sequencer and options of the resource group."""
    group = GroupPolicy(GROUP, sequencer, "concentrated", **options)
    return Contender(name or sequencer, plan, group)


def everybody(ageing: float) -> tuple[Contender, ...]:
    """The plain lines and all sequencers."""
    return plain() + tuple(ours(name, ageing=ageing) for name in BUILT_IN.sequencers)


def preempting(name: str, **rules: Any) -> Contender:
    """``fifo`` that ends sessions of lower priority."""
    return ours("fifo", name, preemption=PreemptionRules(**rules))


@dataclass(frozen=True, slots=True)
class Experiment:
    """A workload and who competes on it."""

    make: Callable[..., Workload]
    contenders: tuple[Contender, ...]


EXPERIMENTS: dict[str, Experiment] = {
    "flood": Experiment(flood, everybody(3 * DAY)),
    "mixture": Experiment(mixture, everybody(12 * HOUR)),
    "campus": Experiment(campus, everybody(12 * HOUR)),
    "ageing": Experiment(
        partial(flood, days=5.0, declared=8 * HOUR),
        (
            *plain("FIFO, continue"),
            ours("drf", "drf, nobody ages", ageing=30 * DAY, rise=None),
            ours("drf", "drf, ageing 2 d", ageing=2 * DAY),
            ours("drf", "drf, ageing 12 h", ageing=12 * HOUR),
            ours("lifo", "lifo, nobody ages", ageing=30 * DAY, rise=None),
            ours("lifo", "lifo, ageing 12 h", ageing=12 * HOUR),
        ),
    ),
    "rise": Experiment(
        bands,
        (
            *plain(),
            ours("fifo", "fifo, nobody rises", rise=None),
            ours("fifo", "fifo, rise 24 h", ageing=12 * HOUR, rise=24 * HOUR),
            ours("fifo", "fifo, rise 6 h", ageing=6 * HOUR, rise=6 * HOUR),
        ),
    ),
    "preemption": Experiment(
        urgent,
        (
            *plain("FIFO, continue"),
            ours("fifo", "fifo, no preemption"),
            preempting("requeue the newest", order="newest"),
            preempting("requeue the oldest", order="oldest"),
            preempting("requeue, not in the first hour", minimum_run_time=HOUR),
            preempting("terminate the newest", action="terminate"),
        ),
    ),
}
