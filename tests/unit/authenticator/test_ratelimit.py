"""The rolling window of requests, and bounded memories."""

import datetime as dt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from authenticator.problems import RateLimited
from authenticator.ratelimit import BUCKET_SECONDS, WINDOW_SECONDS, LoginThrottle, RequestRates

START = dt.datetime(2026, 11, 23, 12, 0, tzinfo=dt.UTC)


def after(seconds: float) -> dt.datetime:
    return START + dt.timedelta(seconds=seconds)


def test_the_rest_is_told_and_keys_are_apart() -> None:
    rates = RequestRates()
    assert rates.count("a", 3, START).headers() == {
        "X-RateLimit-Limit": "3",
        "X-RateLimit-Remaining": "2",
        "X-RateLimit-Window": "900",
    }
    assert rates.count("a", 3, after(1)).remaining == 1
    assert rates.count("b", 3, after(1)).remaining == 2
    assert rates.count("a", 3, after(2)).remaining == 0
    with pytest.raises(RateLimited) as limited:
        rates.count("a", 3, after(3))
    assert limited.value.retry_after == pytest.approx(WINDOW_SECONDS - 3)
    assert rates.count("a", 3, after(WINDOW_SECONDS)).remaining == 2


@settings(max_examples=40)
@given(st.lists(st.floats(0, 200), min_size=1, max_size=60), st.integers(1, 10))
def test_no_window_holds_more_than_the_limit_and_none_is_refused_early(
    gaps: list[float], limit: int
) -> None:
    rates, time = RequestRates(), 0.0
    allowed: list[float] = []
    refusals: list[RateLimited] = []
    for gap in gaps:
        time += gap
        try:
            rates.count("a", limit, after(time))
        except RateLimited as limited:
            refusals.append(limited)
            recent = [at for at in allowed if at > time - WINDOW_SECONDS - BUCKET_SECONDS]
            assert len(recent) >= limit
        else:
            allowed.append(time)
    waits = [refusal.retry_after or 0 for refusal in refusals]
    assert all(1 <= wait <= WINDOW_SECONDS + BUCKET_SECONDS for wait in waits)
    for at in allowed:
        inside = [x for x in allowed if at - (WINDOW_SECONDS - BUCKET_SECONDS) < x <= at]
        assert len(inside) <= limit


def test_memory_is_bounded() -> None:
    rates = RequestRates(max_keys=3)
    for key in "abcd":
        rates.count(key, 2, START)
    assert rates.count("a", 2, START).remaining == 1  # forgotten: the oldest of four
    assert rates.count("d", 2, START).remaining == 0
    throttle = LoginThrottle(free=1, max_keys=3)
    for key in "abcd":
        throttle.attempt(key, START)
    assert [throttle.wait(key, START).total_seconds() for key in "abcd"] == [0, 1, 1, 1]


def test_failures_are_forgotten() -> None:
    throttle = LoginThrottle(free=1)
    throttle.attempt("a", START)
    assert throttle.wait("a", START).total_seconds() == 1
    assert throttle.wait("a", after(900)).total_seconds() == 0
    throttle.attempt("a", START)
    throttle.refund("a")
    assert throttle.wait("a", START).total_seconds() == 0
