"""Quotas and start times: all violated ones at once, and nobody else is held up by them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from spawner.scheduler.model import Dependency, GroupPolicy
from tests.harness.snapshots import GROUP, agent, quota, session, slots, snapshot

from .answers import planned, reasons, started, told

QUOTAS = [
    (quota(sessions=3, running=3), "waiting: your limit of 3 sessions is reached"),
    (quota("user", "ada", sessions=1, running=1), "waiting: your limit of 1 session is reached"),
    (
        quota(limit={"cpu": 4}, held={"cpu": 3}),
        "waiting: your limit of 4 CPUs would be passed (3 CPUs in use, asked for 2 CPUs)",
    ),
    (
        quota("project", "lab", {"mem": "1.5g"}, {"mem": "1g"}),
        "waiting: your project's limit of 1.5 GiB of memory would be passed "
        "(1 GiB of memory in use, asked for 1 GiB of memory)",
    ),
    (
        quota("domain", "default", {"cpu": 1}),
        "cannot ever start: your domain's limit of 1 CPU is less than it needs (asked for 2 CPUs)",
    ),
    (quota(sessions=0), "cannot ever start: your limit of 0 sessions is reached"),
]


@pytest.mark.parametrize(("limits", "message"), QUOTAS)
def test_a_quota_says_which_and_how_much(limits, message: str) -> None:  # type: ignore[no-untyped-def]
    case = snapshot([agent()], [session(wants={"cpu": 2, "mem": "1g"})], quotas=[limits])
    answer = told(case, "s1")
    assert answer.message == message
    assert answer.unsatisfiable == message.startswith("cannot")


@pytest.mark.parametrize(
    "limits",
    [
        quota(),
        quota(limit={}),
        quota(limit={"cuda.device": 0}),
        quota(limit={"cpu": 2}, sessions=1),
        quota(limit={"mem": "1g"}, held={"mem": "4g"}),
        quota("keypair", "key-of-somebody-else", {"cpu": 0}, sessions=0),
    ],
)
def test_no_limit_a_missing_slot_or_an_exact_fit_pass(limits) -> None:  # type: ignore[no-untyped-def]
    """A scope that holds more memory than it may is still let have CPUs: only what is asked counts."""
    pending = [session(wants={"cpu": 2, "cuda.device": 0})]
    assert started(snapshot([agent()], pending, quotas=[limits])) == {"s1": "a1"}


def test_one_byte_too_many_is_too_many() -> None:
    quotas = [quota(limit={"mem": "1g"}, held={"mem": 1})]
    assert told(snapshot([agent()], [session(wants={"mem": "1g"})], quotas=quotas), "s1")


def test_zero_allows_nothing_of_that_slot() -> None:
    case = snapshot([agent()], [session()], quotas=[quota(limit={"cpu": 0})])
    assert told(case, "s1").unsatisfiable


def test_all_violated_limits_are_told_at_once() -> None:
    case = snapshot(
        [agent()],
        [session(wants={"cpu": 2}, starts_at=60)],
        quotas=[
            quota(sessions=1, running=1, limit={"cpu": 2}, held={"cpu": 1}),
            quota("project", "lab", {"cpu": 3}, {"cpu": 2}),
        ],
    )
    answer = told(case, "s1")
    assert [reason.name for reason in answer.reasons] == [
        "not-before",
        "concurrency",
        "quota",
        "quota",
    ]
    assert answer.reasons[3].data == {
        "scope": "project",
        "scope_id": "lab",
        "slot": "cpu",
        "limit": 3_000_000,
        "held": 2_000_000,
        "requested": 2_000_000,
    }


def test_placements_of_the_same_pass_count() -> None:
    pending = [session("a", at=1), session("b", at=2), session("c", at=3, owner="bob")]
    assert set(started(snapshot([agent()], pending, quotas=[quota(sessions=1)]))) == {"a", "c"}


@pytest.mark.parametrize(("starts_at", "starts"), [(-1, True), (0, True), (1, False)])
def test_not_before(starts_at: float, starts: bool) -> None:
    case = snapshot([agent()], [session(starts_at=starts_at)])
    assert bool(started(case)) == starts
    if not starts:
        assert (
            told(case, "s1").message == "waiting: it is not to start before 2027-01-15 08:00:01 UTC"
        )


def test_who_waits_for_a_quota_or_a_time_blocks_nobody() -> None:
    pending = [
        session("quota", {"cpu": 8}, at=1),
        session("later", {"cpu": 8}, at=2, owner="eve", starts_at=9),
        session("small", {"cpu": 8}, at=3, owner="bob"),
    ]
    case = snapshot([agent()], pending, quotas=[quota(sessions=1, running=1)])
    assert started(case) == {"small": "a1"}
    assert [told(case, name).position for name in ("quota", "later")] == [1, 1]


def test_an_unknown_group_says_so() -> None:
    answer = told(snapshot([agent()], [session(group="gone")]), "s1")
    assert answer.message == "waiting: resource group 'gone' takes no sessions"
    assert reasons(answer) == {"resource-group": 0}


def test_everything_that_is_wrong_is_told_at_once() -> None:
    asked = session(wants={"cpu": 1, "mem": "1g"}, starts_at=60)
    kernel = replace(
        asked.kernels[0],
        shared_memory=2**30,
        minimum=slots({"cpu": 2, "mem": "2g", "cuda.device": 1}),
    )
    odd = replace(
        asked,
        kernels=(kernel, replace(kernel, kernel_id="k2")),
        dependencies=(
            Dependency("p1", "waiting", "prepare"),
            Dependency("p2", "failed"),
            Dependency("p3", "succeeded"),
        ),
    )
    group = GroupPolicy(
        GROUP, served_slots=frozenset({"cpu"}), required_slots=frozenset({"cuda.device"})
    )
    limits = [replace(quota(limit={"cpu": 1}, sessions=0), max_containers=1)]
    answer = told(snapshot([agent()], [odd], quotas=limits, groups=[group]), "s1")
    assert set(reasons(answer)) == {
        "not-before",
        "dependency",
        "concurrency",
        "containers",
        "quota",
        "slot-kinds",
        "required-slots",
        "image-minimum",
        "shared-memory",
    }
    texts = [each.message for each in answer.reasons]
    assert "session prepare, on which it depends, must succeed first" in texts
    assert "session p2, on which it depends, failed: it waits until you end it" in texts
    assert "image perijove/base needs at least 2 GiB of memory (asked for 1 GiB of memory)" in texts
    assert "your limit of 1 container per session is less than it has (2)" in texts
    assert answer.unsatisfiable


def test_what_can_never_be_says_only_why_it_can_never_be() -> None:
    limits = [quota(limit={"cpu": 1}, sessions=1, running=1)]
    answer = told(snapshot([agent()], [session("s1", wants={"cpu": 2})], quotas=limits), "s1")
    assert (
        answer.message
        == "cannot ever start: your limit of 1 CPU is less than it needs (asked for 2 CPUs)"
    )
    assert set(reasons(answer)) == {"concurrency", "quota"}


@pytest.mark.parametrize(
    ("state", "rule", "outcome"),
    [
        ("succeeded", "wait", "starts"),
        ("waiting", "ignore", "waits"),
        ("failed", "wait", "waits"),
        ("failed", "ignore", "starts"),
        ("failed", "cancel", "cancelled"),
        ("waiting", "cancel", "waits"),
    ],
)
def test_parents_come_first(state: str, rule: str, outcome: str) -> None:
    child = replace(
        session("child"),
        dependencies=(Dependency("p", state),),  # type: ignore[arg-type]
        failed_parents=rule,
    )
    answer = planned(snapshot([agent()], [child, session("next", at=1)]))
    names = {
        "starts": [each.session_id for each in answer.placements],
        "waits": [each.session_id for each in answer.waiting],
        "cancelled": [each.data["session_id"] for each in answer.cancelled],
    }
    assert "child" in names[outcome]
    assert "next" in names["starts"]


@pytest.mark.parametrize(("shared", "fits"), [(0, True), (2**30 - 1, True), (2**30, False)])
def test_shared_memory_is_smaller_than_memory(shared: int, fits: bool) -> None:
    asked = session(wants={"mem": "1g"})
    kernel = replace(asked.kernels[0], shared_memory=shared)
    assert bool(started(snapshot([agent()], [replace(asked, kernels=(kernel,))]))) == fits
