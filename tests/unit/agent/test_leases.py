"""Leases: when they are over, across restarts of the agent, and what was ended because of them."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from spawner.agent.leases import Leases
from spawner.agent.protocol import Wanted
from tests.unit.agent.test_kernels import SPEC

LEASED = replace(SPEC, lease=90.0)
FREE = replace(SPEC, kernel_id="free")


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "leases.json"


def test_a_lease_is_over_after_its_time_without_a_word(path: Path, clock: Clock) -> None:
    leases = Leases(path, clock)
    leases.renew(Wanted((LEASED, FREE), ()))
    clock.now += 89
    assert leases.over() == []
    leases.renew(Wanted((LEASED, FREE), ()))
    clock.now += 89
    assert leases.over() == []
    clock.now += 1
    assert leases.over() == [LEASED.kernel_id]


def test_an_agent_that_starts_again_does_not_count_anew(path: Path, clock: Clock) -> None:
    Leases(path, clock).renew(Wanted((LEASED,), ()))
    clock.now += 60
    again = Leases(path, clock)
    assert again.over() == []
    clock.now += 30
    assert again.over() == Leases(path, clock).over() == [LEASED.kernel_id]


def test_a_clock_that_went_back_does_not_make_leases_longer(path: Path, clock: Clock) -> None:
    Leases(path, clock).renew(Wanted((LEASED,), ()))
    clock.now -= 5000
    again = Leases(path, clock)
    clock.now += 90
    assert again.over() == [LEASED.kernel_id]


def test_the_time_that_counts_is_one_that_nobody_sets(path: Path) -> None:
    leases = Leases(path)
    leases.renew(Wanted((LEASED,), ()))
    heard = json.loads(path.read_text())["heard"]
    assert 0 <= time.clock_gettime(time.CLOCK_BOOTTIME) - heard < 60
    assert leases.over() == Leases(path).over() == []


def test_what_was_heard_before_the_host_booted_does_not_end_anything(
    path: Path, clock: Clock
) -> None:
    Leases(path, clock).renew(Wanted((LEASED,), ()))
    clock.now = 5.0
    assert Leases(path, clock).over() == []


def test_without_leases_nothing_is_written(path: Path, clock: Clock) -> None:
    leases = Leases(path, clock)
    leases.renew(Wanted((FREE,), ()))
    assert not path.exists()
    leases.renew(Wanted((LEASED,), ()))
    leases.renew(Wanted((FREE,), ()))
    clock.now += 1000
    assert Leases(path, clock).over() == []


def test_ended_runs_are_known_until_the_manager_has_recorded_it(
    path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    leases = Leases(path, clock)
    leases.renew(Wanted((LEASED,), ()))
    for _ in range(3):  # as long as it takes to end it
        leases.fence(LEASED.kernel_id, 1)
    assert caplog.text.count("its lease is over") == 1
    assert Leases(path, clock).fenced == {LEASED.kernel_id: 1}
    leases.renew(Wanted((LEASED,), ()))
    leases.renew(Wanted((), ((LEASED.kernel_id, 1),)))
    assert Leases(path, clock).fenced == {LEASED.kernel_id: 1}
    leases.renew(Wanted((replace(LEASED, epoch=2),), ()))
    assert Leases(path, clock).fenced == {}


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"heard": null, "leases": {}}', '{"leases": 1}', "\x00"]
)
def test_a_file_that_cannot_be_read_is_told_of(
    path: Path, clock: Clock, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_text(content)
    assert Leases(path, clock).over() == []
    assert "cannot be read" in caplog.text


def test_a_folder_that_cannot_be_written_is_told_of(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    leases = Leases(tmp_path / "nowhere/leases.json", clock)
    leases.renew(Wanted((LEASED,), ()))
    assert "cannot be written" in caplog.text
    clock.now += 90
    assert leases.over() == [LEASED.kernel_id]
