"""Preemption by and of sessions on several nodes: all places at once, and nobody ends for nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given

from spawner.scheduler.model import (
    Agent,
    GroupPolicy,
    KernelPlacement,
    Plan,
    PreemptionRules,
    RunningSession,
    SessionRequest,
    Snapshot,
)
from spawner.scheduler.slots import MICRO
from tests.harness.snapshots import GROUP, agent, running, session, snapshot

from .answers import after, planned, started, told
from .strategies import contests
from .test_properties import apply


def multi(
    kernels: int = 2, cpus: int = 8, session_id: str = "high", priority: int = 50
) -> SessionRequest:
    """A cluster whose containers may be on different nodes."""
    return session(
        session_id, {"cpu": cpus}, kernels=kernels, cluster_mode="multi-node", priority=priority
    )


def wide(session_id: str, *places: RunningSession, **changes: object) -> RunningSession:
    """One session that holds what ``places`` hold."""
    kernels = tuple(kernel for each in places for kernel in each.kernels)
    return replace(places[0], session_id=session_id, kernels=kernels, **changes)  # type: ignore[arg-type]


def full(*names: str, cpus: int = 8) -> list[Agent]:
    return [agent(name, used={"cpu": cpus}) for name in names]


def holds(session_id: str, agent_id: str, cpus: int = 8, **changes: object) -> RunningSession:
    return running(session_id, agent_id, {"cpu": cpus}, **changes)  # type: ignore[arg-type]


def case(
    agents: list[Agent], runs: list[RunningSession], *pending: SessionRequest, **rules: object
) -> Snapshot:
    group = GroupPolicy(GROUP, preemption=PreemptionRules(**rules))  # type: ignore[arg-type]
    return snapshot(agents, pending or [multi()], groups=[group], runs=runs)


def ended(answer: Plan) -> list[str]:
    return sorted(each.victim_id for each in answer.preemptions)


def kept(answer: Plan, session_id: str = "high") -> dict[str, int]:
    """CPUs that are kept for it on each agent."""
    found = {each.session_id: each for each in answer.reservations}[session_id]
    amounts = zip(found.agent_ids, found.amounts, strict=True)
    return {agent_id: amount["cpu"] // MICRO for agent_id, amount in amounts}


THREE = [holds("r1", "a1"), holds("r2", "a2"), holds("r3", "a3")]


@pytest.mark.parametrize(
    ("runs", "rules", "victims"),
    [
        pytest.param(THREE, {}, ["r1", "r2"], id="one victim on each node"),
        pytest.param(
            [replace(THREE[0], priority=11), *THREE[1:]], {}, ["r2", "r3"], id="lowest priority"
        ),
        pytest.param(
            [replace(THREE[0], preemptible=False), *THREE[1:]], {}, ["r2", "r3"], id="may not"
        ),
        pytest.param([replace(THREE[0], priority=50), *THREE[1:]], {}, ["r2", "r3"], id="equal"),
        pytest.param(
            [replace(each, priority=50) for each in THREE[:2]] + THREE[2:], {}, [], id="one is few"
        ),
        pytest.param(
            [replace(THREE[0], owner_id="bob"), *THREE[1:]],
            {"scope": "user"},
            ["r2", "r3"],
            id="own user",
        ),
        pytest.param(THREE, {"minimum_run_time": 7200.0}, [], id="all too young"),
        pytest.param([replace(THREE[0], ending=True), *THREE[1:]], {}, ["r2"], id="one is ending"),
        pytest.param(
            [replace(each, ending=True) for each in THREE[:2]] + THREE[2:], {}, [], id="two are"
        ),
        pytest.param(
            [wide("w", THREE[0], THREE[1]), THREE[2]], {}, ["w"], id="a victim on both nodes"
        ),
        pytest.param(
            [holds("a", "a1", 4), holds("b", "a1", 4), *THREE[1:]],
            {},
            ["r2", "r3"],
            id="fewest victims",
        ),
    ],
)
def test_who_ends(runs: list[RunningSession], rules: dict[str, object], victims: list[str]) -> None:
    assert ended(planned(case(full("a1", "a2", "a3"), runs, **rules))) == victims


def test_nobody_ends_where_only_some_containers_would_find_a_place() -> None:
    snap = case(full("a1", "a2"), THREE[:1])
    assert ended(planned(snap)) == []


def test_containers_that_fit_already_keep_their_place_too() -> None:
    """Nobody takes the free half of the session while the other half waits for its victim."""
    lower = session("later", {"cpu": 1}, at=1)
    snap = case([agent("a1"), *full("a2")], [holds("r2", "a2")], multi(), lower)
    answer = planned(snap)
    assert ended(answer) == ["r2"]
    assert answer.placements == ()
    assert kept(answer) == {"a1": 8, "a2": 8}
    assert told(snap, "high").waits_for == ("r2",)


def test_unequal_containers_find_the_only_way() -> None:
    """Which container goes where matters: only a1 is large enough for the large one."""
    sizes = zip(multi().kernels, (3, 8), strict=True)
    kernels = tuple(replace(kernel, slots={"cpu": cpus * MICRO}) for kernel, cpus in sizes)
    asked = replace(multi(), kernels=kernels)
    agents = [agent("a1", used={"cpu": 8}), agent("a2", {"cpu": 4, "mem": "4g"}, {"cpu": 4})]
    snap = case(agents, [holds("r1", "a1"), holds("r2", "a2", 4)], asked)
    answer = planned(snap)
    assert ended(answer) == ["r1", "r2"]
    assert kept(answer) == {"a1": 8, "a2": 3}


def test_the_claim_on_all_nodes_lasts_until_the_last_victim_is_gone() -> None:
    """One victim has gone, the other ends slowly; even a higher priority gets neither place."""
    slow = holds("r2", "a2", ending=True, claimed_by="high")
    top = session("top", {"cpu": 1}, priority=90)
    snap = case([agent("a1"), *full("a2")], [slow], multi(), top)
    answer = planned(snap)
    assert started(snap) == {}
    assert ended(answer) == []
    assert kept(answer) == {"a1": 8, "a2": 8}
    alone = replace(snap, pending=snap.pending[:1])
    assert set(started(after(alone, ["r2"]))) == {"high"}


def test_victims_on_several_nodes_leave_their_other_nodes_to_others() -> None:
    """The victim runs on a1, a2 and a3; what it leaves on a3 is kept for nobody."""
    victim = wide("w", *THREE)
    first = planned(case(full("a1", "a2", "a3"), [victim]))
    assert ended(first) == ["w"]
    claimed = replace(victim, ending=True, claimed_by="high")
    snap = case(full("a1", "a2", "a3"), [claimed], multi(), session("later", {"cpu": 8}, at=1))
    assert kept(planned(snap)) == kept(first)
    assert set(started(after(snap, ["w"]))) == {"high", "later"}


def test_a_claim_is_where_its_owner_fits_not_where_most_victims_were() -> None:
    """Two small containers of the victim are on a1, the one that makes room is on a2."""
    victim = wide(
        "w",
        holds("x", "a1", 1),
        holds("y", "a1", 1),
        holds("z", "a2", 8),
        ending=True,
        claimed_by="high",
    )
    other = holds("other", "a1", 6, priority=90)
    asked = session("high", {"cpu": 8}, priority=50)
    assert kept(planned(case(full("a1", "a2"), [victim, other], asked))) == {"a2": 8}


def test_a_claim_is_where_most_containers_of_victims_were_when_both_would_do() -> None:
    victim = wide(
        "w",
        holds("x", "a1", 8),
        holds("y", "a2", 4),
        holds("z", "a2", 4),
        ending=True,
        claimed_by="high",
    )
    asked = session("high", {"cpu": 8}, priority=50)
    assert kept(planned(case(full("a1", "a2"), [victim], asked))) == {"a2": 8}


def test_who_waits_for_victims_does_not_end_others_for_what_is_reserved_meanwhile() -> None:
    """Found by the properties: an earlier session has its reservation on the same node."""
    sizes = zip(multi(3).kernels, (2, 1, 2), strict=True)
    kernels = tuple(replace(kernel, slots={"cpu": cpus * MICRO}) for kernel, cpus in sizes)
    asked = replace(multi(3), kernels=kernels)
    nodes = [agent("a1", {"cpu": 3}, {"cpu": 2}), agent("a2", {"cpu": 3}, {"cpu": 1})]
    runs = [holds("r1", "a1", 2), holds("r2", "a2", 1)]
    assert ended(planned(case(nodes, runs, asked))) == ["r1"]
    waits = [replace(runs[0], ending=True, claimed_by="high"), runs[1]]
    rival = session("rival", {"cpu": 2}, priority=50, at=-60)
    assert ended(planned(case(nodes, waits, asked, rival))) == []


def test_a_victim_that_lost_a_node_gives_what_it_has_left() -> None:
    """A degraded cluster holds a1 and, on a node that is gone, a2: it frees a1 only."""
    lost = agent("a2", used={"cpu": 8}, alive=False)
    victim = wide("w", holds("x", "a1"), holds("y", "a2"))
    asked = session("high", {"cpu": 8}, priority=50)
    assert ended(planned(case([*full("a1"), lost], [victim], asked))) == ["w"]
    assert ended(planned(case([*full("a1"), lost], [victim]))) == []


def test_what_a_lost_node_still_counts_does_not_keep_the_session_waiting() -> None:
    """The victim's node that answers is free; the rest of it is accounted until the other one is back."""
    lost = agent("a2", used={"cpu": 8}, alive=False)
    rest = holds("w", "a2", ending=True, claimed_by="high")
    asked = session("high", {"cpu": 8}, priority=50)
    assert started(case([agent("a1"), lost], [rest], asked)) == {"high": "a1"}


def test_a_cluster_is_spared_when_a_single_session_would_do() -> None:
    runs = [wide("w", THREE[0], THREE[1]), THREE[2]]
    asked = session("high", {"cpu": 8}, priority=50)
    assert ended(
        planned(case(full("a1", "a2", "a3"), runs, asked, order="smallest-resources"))
    ) == ["r3"]


def test_nothing_is_kept_where_its_owner_has_no_place_any_more() -> None:
    """One of the two agents is closed by now: what is left would not hold the cluster."""
    closed = agent("a2", used={"cpu": 8}, schedulable=False)
    slow = wide("w", *THREE[:2], ending=True, claimed_by="high")
    later = session("later", {"cpu": 1}, at=1)
    snap = case([*full("a1", cpus=4), closed], [slow], multi(), later)
    assert started(snap) == {"later": "a1"}
    assert told(snap, "high").message == (
        "queued, first in line: waiting for nodes for all containers at once "
        "(1 closed for new sessions)"
    )


@given(contests())
def test_victims_make_room_and_none_ends_for_nothing(snap: Snapshot) -> None:
    """After they are gone the session starts; without any one of them it would not have."""
    answer = planned(snap)
    runs = {each.session_id: each for each in snap.running}
    leaving = {each.session_id for each in snap.running if each.ending}
    victims = {each.victim_id for each in answer.preemptions}
    assert not victims & leaving
    assert all(runs[name].priority < snap.pending[0].priority for name in victims)
    if victims:
        assert started(after(snap, victims | leaving)) != {}
        for spared in victims:
            assert started(after(snap, (victims | leaving) - {spared})) == {}


@given(contests())
def test_nobody_waits_who_could_have_preempted(snap: Snapshot) -> None:
    answer = planned(snap)
    if answer.placements or answer.preemptions:
        return
    rules = snap.groups[0].preemption
    asked = snap.pending[0]
    assert rules is not None
    leaving = {each.session_id for each in snap.running if each.ending}
    may = {
        each.session_id
        for each in snap.running
        if each.priority < asked.priority
        and each.preemptible
        and snap.now - each.started_at >= rules.minimum_run_time
        and (rules.scope == "group" or each.owner_id == asked.owner_id)
    }
    assert started(after(snap, leaving)) != {} or started(after(snap, may | leaving)) == {}


@given(contests())
def test_the_claim_holds_until_the_session_starts(snap: Snapshot) -> None:
    """Others come while its victims go, the last one last: none of them gets its place."""
    first = planned(snap)
    victims = {each.victim_id for each in first.preemptions}
    if not victims:
        return
    runs = tuple(
        replace(each, ending=True, claimed_by="s1") if each.session_id in victims else each
        for each in snap.running
    )
    rival = replace(
        snap.pending[0],
        session_id="s0",
        kernels=(replace(snap.pending[0].kernels[0], kernel_id="rival"),),
        submitted_at=snap.now - 60,
    )
    now = replace(snap, running=runs)
    leaving = [e.session_id for e in sorted(runs, key=lambda e: e.claimed_by or "") if e.ending]
    for name in leaving:
        contested = replace(now, pending=(rival, *now.pending))
        answer = planned(contested)
        assert "s1" not in {each.for_session_id for each in answer.preemptions}
        taken = [each for each in answer.placements if each.session_id == "s0"]
        if taken:  # there is room besides the claim
            assert set(started(after(apply(contested, answer.placements), leaving))) >= {"s1"}
        now = after(now, [name])
    assert set(started(now)) == {"s1"}


def test_a_placement_names_the_nodes_that_were_kept() -> None:
    snap = case(full("a1", "a2"), THREE[:2])
    answer = planned(snap)
    free = planned(after(snap, ended(answer)))
    kernels: tuple[KernelPlacement, ...] = free.placements[0].kernels
    assert {each.agent_id for each in kernels} == set(kept(answer))
