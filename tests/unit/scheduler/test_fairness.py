"""Dominant shares, decayed usage, and what people are shown of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spawner.scheduler.fairness import fair_share_factors
from spawner.scheduler.model import (
    DeviceShare,
    GroupPolicy,
    KernelPlacement,
    RunningSession,
    SessionRequest,
    Snapshot,
    Usage,
)
from spawner.scheduler.slots import MICRO
from tests.harness.snapshots import GROUP, NOW, agent, session, snapshot

from .answers import planned, started

DAY = 86400.0


def case(
    sequencer: str, pending: list[SessionRequest], cpus: int = 4, **policy: object
) -> Snapshot:
    group = GroupPolicy(GROUP, sequencer, **policy)
    return snapshot([agent(has={"cpu": cpus, "mem": "64g"})], pending, groups=[group])


def flood(count: int, owner: str = "ada", at: float = 0, **more: object) -> list[SessionRequest]:
    """``count`` sessions of one CPU, one second apart."""
    names = (f"{owner}{number:03}" for number in range(count))
    return [session(n, owner=owner, at=at + i, **more) for i, n in enumerate(names)]  # type: ignore[arg-type]


def running(owner: str, cpus: int, session_id: str = "r1") -> RunningSession:
    share = DeviceShare("cpu", "cpu", cpus * MICRO)
    kernels = (KernelPlacement("k", "a1", (share,)),)
    return RunningSession(session_id, owner, "lab", "default", GROUP, 10, NOW - 9, None, kernels)


def owners(answer: dict[str, str]) -> dict[str, int]:
    """How many sessions each owner started."""
    names = sorted({name.rstrip("0123456789") for name in answer})
    return {n: sum(s.rstrip("0123456789") == n for s in answer) for n in names}


def test_the_newest_goes_first() -> None:
    assert planned(case("lifo", flood(4))).order == ("ada003", "ada002", "ada001", "ada000")


def test_equal_users_alternate() -> None:
    answer = planned(case("drf", [*flood(4), *flood(4, "bob", at=9)]))
    assert answer.order[:4] == ("ada000", "bob000", "ada001", "bob001")
    assert owners({each.session_id: "" for each in answer.placements}) == {"ada": 2, "bob": 2}


def test_the_line_alternates_as_well() -> None:
    full = replace(
        case("drf", [*flood(3), *flood(3, "bob", at=9)]), agents=(agent(used={"cpu": 8}),)
    )
    answer = planned(full)
    assert [name[:3] for name in answer.order] == ["ada", "bob"] * 3


def test_weights_shift_shares() -> None:
    pending = [*flood(9), *flood(9, "bob")]
    assert owners(started(case("drf", pending, cpus=8, weights={"bob": 3.0}))) == {
        "ada": 2,
        "bob": 6,
    }


def test_what_runs_already_counts() -> None:
    pending = [*flood(9), *flood(9, "bob", at=20)]
    begun = replace(case("drf", pending, cpus=6), running=(running("ada", 3),))
    assert owners(started(begun)) == {"ada": 2, "bob": 4}


def test_the_dominant_slot_decides_and_slots_that_nobody_has_do_not() -> None:
    """Half of the memory weighs more than a quarter of the CPUs."""
    mem = [session(f"mem{n}", {"cpu": 1, "mem": "32g"}, owner="mem", at=n) for n in range(2)]
    cpu = [
        session(f"cpu{n}", {"cpu": 1, "cuda.device": 0}, owner="cpu", at=9 + n) for n in range(4)
    ]
    order = planned(case("drf", [*mem, *cpu])).order
    assert order[:4] == ("mem0", "cpu0", "cpu1", "mem1")


def used(scope: str, scope_id: str, share: float, **more: object) -> Usage:
    """Usage of ``share`` days of four CPUs."""
    return Usage(scope, scope_id, {"cpu": share * 4 * MICRO * DAY}, NOW, **more)  # type: ignore[arg-type]


def test_domains_come_before_projects_before_users() -> None:
    everyone = [
        replace(session(name, owner=name), domain=domain, project_id=project)
        for name, domain, project in [
            ("a", "big", "p1"),
            ("b", "small", "p2"),
            ("c", "small", "p3"),
            ("d", "small", "p3"),
        ]
    ]
    usage = (
        used("domain", "big", 3),
        used("domain", "small", 2),
        used("project", "p2", 2),
        used("project", "p3", 1),
        used("user", "p3/c", 1),
    )
    answer = planned(replace(case("fair-share", everyone, cpus=8), usage=usage))
    assert answer.order == ("d", "c", "b", "a")


def test_a_user_without_usage_comes_first_and_usage_fades() -> None:
    pending = [*flood(1), *flood(1, "bob"), *flood(1, "new")]
    usage = (used("user", "lab/ada", 1.5), replace(used("user", "lab/bob", 2), at=NOW - 7 * DAY))
    assert planned(replace(case("fair-share", pending), usage=usage)).order == (
        "new000",
        "bob000",
        "ada000",
    )


def test_weights_divide_usage_and_slots_cost_what_the_group_says() -> None:
    usage = (
        used("user", "lab/ada", 3, weight=4.0),
        used("user", "lab/bob", 1),
        Usage("user", "lab/cyd", {"mem": 2**36 * DAY}, NOW),
    )
    pending = [*flood(1), *flood(1, "bob"), *flood(1, "cyd")]
    costly = replace(case("fair-share", pending, slot_weights={"mem": 10.0}), usage=usage)
    assert planned(costly).order == ("ada000", "bob000", "cyd000")
    assert (
        planned(replace(case("fair-share", pending, slot_weights={"mem": 0.0}), usage=usage)).order[
            0
        ]
        == "cyd000"
    )


def test_one_user_does_not_get_everything_at_once() -> None:
    assert owners(started(case("fair-share", [*flood(50), *flood(50, "bob", at=99)], cpus=8))) == {
        "ada": 4,
        "bob": 4,
    }


def test_every_container_of_a_session_is_charged() -> None:
    pending = [*flood(9, kernels=2), *flood(9, "bob", at=99)]
    assert owners(started(case("fair-share", pending, cpus=8))) == {"ada": 2, "bob": 4}


def test_every_factor_can_be_shown() -> None:
    usage = (used("project", "lab", 7), used("user", "lab/ada", 7, weight=0.0))
    known = fair_share_factors(replace(case("fair-share", flood(1)), usage=usage), GROUP)
    shown = {(each.scope, each.scope_id): each for each in known}
    assert [each.scope for each in known] == ["domain", "project", "user"]
    assert shown["domain", "default"].factor == 1.0
    half = shown["project", "lab"]
    assert half.normalised == pytest.approx(0.6931 / 2, rel=1e-3)
    assert half.factor == pytest.approx(2**-half.normalised)
    assert shown["user", "lab/ada"].factor == 0.0
    with pytest.raises(KeyError):
        fair_share_factors(case("fair-share", []), "gone")


def test_those_who_waited_too_long_come_first_in_their_band() -> None:
    old = session("old", at=-4 * DAY)
    pending = [
        *flood(3),
        old,
        session("high", at=5, priority=50),
        session("z", at=-9 * DAY, starts_at=0),
    ]
    assert planned(case("lifo", pending)).order == (
        "high",
        "old",
        "ada002",
        "ada001",
        "ada000",
        "z",
    )


@given(
    st.lists(st.integers(1, 3), min_size=2, max_size=4),
    st.integers(1, 12),
)
def test_shares_of_users_who_want_more_differ_by_one_task_at_most(
    tasks: list[int], cpus: int
) -> None:
    """Every user has more tasks of a size of their own than the cluster holds."""
    pending = [
        session(f"u{user}-{number}", {"cpu": size}, owner=f"u{user}", at=100 * user + number)
        for user, size in enumerate(tasks)
        for number in range(cpus + 1)
    ]
    answer = planned(case("drf", pending, cpus=cpus))
    sizes = {f"u{user}": size for user, size in enumerate(tasks)}
    held = dict.fromkeys(sizes, 0)
    for each in answer.placements:
        owner = each.session_id.partition("-")[0]
        least = min(held.values())
        assert held[owner] - least <= max(tasks)
        held[owner] += sizes[owner]
    if len(set(tasks)) == 1:
        assert max(held.values()) - min(held.values()) <= tasks[0]
