"""Durations and times as people write them: seconds, ``"90s"``, ``"2h"``, ``"7d"``, or ISO 8601."""

from __future__ import annotations

import contextlib
import datetime as dt
import re

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d|w)?")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
LONGEST = 10 * 365 * 86400.0
"""Seconds; longer durations are mistakes."""


def seconds_of(value: object) -> float:
    """The seconds that ``value`` says. Raises ``ValueError`` with a sentence."""
    number: float
    if isinstance(value, str):
        found = _DURATION.fullmatch(value.strip())
        number = float(found.group(1)) * _SECONDS[found.group(2) or "s"] if found else -1.0
    elif isinstance(value, int | float) and not isinstance(value, bool):
        number = value
    else:
        number = -1.0
    if not 0 <= number < LONGEST:
        raise ValueError(f'{str(value)[:80]!r}: a duration such as 90, "90s", "2h" or "7d"')
    return float(number)


def moment(text: str, now: dt.datetime) -> dt.datetime | None:
    """The time that ``text`` says: ISO 8601 (UTC unless it says otherwise), or a duration from now."""
    with contextlib.suppress(ValueError):  # no duration, so a time
        return now + dt.timedelta(seconds=seconds_of(text))
    try:
        at = dt.datetime.fromisoformat(text.strip())
        return at.replace(tzinfo=dt.UTC) if at.tzinfo is None else at.astimezone(dt.UTC)
    except (ValueError, OverflowError):  # the latter: in UTC it is in the year 0 or 10000
        return None
