"""The edges of the rules: each row breaks when one comparison is turned or one term is dropped."""

from __future__ import annotations

from dataclasses import replace

import pytest

from spawner.scheduler.model import (
    Agent,
    Device,
    DeviceRules,
    DeviceShare,
    GroupPolicy,
    KernelPlacement,
    PreemptionRules,
    Reservation,
    RunningSession,
    SessionGroup,
    SessionRequest,
    Snapshot,
    Usage,
)
from spawner.scheduler.slots import MICRO
from tests.harness.snapshots import (
    ARCHITECTURE,
    GROUP,
    NOW,
    agent,
    quota,
    running,
    session,
    snapshot,
)

from .answers import planned, started, told

DAY = 86400.0
AGE = 3 * DAY
RISE = 7 * DAY


def ordered(
    pending: list[SessionRequest],
    sequencer: str = "lifo",
    usage: tuple[Usage, ...] = (),
    runs: tuple[RunningSession, ...] = (),
    nodes: tuple[Agent, ...] = (),
    **policy: object,
) -> str:
    """The order in which they are looked at, each named by one letter."""
    group = GroupPolicy(GROUP, sequencer, **policy)  # type: ignore[arg-type]
    there = nodes or (agent(has={"cpu": 8, "mem": "8g"}),)
    case = snapshot(there, pending, groups=[group], runs=runs)
    return "".join(planned(replace(case, usage=usage)).order)


def one(name: str, owner: str = "", **more: object) -> SessionRequest:
    return session(name, owner=owner or name, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("waited", "more", "order"),
    [
        pytest.param(AGE, {}, "ba", id="as long as ageing is not longer"),
        pytest.param(AGE + 1, {}, "ab", id="longer than ageing"),
        pytest.param(AGE + 1, {"starts_at": -AGE}, "ba", id="its time came later"),
        pytest.param(AGE + 1, {"starts_at": -AGE - 9}, "ab", id="its time came before"),
    ],
)
def test_who_has_aged(waited: float, more: dict[str, float], order: str) -> None:
    assert ordered([one("a", at=-waited, **more), one("b", at=0)]) == order


@pytest.mark.parametrize(
    ("waited", "policy", "order"),
    [
        pytest.param(RISE, {}, "ba", id="as long as rise is not longer"),
        pytest.param(RISE + 1, {}, "ab", id="longer than rise"),
        pytest.param(RISE + 1, {"rise": None}, "ba", id="never"),
        pytest.param(DAY + 1, {"rise": DAY, "ageing": DAY}, "ab", id="the larger of equal ones"),
        pytest.param(2 * DAY, {"rise": DAY}, "ba", id="not before it has aged"),
        pytest.param(2 * DAY, {"rise": 3 * DAY, "ageing": DAY}, "ba", id="not as soon as it aged"),
    ],
)
def test_who_has_risen(waited: float, policy: dict[str, float | None], order: str) -> None:
    pending = [one("a", at=-waited, priority=0), one("b", priority=100)]
    assert ordered(pending, **policy) == order  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wants", "order"),
    [
        pytest.param({"cpu": 1, "mem": "4g"}, "adeb", id="the second slot is the larger part"),
        pytest.param({"mem": "4g", "cpu": 1}, "adeb", id="the first slot is"),
    ],
)
def test_the_dominant_share_is_of_any_slot(wants: dict[str, object], order: str) -> None:
    """Half of the memory counts more than two times two of eight CPUs."""
    pending = [
        one("a", "ada", wants=wants),
        one("b", "ada", wants=wants, at=1),
        one("d", "bob", wants={"cpu": 2}, at=2),
        one("e", "bob", wants={"cpu": 2}, at=3),
    ]
    assert ordered(pending, "drf") == order


def test_every_container_and_everything_that_runs_counts_for_drf() -> None:
    """Ada holds three CPUs in two containers, bob two in one; cyd has no weight and goes last."""
    shares = [DeviceShare("cpu", "cpu", n * MICRO) for n in (1, 2)]
    kernels = tuple(KernelPlacement(f"k{n}", "a1", (s,)) for n, s in enumerate(shares))
    ada = replace(running("r1", owner="ada"), kernels=kernels)
    runs = (ada, running("r2", holds={"cpu": 2}, owner="bob"))
    nodes = (agent(has={"cpu": 8, "mem": "8g"}, used={"cpu": 5}),)
    pending = [one("a", "ada"), one("b", "bob", at=1), one("c", "cyd", at=-1)]
    assert ordered(pending, "drf", runs=runs, nodes=nodes, weights={"cyd": 0.0}) == "bac"


def test_two_containers_of_one_session_count_twice_for_drf() -> None:
    pending = [
        one("a", "ada", kernels=2),
        one("b", "ada", at=1),
        *(one(name, "bob", at=2) for name in "def"),
    ]
    assert ordered(pending, "drf") == "adebf"


def used(owner: str, cpu_days: float, at: float = 0.0, **more: object) -> Usage:
    amount = {"cpu": cpu_days * MICRO * DAY}
    return Usage("user", f"lab/{owner}", amount, NOW + at, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("usage", "order"),
    [
        pytest.param((used("a", 2), used("b", 1)), "ba", id="the less used first"),
        pytest.param((used("a", 2, -8 * DAY), used("b", 1)), "ab", id="half after a half-life"),
        pytest.param((used("a", 2, -6 * DAY), used("b", 1)), "ba", id="and not before"),
        pytest.param((used("a", 2, 7 * DAY), used("b", 3)), "ab", id="what is ahead does not grow"),
        pytest.param(
            (used("a", 2, resource_group="gone"), used("b", 1)), "ab", id="of another group"
        ),
        pytest.param((used("a", 2, resource_group=GROUP), used("b", 1)), "ba", id="of this one"),
        pytest.param(
            (used("a", 1), used("a", 1, resource_group=GROUP), used("b", 1.5)), "ba", id="the sum"
        ),
        pytest.param((used("a", 2, weight=3.0), used("b", 1)), "ab", id="over the weight"),
        pytest.param((used("a", 0.0, weight=0.0), used("b", 1)), "ba", id="without weight"),
    ],
)
def test_usage_orders_users(usage: tuple[Usage, ...], order: str) -> None:
    assert ordered([one("a"), one("b", at=1)], "fair-share", usage) == order


def test_what_starts_is_charged_for_its_run_time_an_hour_at_most() -> None:
    """Four sessions of ten minutes cost ada less than one of unknown length costs bob."""
    pending = [
        *(one(name, "ada", run_time=600, at=n) for n, name in enumerate("abcde")),
        *(one(name, "bob", at=9 + n) for n, name in enumerate("xy")),
    ]
    assert ordered(pending, "fair-share") == "axbcdey"
    longer = [replace(each, run_time=each.run_time and 5 * 3600.0) for each in pending]
    assert ordered(longer, "fair-share") == "axbycde"


def reserved(case: Snapshot) -> Reservation:
    (found,) = planned(case).reservations
    return found


@pytest.mark.parametrize(
    ("first", "second", "chosen"),
    [
        pytest.param({"cpu": 6}, {"cpu": 5}, "a2", id="the smaller part"),
        pytest.param({"cpu": 7}, {"cpu": 5, "mem": "29g"}, "a1", id="the fewer slots"),
        pytest.param({"cpu": 4, "mem": "30g"}, {"mem": "31g"}, "a1", id="just enough is enough"),
        pytest.param({"cpu": 6}, {"cpu": 6}, "a1", id="equal ones by agent id"),
    ],
)
def test_without_known_ends_the_node_that_lacks_least(
    first: dict[str, object], second: dict[str, object], chosen: str
) -> None:
    nodes = [agent("a1", used=first), agent("a2", used=second)]
    assert reserved(snapshot(nodes, [session(wants={"cpu": 4, "mem": "4g"})])).agent_ids == (
        chosen,
    )


def test_it_waits_for_those_who_hold_what_it_lacks_and_end_in_time() -> None:
    runs = [
        running("cpu", holds={"cpu": 4}, ends=20),
        running("mem", holds={"mem": "1g"}, ends=10),
        running("late", holds={"cpu": 1}, ends=21),
        running("ever", holds={"cpu": 1}),
    ]
    case = snapshot([agent(used={"cpu": 6, "mem": "1g"})], [session(wants={"cpu": 6})], runs=runs)
    assert told(case, "s1").starts_at == NOW + 20
    assert told(case, "s1").waits_for == ("cpu",)


def test_the_start_is_when_the_last_slot_is_there() -> None:
    runs = [
        running("cpu", holds={"cpu": 8}, ends=10),
        running("mem", holds={"mem": "32g"}, ends=20),
        running("more", holds={"cpu": 0}, ends=30),
    ]
    case = snapshot([agent(used={"cpu": 8, "mem": "32g"})], [session()], runs=runs)
    assert told(case, "s1").starts_at == NOW + 10
    asked = session(wants={"cpu": 1, "mem": "1g"})
    assert told(replace(case, pending=(asked,)), "s1").starts_at == NOW + 20


def shares(*free: float) -> Agent:
    """GPUs that are given out in shares, with this much free of each."""
    gpus = (
        Device("cuda.shares", f"cuda{n}", MICRO, round(part * MICRO)) for n, part in enumerate(free)
    )
    return Agent("a1", GROUP, ARCHITECTURE, tuple(gpus))


WHOLE = GroupPolicy(GROUP, devices=DeviceRules(unfragmented=True))


@pytest.mark.parametrize(
    ("free", "amount", "devices"),
    [
        pytest.param((0.2, 0.6), 0.8, ["cuda1"], id="the one that lacks less"),
        pytest.param((0.6, 0.2), 0.8, ["cuda0"], id="the same the other way round"),
        pytest.param((0.5, 0.1, 0.4), 1.8, ["cuda0", "cuda2"], id="two that lack least"),
    ],
)
def test_a_reservation_is_for_the_devices_that_lack_least(
    free: tuple[float, ...], amount: float, devices: list[str]
) -> None:
    case = snapshot([shares(*free)], [session(wants={"cuda.shares": amount})], groups=[WHOLE])
    (cuts,) = reserved(case).cuts
    assert [each.device_id for each in cuts] == devices


def victim(name: str, device: int, part: float, **changes: object) -> RunningSession:
    share = DeviceShare("cuda.shares", f"cuda{device}", round(part * MICRO))
    kernels = (KernelPlacement(f"{name}-k", "a1", (share,)),)
    return replace(running(name), kernels=kernels, **changes)  # type: ignore[arg-type]


def test_victims_free_one_device_where_a_share_may_not_be_scattered() -> None:
    """Any two of the three give back enough; only those on one device help."""
    runs = [victim("x", 0, 0.5), victim("y", 1, 0.5), victim("z", 1, 0.5)]
    asked = session(wants={"cuda.shares": 1}, priority=50)
    rules = PreemptionRules("oldest")
    case = snapshot([shares(0, 0)], [asked], groups=[replace(WHOLE, preemption=rules)], runs=runs)
    assert sorted(e.victim_id for e in planned(case).preemptions) == ["y", "z"]
    plain = replace(case, groups=(GroupPolicy(GROUP, preemption=rules),))
    assert sorted(e.victim_id for e in planned(plain).preemptions) == ["x", "y"]


def ended(
    nodes: list[Agent], runs: list[RunningSession], wants: dict[str, object], **rules: object
) -> list[str]:
    group = GroupPolicy(GROUP, preemption=PreemptionRules(**rules))  # type: ignore[arg-type]
    case = snapshot(nodes, [session(wants=wants, priority=50)], groups=[group], runs=runs)
    return sorted(each.victim_id for each in planned(case).preemptions)


FULL = [agent("a1", used={"cpu": 8}), agent("a2", used={"cpu": 8})]


@pytest.mark.parametrize(
    ("runs", "victims"),
    [
        pytest.param(
            [
                running("a", "a1", {"cpu": 8}, priority=9),
                running("b", "a2", {"cpu": 8}, priority=8),
            ],
            ["b"],
            id="the lowest highest priority",
        ),
        pytest.param(
            [
                running("a", "a1", {"cpu": 2}, priority=1),
                running("b", "a1", {"cpu": 2}, priority=9),
                running("c", "a2", {"cpu": 2}, priority=8),
                running("d", "a2", {"cpu": 2}, priority=8),
            ],
            ["c", "d"],
            id="the highest of them, not the lowest",
        ),
        pytest.param(
            [
                running("a", "a1", {"cpu": 2}),
                running("b", "a1", {"cpu": 2}),
                running("c", "a2", {"cpu": 8}),
            ],
            ["c"],
            id="the fewest",
        ),
        pytest.param(
            [running("a", "a1", {"cpu": 8}), running("b", "a2", {"cpu": 4})],
            ["b"],
            id="the smallest",
        ),
        pytest.param(
            [running("a", "a1", {"cpu": 4}), running("b", "a2", {"cpu": 4})],
            ["a"],
            id="the smaller agent id",
        ),
    ],
)
def test_on_which_node_victims_end(runs: list[RunningSession], victims: list[str]) -> None:
    assert ended(FULL, runs, {"cpu": 4}) == victims


@pytest.mark.parametrize(
    ("changes", "rules", "victims"),
    [
        pytest.param({"started_at": NOW - 60}, {"minimum_run_time": 60.0}, ["r"], id="long enough"),
        pytest.param({"started_at": NOW - 59}, {"minimum_run_time": 60.0}, [], id="not yet"),
        pytest.param({"domain": "other"}, {"scope": "domain"}, [], id="another domain"),
        pytest.param({"domain": "other"}, {"scope": "project"}, ["r"], id="a domain is no project"),
        pytest.param({"project_id": "other"}, {"scope": "project"}, [], id="another project"),
        pytest.param({"project_id": "other"}, {"scope": "domain"}, ["r"], id="the same domain"),
        pytest.param({"owner_id": "bob"}, {"scope": "user"}, [], id="another user"),
        pytest.param({"owner_id": "bob"}, {}, ["r"], id="the same group"),
        pytest.param({"claimed_by": "else"}, {}, [], id="already for another"),
        pytest.param({"ending": True, "claimed_by": "else"}, {}, [], id="what it leaves too"),
    ],
)
def test_who_may_end(
    changes: dict[str, object], rules: dict[str, object], victims: list[str]
) -> None:
    run = replace(running("r", holds={"cpu": 8}), **changes)  # type: ignore[arg-type]
    assert ended(FULL[:1], [run], {"cpu": 4}, **rules) == victims


@pytest.mark.parametrize(
    ("order", "victims"),
    [("smallest-resources", ["bytes"]), ("fewest-sessions", ["cpus"])],
)
def test_sizes_are_parts_of_what_the_group_has(order: str, victims: list[str]) -> None:
    """Two gigabytes of thirty-two are less than one of eight CPUs, and a larger number."""
    runs = [running("cpus", holds={"cpu": 1}), running("bytes", holds={"mem": "2g"})]
    node = agent(used={"cpu": 1, "mem": "2g"}, containers=2, max_containers=2)
    assert ended([node], runs, {"cpu": 1}, order=order) == victims


@pytest.mark.parametrize(
    ("limits", "starts"),
    [
        pytest.param(quota(limit={"cpu": 4}, held={"cpu": 2}), True, id="up to the limit"),
        pytest.param(quota(limit={"cpu": 4}, held={"cpu": 3}), False, id="beyond it"),
        pytest.param(quota(sessions=2, running=1), True, id="the last session"),
        pytest.param(quota(sessions=2, running=2), False, id="one more"),
        pytest.param(replace(quota(), max_containers=2), True, id="as many containers"),
        pytest.param(replace(quota(), max_containers=1), False, id="too many"),
    ],
)
def test_a_limit_may_be_reached_and_not_passed(limits: object, starts: bool) -> None:
    asked = session(wants={"cpu": 1}, kernels=2)
    case = snapshot([agent()], [asked], quotas=[limits])  # type: ignore[list-item]
    assert bool(started(case)) == starts


@pytest.mark.parametrize(("starts_at", "starts"), [(0.0, True), (0.001, False)])
def test_its_time_has_come_at_that_moment(starts_at: float, starts: bool) -> None:
    assert bool(started(snapshot([agent()], [session(starts_at=starts_at)]))) == starts


def test_members_of_a_session_group_in_another_resource_group_rule_nothing_out() -> None:
    """Found by the properties: a strict pack would otherwise wait for ever for a node that it cannot have."""
    pack = SessionGroup("g", "pack", strict=True)
    groups = [GroupPolicy(GROUP), GroupPolicy("west")]
    nodes = [agent("a1"), agent("a2", used={"cpu": 1}, group="west")]
    member = running("r", "a2", group="west", circle=pack)
    asked = replace(session(), session_group=pack)
    assert started(snapshot(nodes, [asked], groups=groups, runs=[member])) == {"s1": "a1"}


def test_whoever_holds_a_slot_of_which_there_is_just_enough_is_not_waited_for() -> None:
    runs = [
        running("cpu", holds={"cpu": 4}, ends=10),
        running("mem", holds={"mem": "32g"}, ends=10),
    ]
    node = agent(used={"cpu": 4, "mem": "32g"})
    asked = session(wants={"cpu": 4, "mem": "1g"})
    assert told(snapshot([node], [asked], runs=runs), "s1").waits_for == ("mem",)


def test_a_slot_of_which_nothing_is_there_costs_nothing() -> None:
    nothing = Device("cuda.device", "cuda0", 0, 0)
    node = replace(agent(), devices=(*agent().devices, nothing))
    usage = (used("a", 1), used("b", 2))
    for sequencer in ("drf", "fair-share"):
        assert ordered([one("a"), one("b", at=1)], sequencer, usage, nodes=(node,)) == "ab"


def test_a_cluster_by_rules_starts_when_the_last_of_its_nodes_has_a_device() -> None:
    """What got free on the first node stays free until the second one has it, too."""
    nodes = [replace(shares(0, 0.5), agent_id=name) for name in ("a1", "a2")]
    runs = [
        replace(
            victim(name, 0, 1.0, ends_at=NOW + ends),
            kernels=(KernelPlacement(name, home, (DeviceShare("cuda.shares", "cuda0", MICRO),)),),
        )
        for name, home, ends in (("x", "a1", 10), ("y", "a2", 20))
    ]
    asked = session(wants={"cuda.shares": 1}, kernels=2, cluster_mode="multi-node")
    assert told(snapshot(nodes, [asked], groups=[WHOLE], runs=runs), "s1").starts_at == NOW + 20
