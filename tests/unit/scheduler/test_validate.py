"""The checker finds every kind of broken plan: it can fail, so its silence means something."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from spawner.scheduler.model import DeviceShare, Explanation, Plan, Snapshot
from spawner.scheduler.plan import plan
from spawner.scheduler.slots import MICRO
from tests.harness.plans.validate import InvalidPlan, validate
from tests.harness.snapshots import agent, quota, running, session, snapshot

NODES = [
    agent("a1", has={"cpu": 4, "mem": "4g"}, cores=True),
    agent("a2", alive=False),
    agent("a3", group="west"),
]
PENDING = [
    session("s1", {"cpu": 2}, at=1),
    session("s2", {"cpu": 4}, at=2),
    session("s3", {"cpu": 2}, at=3),
]
CASE = snapshot(NODES, PENDING, quotas=[quota(sessions=2)])


def _moved(answer: Plan, agent_id: str) -> Plan:
    first = answer.placements[0]
    kernel = replace(first.kernels[0], agent_id=agent_id)
    return replace(answer, placements=(replace(first, kernels=(kernel,)),))


def _cut(answer: Plan, *shares: DeviceShare) -> Plan:
    first = answer.placements[0]
    return replace(
        answer, placements=(replace(first, kernels=(replace(first.kernels[0], shares=shares),)),)
    )


def _told(answer: Plan, **changes: object) -> Plan:
    first: Explanation = replace(answer.waiting[0], **changes)
    return replace(answer, waiting=(first, *answer.waiting[1:]))


def _passing(answer: Plan) -> Plan:
    """Start the third, which passes the second."""
    kernels = plan(replace(CASE, pending=(PENDING[0], PENDING[2]))).placements
    return replace(answer, placements=kernels, waiting=answer.waiting[:1])


BROKEN: list[tuple[Callable[[Plan], Plan], str]] = [
    (lambda answer: replace(answer, placements=()), "answered"),
    (lambda answer: replace(answer, waiting=answer.waiting * 2), "answered"),
    (lambda answer: replace(answer, order=answer.order[:-1]), "ordered"),
    (lambda answer: replace(answer, order=answer.order[::-1]), "out of order"),
    (lambda answer: _moved(answer, "a2"), "goes to a2, which cannot or may not"),
    (lambda answer: _moved(answer, "a3"), "goes to {'a3'}"),
    (lambda answer: _moved(answer, "a9"), "goes to {'a9'}"),
    (lambda answer: _cut(answer, DeviceShare("cpu", "cpu0", 2 * MICRO)), "of 1000000 free"),
    (lambda answer: _cut(answer, DeviceShare("cpu", "cpu0", MICRO)), "gets {'cpu': 1000000}"),
    (lambda answer: _cut(answer, DeviceShare("cpu", "cpu0", 0)), "amount=0"),
    (
        lambda answer: replace(answer, placements=(replace(answer.placements[0], kernels=()),)),
        "not all",
    ),
    (lambda answer: _told(answer, unsatisfiable=True), "unsatisfiable is True"),
    (lambda answer: _told(answer, position=7), "position 7"),
    (lambda answer: _told(answer, reasons=()), "explained by"),
    (
        lambda answer: _told(
            answer, missing=(replace(answer.waiting[0].missing[0], available=9 * MICRO),)
        ),
        "misses",
    ),
    (_passing, "s3: goes to a1, which cannot or may not"),
]


@pytest.mark.parametrize(("breaks", "says"), BROKEN)
def test_a_broken_plan_is_found(breaks: Callable[[Plan], Plan], says: str) -> None:
    answer = plan(CASE)
    validate(CASE, answer)
    with pytest.raises(InvalidPlan) as caught:
        validate(CASE, breaks(answer))
    assert says in str(caught.value)


def test_idling_is_found() -> None:
    empty: Snapshot = snapshot([agent()], [session("s1", {"cpu": 16})])
    answer = plan(empty)
    with pytest.raises(InvalidPlan, match="unsatisfiable is True, should be False"):
        validate(snapshot([agent()], [session("s1")]), answer)
    waits = plan(snapshot([agent(used={"cpu": 8})], [session("s1")]))
    with pytest.raises(InvalidPlan, match=r"waits although \['a1'\] could take it"):
        validate(snapshot([agent()], [session("s1")]), waits)


def test_a_passed_quota_is_found() -> None:
    case = snapshot([agent()], [session()])
    with pytest.raises(InvalidPlan, match="barred by"):
        validate(replace(case, quotas=(quota(sessions=0),)), plan(case))


def test_what_ends_now_makes_room_now_although_more_ends_later() -> None:
    """Found by the properties: the checker looked at later moments before the present one."""
    node = agent("a1", has={"cpu": 2, "mem": "4g"}, used={"cpu": 2})
    lives = [running("r1", ending=True), running("r2", ends=5)]
    case = replace(snapshot([node], [session("s1", {"cpu": 1})]), running=tuple(lives))
    answer = plan(case)
    assert [each.starts_at for each in answer.reservations] == [case.now]
    validate(case, answer)
