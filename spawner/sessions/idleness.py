"""When a session counts as idle: pure checkers. Values come in, verdicts with the seconds left come out.

Times are seconds since the epoch. A checker that lacks data answers None: it decides nothing.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from spawner.sessions.durations import seconds_of

LIFETIME, NETWORK, UTILIZATION = "session_lifetime", "network_timeout", "utilization"
GRACE, EXPIRES = "grace_period", "expire_after"
REASONS = {
    LIFETIME: "idle-session-lifetime",
    NETWORK: "idle-timeout",
    UTILIZATION: "idle-utilization",
}
"""Backend.AI's reasons, by checker."""
CAUSES = {
    LIFETIME: "its run time is nearly over",
    NETWORK: "nobody is connected to it",
    UTILIZATION: "it uses too little of what it holds",
}
"""Why a session will end, for its owner, by checker."""
OPERATORS = ("and", "or")
FRESH = 120.0
"""Seconds after which a measure is too old to decide anything."""
SETTLE = 30.0
"""Seconds that connections have to come back after the manager does."""
PARTS = 60
"""Into so many parts a window is divided; each keeps a mean."""
ENOUGH = 0.8
"""The part of a window that must have been measured."""
_METRIC = re.compile(r"cpu_util|mem|[a-z][a-z0-9-]{0,30}_(?:util|mem)")
_FIELDS = ("warn_before", "extensions", "utilization", "new_user_grace")
_USE_FIELDS = ("thresholds", "operator", "window", "initial_grace")
_SHOWN = 80


@dataclass(frozen=True, slots=True)
class Utilization:
    """Thresholds in percent by metric: ``and`` ends what is below all of them, ``or`` below any."""

    thresholds: Mapping[str, float]
    operator: str = "and"
    window: float = 3600.0
    initial_grace: float = 600.0

    def of(self, slots: Iterable[str]) -> dict[str, float]:
        """The thresholds of what a session holds; those of other resources are ignored."""
        held = {slot.partition(".")[0] for slot in slots}
        return {
            each: least for each, least in self.thresholds.items() if each.partition("_")[0] in held
        }


@dataclass(frozen=True, slots=True)
class Checks:
    """What a policy says of idle sessions (``idle_checks``)."""

    warn_before: float = 300.0
    extensions: int | None = 3
    """How often an owner may extend one session; None: without bound."""
    utilization: Utilization | None = None
    new_user_grace: float = 0.0
    """Seconds after an owner's account was made in which nothing counts as idleness."""


@dataclass(frozen=True, slots=True)
class Activity:
    """What was measured of a session's connections: since when there is none, in seconds."""

    measured_at: float
    quiet: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """Seconds left (none: 0 or below) of ``limit``."""

    remaining: float
    limit: float
    kind: str = EXPIRES
    extra: Mapping[str, Any] | None = None
    hard: bool = False
    """The end comes in time even when the warning came late."""


class Step(enum.Enum):
    """What a verdict leads to."""

    NOTHING = "nothing"
    WARN = "warn"
    CLEAR = "clear"
    """The warning that was given holds no more."""
    END = "end"


@dataclass(slots=True)
class Window:
    """Means of percents in parts of a window: ``[part, samples, {metric: sum}]``, oldest first."""

    length: float
    parts: list[list[Any]] = field(default_factory=list)

    @property
    def width(self) -> float:
        """Seconds of one part."""
        return self.length / PARTS

    def add(self, at: float, percents: Mapping[str, float]) -> None:
        """Add a sample, and forget what lies before the window."""
        part = int(at // self.width)
        self.parts = [each for each in self.parts if part - PARTS < each[0] <= part]
        if not self.parts or self.parts[-1][0] != part:
            self.parts.append([part, 0, {}])
        last = self.parts[-1]
        last[1] += 1
        last[2] = {each: last[2].get(each, 0.0) + value for each, value in percents.items()}

    def means(self, metrics: Iterable[str], since: float, now: float) -> dict[str, float] | None:
        """The mean of each metric since ``since``; None when too little of that time was measured."""
        begin = max(since, now - self.length)
        wanted = set(metrics)
        inside = [
            each
            for each in self.parts
            if each[0] >= int(begin // self.width) and wanted <= each[2].keys()
        ]
        if not inside or len(inside) < ENOUGH * int((now - begin) // self.width):
            return None
        return {
            metric: sum(each[2][metric] / each[1] for each in inside) / len(inside)
            for metric in sorted(wanted)
        }


def session_lifetime(started_at: float, ends_at: float | None, now: float) -> Verdict | None:
    """How long a session may still run."""
    return None if ends_at is None else Verdict(ends_at - now, ends_at - started_at, hard=True)


def network_timeout(
    timeout: float | None,
    session_type: str,
    activity: Activity | None,
    *,
    since: float,
    resumed_at: float,
    now: float,
) -> Verdict | None:
    """How long an interactive session may still be without a connection, counted from ``since`` at the earliest.

    ``resumed_at`` is when this manager began to look, or went on after a pause: who was cut off by the pause
    needs a moment to come back, so only what was measured after that counts.
    """
    if not timeout or session_type != "interactive" or activity is None:
        return None
    if activity.measured_at < resumed_at + SETTLE or now - activity.measured_at > FRESH:
        return None
    if now < since:
        return Verdict(since + timeout - now, timeout, GRACE)
    quiet = min(activity.quiet, activity.measured_at - since)
    if quiet <= 0:
        return Verdict(timeout, timeout)
    return Verdict(timeout - quiet - max(now - activity.measured_at, 0.0), timeout)


def utilization(
    rules: Utilization | None,
    window: Window,
    slots: Iterable[str],
    *,
    since: float,
    now: float,
) -> Verdict | None:
    """How long a session may still use less than the thresholds; its window begins at ``since``."""
    thresholds = {} if rules is None else rules.of(slots)
    if rules is None or not thresholds:
        return None
    if now < since:
        return Verdict(since + rules.window - now, rules.window, GRACE, {"resources": {}})
    means = window.means(thresholds, since, now)
    newest = (window.parts[-1][0] + 1) * window.width if window.parts else 0.0
    if means is None or now - newest > FRESH:
        return None
    below = [means[each] < least for each, least in thresholds.items()]
    idle = all(below) if rules.operator == "and" else any(below)
    extra = {
        "resources": {each: [round(means[each], 2), least] for each, least in thresholds.items()}
    }
    left = max(since + rules.window - now, 0.0) if idle else rules.window
    return Verdict(left, rules.window, EXPIRES, extra)


def lead(verdict: Verdict, warn_before: float) -> float:
    """How long before the end its owner is warned: at most half of the limit."""
    return min(warn_before, verdict.limit / 2)


def decide(verdict: Verdict, warned_at: float | None, warn_before: float, now: float) -> Step:
    """No session ends as idle of which its owner was not warned long enough ago."""
    ahead = lead(verdict, warn_before)
    if verdict.remaining > ahead:
        return Step.NOTHING if warned_at is None else Step.CLEAR
    if warned_at is None:
        return Step.WARN
    if verdict.remaining <= 0 and now - warned_at >= ahead:
        return Step.END
    return Step.NOTHING


def deadline(verdict: Verdict, warned_at: float | None, warn_before: float, now: float) -> float:
    """When a session ends if nothing changes."""
    ends = now + verdict.remaining
    if warned_at is not None and not verdict.hard:
        ends = max(ends, warned_at + lead(verdict, warn_before))
    return ends


def read_checks(given: Mapping[str, Any] | None) -> Checks:
    """The checks that a policy's document says. Raises ``ValueError`` with a sentence that names the field."""
    if given is None:
        return Checks()
    _known("", given, _FIELDS)
    extensions = given.get("extensions", 3)
    if extensions is not None and not _whole(extensions, 1000):
        raise ValueError(
            f"extensions: {str(extensions)[:_SHOWN]!r}: a whole number from 0 to 1000, or null"
        )
    use = given.get("utilization")
    return Checks(
        _duration(given, "", "warn_before", 300.0),
        extensions,
        None if use is None else _read_utilization(use),
        _duration(given, "", "new_user_grace", 0.0),
    )


def _read_utilization(given: object) -> Utilization:
    where = "utilization."
    if not isinstance(given, Mapping):
        raise ValueError(f"utilization: {str(given)[:_SHOWN]!r}: an object")
    _known(where, given, _USE_FIELDS)
    thresholds = given.get("thresholds")
    if not isinstance(thresholds, Mapping) or not thresholds:
        raise ValueError(
            f"{where}thresholds: {str(thresholds)[:_SHOWN]!r}: percents by metric, such as"
            ' {"cpu_util": 5}'
        )
    for metric, least in thresholds.items():
        if not isinstance(metric, str) or not _METRIC.fullmatch(metric):
            raise ValueError(
                f"{where}thresholds: {str(metric)[:_SHOWN]!r}: cpu_util, mem, or the _util or _mem"
                " of an accelerator, such as cuda_util"
            )
        plain = isinstance(least, int | float) and not isinstance(least, bool)
        if not plain or not 0 < least <= 100:
            raise ValueError(
                f"{where}thresholds.{metric}: {str(least)[:_SHOWN]!r}: a percentage above 0, at most 100"
            )
    operator = given.get("operator", "and")
    if operator not in OPERATORS:
        raise ValueError(f"{where}operator: {str(operator)[:_SHOWN]!r}: one of and, or")
    window = _duration(given, where, "window", 3600.0)
    if window < PARTS:
        raise ValueError(f"{where}window: {window:g} seconds: at least {PARTS}")
    return Utilization(
        {metric: float(least) for metric, least in thresholds.items()},
        operator,
        window,
        _duration(given, where, "initial_grace", 600.0),
    )


def _known(where: str, given: Mapping[str, Any], allowed: Sequence[str]) -> None:
    for each in given:
        if each not in allowed:
            raise ValueError(f"{where}{str(each)[:_SHOWN]}: one of {', '.join(allowed)}")


def _duration(given: Mapping[str, Any], where: str, name: str, default: float) -> float:
    try:
        return seconds_of(given.get(name, default))
    except ValueError as error:
        raise ValueError(f"{where}{name}: {error}") from None


def _whole(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most
