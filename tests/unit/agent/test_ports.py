"""The pool of ports for apps: each at most once, and again only after it has cooled down."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from spawner.agent.ports import PoolExhausted, PortPool, parse_range


class Clock:
    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self) -> float:
        return self.at


def test_the_port_that_was_free_longest_comes_first() -> None:
    clock = Clock()
    pool = PortPool(range(30000, 30003), 60, clock)
    assert [pool.take() for _ in range(3)] == [30000, 30001, 30002]
    pool.give_back(30001)
    clock.at = 10
    pool.give_back(30000)
    with pytest.raises(PoolExhausted, match="try again in 50 s"):
        pool.take()
    clock.at = 60
    assert pool.take() == 30001
    with pytest.raises(PoolExhausted, match="cooling down"):
        pool.take()
    clock.at = 70
    assert pool.take() == 30000
    with pytest.raises(PoolExhausted, match="all 3 ports"):
        pool.take()


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 100)), max_size=60))
@example([(True, 0.0)] * 5 + [(False, 77.80019899831179), (True, 59.99999999999999)])
def test_no_port_is_out_twice_or_rests_too_short(steps: list[tuple[bool, float]]) -> None:
    clock = Clock()
    pool = PortPool(range(30000, 30005), 60, clock)
    out: list[int] = []
    freed: dict[int, float] = {}
    for taking, seconds in steps:
        clock.at += seconds
        if taking:
            try:
                port = pool.take()
            except PoolExhausted:
                continue
            assert port not in out
            assert clock.at - freed.get(port, float("-inf")) >= 60
            out.append(port)
        elif out:
            port = out.pop(0)
            freed[port] = clock.at
            pool.give_back(port)


@pytest.mark.parametrize(
    "text", ["", "30000", "31000-30000", "80-90", "30000-70000", "a-b", "1-2-3"]
)
def test_ranges_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="1024-65535"):
        parse_range(text)


def test_a_range() -> None:
    assert parse_range("30000-31000") == range(30000, 31001)
