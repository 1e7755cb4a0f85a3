"""Days of simulated time under the real scheduler: nobody starves, nothing idles, nobody takes it all."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from benchmarks.contenders import Contender, ours, plain, preempting
from benchmarks.simulation import fairness, longest_of_bound, lost, simulate, utilisation, waits
from benchmarks.simulator import Result, Simulation
from benchmarks.workloads import (
    DAY,
    GROUP,
    HOUR,
    Workload,
    bands,
    flood,
    hosts,
    job,
    mixture,
    urgent,
)
from spawner.scheduler.model import GroupPolicy, Plan, Snapshot
from spawner.scheduler.plan import plan
from spawner.scheduler.policies import BUILT_IN

SEQUENCERS = sorted(set(BUILT_IN.sequencers) - {"lifo"})
FAIR = [name for name in ("drf", "fair-share") if name in BUILT_IN.sequencers]


def known(name: str, **options: Any) -> Contender:
    """One of the plain lines, or the scheduler with a sequencer."""
    return plain(name)[0] if name.startswith("FIFO") else ours(name, **options)


@cache
def flooded() -> Workload:
    return replace(flood(seed=11, nodes=4, sessions=400, users=8, days=0.5), pause=60.0)


@cache
def under_flood(sequencer: str) -> Result:
    return simulate(flooded(), known(sequencer))


@cache
def mixed(sequencer: str) -> Result:
    """Whole-node sessions among small ones at 95 % for a day; nobody is overtaken after four hours."""
    work = mixture(seed=12, nodes=3, users=6, days=1.0)
    return simulate(work, known(sequencer, ageing=4 * HOUR))


@pytest.mark.parametrize("sequencer", SEQUENCERS)
def test_no_cpu_idles_while_somebody_waits_for_one(sequencer: str) -> None:
    """All ask for the same, so nobody is ever kept from a free CPU by somebody larger."""
    jobs = [job(f"s{n:03}", n % 5, 7.0 * n, 900.0 + 13 * (n % 7), cpus=2) for n in range(150)]

    def check(snapshot: Snapshot, made: Plan) -> None:
        free = [d.free for agent in snapshot.agents for d in agent.devices if d.slot == "cpu"]
        room = sum(each // 2_000_000 for each in free)
        assert len(made.placements) == min(room, len(snapshot.pending))

    group = ours(sequencer).group
    result = Simulation(hosts(2, 8, 64), jobs, plan, group, DAY, after_pass=check).run()
    assert all(life.ended_at is not None for life in result.lives)


@pytest.mark.parametrize("sequencer", SEQUENCERS)
def test_nobody_starves_on_a_nearly_full_cluster(sequencer: str) -> None:
    """Every session starts within hours, the whole-node ones too."""
    hours = waits(mixed(sequencer))
    assert hours["big"]["max"] < 15.0
    assert hours["small"]["max"] < 15.0


@pytest.mark.parametrize("sequencer", SEQUENCERS)
def test_everything_ends_when_no_more_comes(sequencer: str) -> None:
    work = mixture(seed=13, nodes=2, users=5, days=0.3)
    group = ours(sequencer).group
    result = Simulation(work.agents, work.jobs, plan, group, 3 * DAY, pause=30.0).run()
    assert [life.job.request.session_id for life in result.lives if life.ended_at is None] == []


@pytest.mark.parametrize("sequencer", FAIR)
def test_who_floods_the_queue_does_not_take_the_cluster(sequencer: str) -> None:
    window = flooded().window
    fair, fifo = under_flood(sequencer), under_flood("fifo")
    assert fairness(fair, window) > 0.9
    assert fairness(fair, window) > fairness(fifo, window) + 0.3
    assert waits(fair)["others"]["p95"] < waits(fifo)["others"]["p95"] / 3
    lost = utilisation(fifo, while_waiting=True) - utilisation(fair, while_waiting=True)
    assert lost < 0.03, "fairness costs hardly any machine time"


def test_fifo_lets_the_flood_go_first() -> None:
    """What the fair sequencers are measured against does show the harm."""
    assert fairness(under_flood("FIFO, continue"), flooded().window) < 0.5
    assert waits(under_flood("FIFO, continue"))["others"]["median"] > 1.0


def test_the_cluster_is_fuller_than_with_a_line_that_stops() -> None:
    real, stops = mixed("fifo"), mixed("FIFO, stop")
    assert utilisation(real, while_waiting=True) >= utilisation(stops, while_waiting=True)
    assert waits(real)["small"]["median"] <= waits(stops)["small"]["median"]


def test_no_session_waits_longer_than_the_work_ahead_of_it_explains() -> None:
    """A hundred short sessions in a row never hold up the long one behind them for ever."""
    jobs = [job(f"small-{n:03}", 1, 80.0 * n, 600.0, cpus=1) for n in range(500)]
    jobs.append(job("whole", 2, 1200.0, HOUR, cpus=8))
    group = GroupPolicy(GROUP)
    result = Simulation(hosts(1, 8, 64), jobs, plan, group, DAY).run()
    whole = next(life for life in result.lives if life.job.request.session_id == "whole")
    assert whole.waited(DAY) <= 600.0 + 20.0, "it waits for what ran when it came"


@cache
def small_flood() -> Workload:
    """Everybody promises a run time of two hours at most; the flood alone fills the node for hours."""
    work = flood(seed=14, nodes=1, sessions=100, users=4, days=1.0, declared=2 * HOUR)
    jobs = tuple(replace(each, duration=min(each.duration, 2 * HOUR)) for each in work.jobs)
    return replace(work, jobs=jobs, pause=300.0)


@pytest.mark.parametrize("sequencer", list(BUILT_IN.sequencers))
def test_ageing_bounds_the_longest_wait_as_promised(sequencer: str) -> None:
    """A wait is at most ``ageing`` + (k + 1) D, with k aged sessions ahead and run times up to D."""
    work = small_flood()
    aged = ours(sequencer, ageing=3 * HOUR)
    result = simulate(work, aged)
    assert max(life.waited(work.until) for life in result.lives) > aged.group.ageing
    part = longest_of_bound(result, aged.group, work.pause)
    assert part is not None
    assert part <= 1.0


def test_without_ageing_the_newest_first_starve_the_oldest() -> None:
    """So the bound of ``ageing`` is the work of ageing: without it ``lifo`` passes it."""
    work = small_flood()
    group = ours("lifo", ageing=3 * HOUR).group
    never = simulate(work, ours("lifo", ageing=30 * DAY, rise=None))
    first = min(never.lives, key=lambda life: life.job.request.session_id)
    assert first.waited(work.until) > group.ageing + 2 * HOUR + 2 * work.pause, "k is 0"
    part = longest_of_bound(never, group, work.pause)
    assert part is not None
    assert part > 1.0


def test_a_priority_that_fills_the_cluster_starves_nobody_who_rises() -> None:
    work = bands(seed=15, nodes=2, users=5, days=1.0)
    risen = ours("fifo", ageing=2 * HOUR, rise=2 * HOUR)
    result = simulate(work, risen)
    part = longest_of_bound(result, risen.group, work.pause)
    assert part is not None
    assert part <= 1.0
    never = simulate(work, ours("fifo", rise=None))
    assert longest_of_bound(never, risen.group, work.pause) > 1.0  # type: ignore[operator]
    assert waits(result)["background"]["max"] < waits(never)["background"]["max"]


def test_preemption_lets_the_urgent_go_first_and_tells_what_it_costs() -> None:
    work = urgent(seed=16, nodes=3, users=5, days=1.0)
    patient = simulate(work, ours("fifo"))
    requeued = simulate(work, preempting("requeue"))
    ended = simulate(work, preempting("terminate", action="terminate"))
    assert waits(patient)["urgent"]["max"] > 0.5
    for result in (requeued, ended):
        assert waits(result)["urgent"]["max"] < 0.1, "two passes"
        assert lost(result)["cpu_hours_lost"] > 0
        assert all(each.preemptions == 0 for each in result.lives if each.job.kind == "urgent")
    assert lost(requeued)["cut"] == 0
    assert lost(ended)["cut"] == lost(ended)["preemptions"] > 0
    assert lost(patient)["preemptions"] == 0
