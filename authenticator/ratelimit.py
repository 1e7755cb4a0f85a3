"""How often somebody may ask: a rolling window per access key, and back-off after failed log-ins.

Both live in memory, are bounded in size and are told the time.
"""

import datetime as dt
from collections import OrderedDict, deque
from dataclasses import dataclass

from authenticator.problems import RateLimited

WINDOW_SECONDS = 900
BUCKET_SECONDS = 15
"""The window moves in steps of this size: 60 counters a key, whatever its rate."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """What is left of a key's rate limit after a request was counted."""

    limit: int
    remaining: int

    def headers(self) -> dict[str, str]:
        """The response headers that tell the client."""
        return {
            "X-RateLimit-Limit": str(self.limit),
            "X-RateLimit-Remaining": str(self.remaining),
            "X-RateLimit-Window": str(WINDOW_SECONDS),
        }


class RequestRates:
    """Requests of each access key in the last 15 minutes (to 15 seconds)."""

    def __init__(self, max_keys: int = 10_000) -> None:
        self._max_keys = max_keys
        self._counts: OrderedDict[str, deque[list[int]]] = OrderedDict()

    def count(self, access_key: str, limit: int, now: dt.datetime) -> Allowance:
        """Count one request; raises ``RateLimited`` when ``limit`` requests were already made in the window."""
        bucket = int(now.timestamp()) // BUCKET_SECONDS
        counts = self._counts.setdefault(access_key, deque())
        self._counts.move_to_end(access_key)
        if len(self._counts) > self._max_keys:
            self._counts.popitem(last=False)
        oldest = bucket - WINDOW_SECONDS // BUCKET_SECONDS
        while counts and counts[0][0] <= oldest:
            counts.popleft()
        used = sum(number for _, number in counts)
        if used >= limit:
            first = counts[0][0] if counts else bucket
            wait = (first - oldest) * BUCKET_SECONDS - now.timestamp() % BUCKET_SECONDS
            raise RateLimited(
                f"{limit} requests in {WINDOW_SECONDS // 60} minutes are allowed for this key",
                retry_after=max(wait, 1.0),
            )
        if counts and counts[-1][0] == bucket:
            counts[-1][1] += 1
        else:
            counts.append([bucket, 1])
        return Allowance(limit, limit - used - 1)


@dataclass(slots=True)
class _Failures:
    number: int
    last: dt.datetime


class LoginThrottle:
    """Back-off after failed log-ins under one key (a user name or an address).

    The first ``free`` failures cost nothing; each further one doubles the wait, up to ``longest``.
    Failures are forgotten after ``forget`` without another attempt, and the longest unused keys first
    when more than ``max_keys`` are known.
    """

    def __init__(
        self,
        free: int,
        longest: dt.timedelta = dt.timedelta(minutes=1),
        forget: dt.timedelta = dt.timedelta(minutes=15),
        max_keys: int = 10_000,
    ) -> None:
        self._free = free
        self._longest = longest
        self._forget = forget
        self._max_keys = max_keys
        self._failures: OrderedDict[str, _Failures] = OrderedDict()

    def wait(self, key: str, now: dt.datetime) -> dt.timedelta:
        """How long this key must still wait; zero when it may try."""
        entry = self._failures.get(key)
        if entry is None:
            return dt.timedelta()
        if now - entry.last >= self._forget:
            del self._failures[key]
            return dt.timedelta()
        if entry.number < self._free:
            return dt.timedelta()
        doublings = min(entry.number - self._free, 20)
        pause = min(dt.timedelta(seconds=2**doublings), self._longest)
        return max(entry.last + pause - now, dt.timedelta())

    def attempt(self, key: str, now: dt.datetime) -> None:
        """Count an attempt as failed before its outcome is known, so that parallel guesses count."""
        entry = self._failures.pop(key, None)
        number = 0 if entry is None or now - entry.last >= self._forget else entry.number
        self._failures[key] = _Failures(number + 1, now)
        if len(self._failures) > self._max_keys:
            self._failures.popitem(last=False)

    def succeeded(self, key: str) -> None:
        """Forget the failures of a key."""
        self._failures.pop(key, None)

    def refund(self, key: str) -> None:
        """Take one attempt back that did not fail after all."""
        entry = self._failures.get(key)
        if entry is not None:
            entry.number -= 1
            if entry.number <= 0:
                del self._failures[key]
