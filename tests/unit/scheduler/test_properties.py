"""What holds for every snapshot whatever: the safety properties of the scheduler."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from spawner.scheduler.dryrun import fit
from spawner.scheduler.model import Placement, RunningSession, SessionRequest, Snapshot
from spawner.scheduler.plan import plan
from tests.harness.plans.validate import validate

from .answers import after
from .strategies import snapshots


@given(snapshots())
def test_every_plan_keeps_all_invariants(case: Snapshot) -> None:
    validate(case, plan(case))


@given(snapshots(), st.integers())
def test_a_plan_depends_on_the_snapshot_alone(case: Snapshot, seed: int) -> None:
    mixer = random.Random(seed)
    shuffled = replace(
        case,
        agents=tuple(mixer.sample(case.agents, len(case.agents))),
        pending=tuple(mixer.sample(case.pending, len(case.pending))),
        quotas=tuple(mixer.sample(case.quotas, len(case.quotas))),
        groups=tuple(mixer.sample(case.groups, len(case.groups))),
    )
    known = {group.name for group in case.groups}
    queued = tuple(each for each in case.pending if each.resource_group in known)
    assert plan(replace(case, pending=queued)) == plan(
        replace(shuffled, pending=tuple(s for s in shuffled.pending if s in queued))
    )


@given(snapshots())
def test_a_second_pass_after_applying_the_first_starts_nobody_else(case: Snapshot) -> None:
    """Placing is complete: what one pass could start, it starts."""
    first = plan(case)
    again = plan(apply(case, first.placements))
    assert again.placements == ()
    assert {each.session_id for each in again.waiting} == {e.session_id for e in first.waiting}


@given(snapshots(plain=True))
def test_nobody_who_waits_loses_ground_to_those_behind(case: Snapshot) -> None:
    """Taking the sessions behind a waiting one away does not change what it lacks."""
    answer = plan(case)
    for explanation in answer.waiting:
        ahead = answer.order[: answer.order.index(explanation.session_id) + 1]
        alone = plan(replace(case, pending=tuple(s for s in case.pending if s.session_id in ahead)))
        assert explanation in alone.waiting


@given(snapshots(plain=True), st.data())
def test_a_dry_run_says_what_the_plan_does(case: Snapshot, data: st.DataObject) -> None:
    """Take one session out, ask ``fit`` for it, and compare with the plan that has it last in its band."""
    if not case.pending:
        return
    # Other sequencers may have it earlier: a dry run promises what the last in the band gets.
    case = replace(case, groups=tuple(replace(each, sequencer="fifo") for each in case.groups))
    chosen = data.draw(st.sampled_from(case.pending))
    others = replace(case, pending=tuple(each for each in case.pending if each is not chosen))
    asked = replace(chosen, submitted_at=case.now + 100, eligible_since=None)
    if asked.dependencies and asked.failed_parents == "cancel":
        return
    if any(each.claimed_by == asked.session_id for each in case.running):
        return
    verdict = fit(others, asked)
    full = plan(replace(others, pending=(*others.pending, asked)))
    started = {each.session_id: each.kernels[0].agent_id for each in full.placements}
    assert verdict.agent_id == started.get(asked.session_id)
    if verdict.verdict != "now":
        told = next(each for each in full.waiting if each.session_id == asked.session_id)
        assert verdict.explanation is not None
        seized = any(each.for_session_id == asked.session_id for each in full.preemptions)
        reserved = any(each.session_id == asked.session_id for each in full.reservations)
        if seized or not reserved:
            told = replace(
                told,
                starts_at=verdict.explanation.starts_at,
                waits_for=verdict.explanation.waits_for,
            )
        assert verdict.explanation == told
        assert (verdict.verdict == "never") == told.unsatisfiable
        assert verdict.message == told.message


@given(snapshots(plain=True), st.sampled_from([1.0, 5.0, 10.0, 24.0, 60.0]))
def test_a_promised_start_never_moves_later(case: Snapshot, passed: float) -> None:
    """Whatever was put before it, the first in line starts when it was told, or sooner."""
    case = replace(
        case,
        groups=tuple(replace(each, preemption=None) for each in case.groups),
        pending=tuple(replace(s, starts_at=None, dependencies=()) for s in case.pending),
        running=tuple(
            replace(each, ending=False, claimed_by=None)
            for each in case.running
            if each.ends_at is None or each.ends_at > case.now
        ),
    )
    first = plan(case)
    waiting = {each.session_id for each in first.waiting if not each.unsatisfiable}
    heads: dict[str, str] = {}
    for session in (
        each for name in first.order for each in case.pending if each.session_id == name
    ):
        if session.session_id in waiting:
            heads.setdefault(session.resource_group, session.session_id)
    promised = {
        each.session_id: each.starts_at
        for each in first.reservations
        if each.starts_at is not None and each.session_id in heads.values()
    }
    again = plan(later(apply(case, first.placements), passed))
    now = {each.session_id: each.starts_at for each in again.reservations}
    started = {each.session_id for each in again.placements}
    for session_id, starts_at in promised.items():
        if session_id in started:
            continue
        assert case.now + passed < starts_at
        assert now[session_id] is not None
        assert now[session_id] <= starts_at


def later(case: Snapshot, passed: float) -> Snapshot:
    """The snapshot after ``passed`` seconds, in which everything ends when it is known to."""
    now = case.now + passed
    over = {e.session_id for e in case.running if e.ends_at is not None and e.ends_at <= now}
    return replace(after(case, over), now=now)


def apply(case: Snapshot, placements: tuple[Placement, ...]) -> Snapshot:
    """The snapshot after ``placements`` were carried out and charged."""
    taken: dict[tuple[str, str, str], int] = {}
    containers: dict[str, int] = {}
    for placement in placements:
        for kernel in placement.kernels:
            containers[kernel.agent_id] = containers.get(kernel.agent_id, 0) + 1
            for share in kernel.shares:
                where = (kernel.agent_id, share.slot, share.device_id)
                taken[where] = taken.get(where, 0) + share.amount
    agents = tuple(
        replace(
            agent,
            containers=agent.containers + containers.get(agent.agent_id, 0),
            devices=tuple(
                replace(d, free=d.free - taken.get((agent.agent_id, d.slot, d.device_id), 0))
                for d in agent.devices
            ),
        )
        for agent in case.agents
    )
    started = {placement.session_id for placement in placements}
    quotas = []
    for quota in case.quotas:
        scope = {
            "keypair": "access_key",
            "user": "owner_id",
            "project": "project_id",
            "domain": "domain",
        }
        held, sessions = dict(quota.held_slots), quota.held_sessions
        for session in case.pending:
            if (
                session.session_id in started
                and getattr(session, scope[quota.scope]) == quota.scope_id
            ):
                sessions += 1
                for kernel in session.kernels:
                    for slot, amount in kernel.slots.items():
                        held[slot] = held.get(slot, 0) + amount
        quotas.append(replace(quota, held_slots=held, held_sessions=sessions))
    left = tuple(each for each in case.pending if each.session_id not in started)
    begun = tuple(
        _begun(each, placements, case.now) for each in case.pending if each.session_id in started
    )
    return replace(
        case,
        agents=agents,
        pending=left,
        quotas=tuple(quotas),
        running=(*case.running, *begun),
    )


def _begun(
    session: SessionRequest, placements: tuple[Placement, ...], now: float
) -> RunningSession:
    return RunningSession(
        session.session_id,
        session.owner_id,
        session.project_id,
        session.domain,
        session.resource_group,
        session.priority,
        now,
        None if session.run_time is None else now + session.run_time,
        next(each.kernels for each in placements if each.session_id == session.session_id),
        session_group=session.session_group,
    )
