"""Who may pass whom: a waiting session keeps what it waits for, and nothing else."""

from __future__ import annotations

from tests.harness.snapshots import agent, session, snapshot

from .answers import reasons, started, told

GPU = {"cpu": 8, "mem": "32g", "cuda.device": 1}


def test_nobody_passes_a_head_where_it_is_to_start() -> None:
    """Nobody knows when either node gets free, so the first one is reserved, and the other is not."""
    nodes = [agent("a1", used={"cpu": 4}), agent("a2", used={"cpu": 4})]
    pending = [session("head", {"cpu": 8}, at=1), *(session(f"s{n}", at=2 + n) for n in range(5))]
    case = snapshot(nodes, pending)
    assert started(case) == dict.fromkeys(["s0", "s1", "s2", "s3"], "a2")
    assert told(case, "head").message == "queued, first in line: waiting for 4 CPUs"
    small = told(case, "s4")
    assert (
        small.message == "queued, second in line: waiting for 1 CPU kept for a session ahead of it"
    )
    assert reasons(small) == {"capacity": 1, "queue": 1}


def test_a_lower_band_does_not_pass_either() -> None:
    case = snapshot(
        [agent(used={"cpu": 4})], [session("head", {"cpu": 8}), session("low", priority=0)]
    )
    assert started(case) == {}


def test_agents_that_the_head_cannot_use_are_free_for_others() -> None:
    nodes = [agent("big", has={"cpu": 16, "mem": "8g"}, used={"cpu": 8}), agent("small")]
    case = snapshot(nodes, [session("head", {"cpu": 12}, at=1), session("next", {"cpu": 6}, at=2)])
    assert started(case) == {"next": "small"}


def test_a_designated_head_blocks_its_own_agent_only() -> None:
    nodes = [agent("a1", used={"cpu": 7}), agent("a2", used={"cpu": 7})]
    head = session("head", {"cpu": 2}, at=1, designated=["a1"])
    assert started(snapshot(nodes, [head, session("next", at=2)])) == {"next": "a2"}


def test_a_gpu_starved_head_lets_cpu_sessions_go_on() -> None:
    """They may take CPUs down to the two that the head needs next to its GPU, no further."""
    node = agent("gpu", has=GPU, used={"cuda.device": 1})
    head = session("head", {"cpu": 2, "cuda.device": 1}, at=1)
    pending = [head, *(session(f"cpu{number}", at=2 + number) for number in range(8))]
    case = snapshot([node], pending)
    assert sorted(started(case)) == [f"cpu{number}" for number in range(6)]
    assert told(case, "head").message == "queued, first in line: waiting for 1 GPU"


def test_a_session_without_the_slot_in_short_supply_goes_on() -> None:
    node = agent(used={"mem": "31g"})
    pending = [session("head", {"mem": "2g"}, at=1), session("next", {"cpu": 8}, at=2)]
    assert started(snapshot([node], pending)) == {"next": "a1"}


def test_every_waiting_session_keeps_its_own_needs() -> None:
    """The second in line is not starved by the third any more than the first is by the second."""
    node = agent(
        has={"cpu": 8, "mem": "8g", "cuda.device": 1},
        used={"cpu": 4, "cuda.device": 1, "mem": "8g"},
    )
    pending = [
        session("gpu", {"cuda.device": 1}, at=1),
        session("mem", {"mem": "1g", "cpu": 4}, at=2),
        session("cpu", {"cpu": 1}, at=3),
    ]
    case = snapshot([node], pending)
    assert started(case) == {}
    assert told(case, "cpu").position == 3


def test_the_container_limit_is_kept_as_well() -> None:
    node = agent(containers=1, max_containers=3)
    case = snapshot([node], [session("head", kernels=3, at=1), session("next", at=2)])
    assert started(case) == {}
    assert (
        told(case, "head").message
        == "queued, first in line: waiting for room for one more container"
    )


def test_an_impossible_session_blocks_nobody_and_has_no_place_in_the_line() -> None:
    pending = [
        session("never", {"cpu": 64}, at=1),
        session("fits", {"cpu": 8}, at=2),
        session("next", at=3),
    ]
    case = snapshot([agent()], pending)
    assert started(case) == {"fits": "a1"}
    assert told(case, "next").message == "queued, first in line: waiting for 1 CPU"


def test_groups_do_not_touch_each_other() -> None:
    from spawner.scheduler.model import GroupPolicy

    nodes = [agent("a1", group="east", used={"cpu": 4}), agent("a2", group="west")]
    pending = [session("head", {"cpu": 8}, group="east", at=1), session("next", group="west", at=2)]
    groups = [GroupPolicy("west"), GroupPolicy("east")]
    assert started(snapshot(nodes, pending, groups=groups)) == {"next": "a2"}


def test_a_flood_of_small_sessions_does_not_starve_a_big_one() -> None:
    """Sessions end and small ones keep coming; the big one starts once the sessions before it are gone."""
    running = 8
    for turn in range(8):
        node = agent(used={"cpu": running})
        case = snapshot(
            [node],
            [session("big", {"cpu": 8}), *(session(f"s{turn}{n}", at=n + 1) for n in range(9))],
        )
        assert started(case) == {}, "a small one slipped past"
        running -= 1
    assert "big" in started(snapshot([agent()], [session("big", {"cpu": 8}), session("s", at=1)]))
