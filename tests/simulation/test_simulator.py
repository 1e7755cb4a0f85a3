"""The simulator itself: time, accounts and measures are right, and bad plans are caught."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from benchmarks.baselines import fifo_continue, fifo_stop
from benchmarks.contenders import BASELINES, Contender
from benchmarks.simulation import jain, lost, max_min, simulate, utilisation, waits
from benchmarks.simulator import Broken, Job, Result, Simulation
from benchmarks.workloads import GROUP, flood, hosts, job, mixture
from spawner.scheduler.model import GroupPolicy, Placement, Plan, Preemption, Snapshot
from spawner.scheduler.plan import plan

MINUTE = 60.0


def run(jobs: list[Job], policy: Callable[[Snapshot], Plan], until: float = 3600.0) -> Result:
    group = GroupPolicy(GROUP)
    return Simulation(hosts(1, 4, 16), jobs, policy, group, until, pause=0.0).run()


def starts(result: Result) -> dict[str, float | None]:
    return {life.job.request.session_id: life.started_at for life in result.lives}


THREE = [
    job("half", 1, 0.0, 10 * MINUTE, cpus=2),
    job("whole", 2, 1.0, 10 * MINUTE, cpus=4),
    job("late", 3, 2.0, 20 * MINUTE, cpus=2),
]


def test_fifo_stop_lets_nobody_past() -> None:
    assert starts(run(THREE, fifo_stop)) == {
        "half": 0.0,
        "whole": 10 * MINUTE,
        "late": 20 * MINUTE,
    }


def test_fifo_continue_lets_whoever_fits_past() -> None:
    assert starts(run(THREE, fifo_continue)) == {
        "half": 0.0,
        "late": 2.0,
        "whole": 20 * MINUTE + 2.0,
    }


def test_waits_and_utilisation_count_what_happened() -> None:
    result = run(THREE, fifo_stop, until=20 * MINUTE)
    hours = waits(result)["session"]
    assert hours["sessions"] == 3
    assert hours["waiting"] == 1
    assert hours["max"] == pytest.approx((20 * MINUTE - 2.0) / 3600, abs=1e-3), "it still waits"
    assert utilisation(result, while_waiting=False) == pytest.approx(0.75)


@pytest.mark.parametrize(("values", "index"), [([1, 1, 1], 1.0), ([1, 0, 0, 0], 0.25), ([], 1.0)])
def test_jains_index(values: list[float], index: float) -> None:
    assert jain(values) == pytest.approx(index)


def test_what_one_does_not_want_goes_to_the_others() -> None:
    assert max_min({"a": 1.0, "b": 9.0, "c": 9.0}, 10.0) == {"a": 1.0, "b": 4.5, "c": 4.5}


def greedy(snapshot: Snapshot) -> Plan:
    """Gives everybody all of the CPUs."""
    empty = replace(snapshot, agents=tuple(hosts(1, 4, 16)))
    placements = [fifo_stop(replace(empty, pending=(one,))).placements for one in snapshot.pending]
    return Plan(tuple(placement for each in placements for placement in each), ())


def halved(snapshot: Snapshot) -> Plan:
    """Forgets the memory."""
    whole = fifo_stop(snapshot)
    return replace(
        whole,
        placements=tuple(
            Placement(
                each.session_id,
                tuple(
                    replace(k, shares=tuple(s for s in k.shares if s.slot == "cpu"))
                    for k in each.kernels
                ),
            )
            for each in whole.placements
        ),
    )


def twice(snapshot: Snapshot) -> Plan:
    """Starts the first session two times."""
    first = fifo_stop(snapshot).placements[:1]
    return Plan(first + first, ())


@pytest.mark.parametrize("policy", [greedy, halved, twice])
def test_a_plan_that_cannot_be_carried_out_is_caught(policy: Callable[[Snapshot], Plan]) -> None:
    with pytest.raises(Broken):
        run(THREE, policy)


def test_who_is_put_back_begins_anew() -> None:
    """A policy that ends whatever runs as soon as another one waits."""

    def jealous(snapshot: Snapshot) -> Plan:
        victims = [each for each in snapshot.running if each.owner_id == "user-01"]
        if victims and snapshot.pending and snapshot.now < 5 * MINUTE:
            first = snapshot.pending[0].session_id
            return Plan((), (), preemptions=(Preemption(victims[0].session_id, first, "requeue"),))
        return fifo_stop(replace(snapshot, pending=snapshot.pending[:1]))

    first = job("first", 1, 0.0, 10 * MINUTE, cpus=4)
    second = job("second", 2, MINUTE, 10 * MINUTE, cpus=4)
    result = run([first, second], jealous)
    lives = {life.job.request.session_id: life for life in result.lives}
    assert lives["first"].preemptions == 1
    assert lives["second"].started_at == MINUTE
    assert lives["first"].started_at == 11 * MINUTE
    assert lives["first"].ended_at == 21 * MINUTE
    assert lives["first"].lost == MINUTE
    assert lost(result)["cpu_hours_lost"] == 0.1
    assert lost(result)["part_lost"] == pytest.approx(1 / 21, abs=1e-4)


@pytest.mark.parametrize("policy", [*BASELINES.values(), plan])
def test_the_same_seed_gives_the_same_result(policy: Callable[[Snapshot], Plan]) -> None:
    contender = Contender("it", policy, GroupPolicy(GROUP))
    first, second = (
        simulate(mixture(seed=5, nodes=2, days=0.1, users=4), contender) for _ in range(2)
    )
    assert starts(first) == starts(second)
    assert first.points == second.points


def test_workloads_differ_by_seed_and_ask_for_what_they_say() -> None:
    assert flood(1, sessions=3, days=0.1).jobs != flood(2, sessions=3, days=0.1).jobs
    work = mixture(seed=1, nodes=2, load=0.95, days=60.0)
    asked = sum(each.slots["cpu"] * each.duration for each in work.jobs)
    there = sum(agent.devices[0].capacity for agent in work.agents) * work.until
    assert asked / there == pytest.approx(0.95, abs=0.05)
