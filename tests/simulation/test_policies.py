"""Days of simulated time under the real scheduler: nobody starves, nothing idles, nobody takes it all."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from benchmarks.baselines import fifo_continue, fifo_stop
from benchmarks.simulation import Contender, fairness, simulate, utilisation, waits
from benchmarks.simulator import Result, Simulation
from benchmarks.workloads import DAY, GROUP, HOUR, Workload, flood, hosts, job, mixture
from spawner.scheduler.model import GroupPolicy, Plan, Snapshot
from spawner.scheduler.plan import plan
from spawner.scheduler.policies import BUILT_IN

SEQUENCERS = sorted(set(BUILT_IN.sequencers) - {"lifo"})
FAIR = [name for name in ("drf", "fair-share") if name in BUILT_IN.sequencers]


def perijove(sequencer: str, ageing: float = 3 * DAY) -> Contender:
    group = GroupPolicy(GROUP, sequencer=sequencer, selector="concentrated", ageing=ageing)
    return Contender(sequencer, plan, group)


@cache
def flooded() -> Workload:
    return replace(flood(seed=11, nodes=4, sessions=400, users=8, days=0.5), pause=60.0)


@cache
def under_flood(sequencer: str) -> Result:
    if sequencer == "continue":
        return simulate(flooded(), Contender("c", fifo_continue, GroupPolicy(GROUP)))
    return simulate(flooded(), perijove(sequencer))


@cache
def mixed(sequencer: str) -> Result:
    """Whole-node sessions among small ones at 95 % for a day; nobody is overtaken after four hours."""
    work = mixture(seed=12, nodes=3, users=6, days=1.0)
    baselines = {"stop": fifo_stop, "continue": fifo_continue}
    if sequencer in baselines:
        return simulate(work, Contender("b", baselines[sequencer], GroupPolicy(GROUP)))
    return simulate(work, perijove(sequencer, ageing=4 * HOUR))


@pytest.mark.parametrize("sequencer", SEQUENCERS)
def test_no_cpu_idles_while_somebody_waits_for_one(sequencer: str) -> None:
    """All ask for the same, so nobody is ever kept from a free CPU by somebody larger."""
    jobs = [job(f"s{n:03}", n % 5, 7.0 * n, 900.0 + 13 * (n % 7), cpus=2) for n in range(150)]

    def check(snapshot: Snapshot, made: Plan) -> None:
        free = [d.free for agent in snapshot.agents for d in agent.devices if d.slot == "cpu"]
        room = sum(each // 2_000_000 for each in free)
        assert len(made.placements) == min(room, len(snapshot.pending))

    group = perijove(sequencer).group
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
    group = perijove(sequencer).group
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
    assert fairness(under_flood("continue"), flooded().window) < 0.5
    assert waits(under_flood("continue"))["others"]["median"] > 1.0


def test_the_cluster_is_fuller_than_with_a_line_that_stops() -> None:
    real, stops = mixed("fifo"), mixed("stop")
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
