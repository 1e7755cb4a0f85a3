"""What is kept of a session's idleness in its row, so that a restart of the manager loses nothing.

Times are seconds since the epoch.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from spawner.sessions.idleness import CAUSES, Verdict, Window, deadline


@dataclass(slots=True)
class IdleState:
    """Of one run: a session that starts again begins anew."""

    started_at: float
    at: float = 0.0
    """When it was written."""
    touched_at: float | None = None
    """When its owner extended it last: idleness counts from there."""
    extended: int = 0
    warned: dict[str, float] = field(default_factory=dict)
    """When the owner was warned, by checker."""
    parts: list[list[Any]] = field(default_factory=list)
    """Of the window of the utilisation check."""
    sampled_at: float = 0.0
    """When the newest of them was measured."""
    window: float = 0.0
    """Length for which ``parts`` were counted."""
    checks: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Newest verdicts by checker: ``{"ends_at", "kind", "extra"}``."""

    @property
    def since(self) -> float:
        """From when on idleness counts."""
        return self.started_at if self.touched_at is None else self.touched_at

    @property
    def run(self) -> tuple[float, int]:
        """What it is of: a run, and how often that was extended."""
        return self.started_at, self.extended

    def window_of(self, length: float) -> Window:
        """Its window; what was counted for one of another length is no use."""
        return Window(length, self.parts if length == self.window else [])

    def judged(self, verdicts: Mapping[str, Verdict], warn_before: float, now: float) -> None:
        """Keep verdicts, as times, which grow old more slowly than seconds left do."""
        self.checks = {
            name: {
                "ends_at": round(deadline(each, self.warned.get(name), warn_before, now), 3),
                "kind": each.kind,
                "extra": None if each.extra is None else dict(each.extra),
            }
            for name, each in verdicts.items()
        }

    def document(self) -> dict[str, Any]:
        """As the row keeps it."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def read_state(idle: Mapping[str, Any] | None, started_at: dt.datetime) -> IdleState:
    """The state in a row; a new one when it is of an earlier run."""
    started = started_at.timestamp()
    if idle is None or idle["started_at"] != started:
        return IdleState(started)
    state = IdleState(**idle)
    state.warned = dict(state.warned)
    state.parts = [[part, count, dict(sums)] for part, count, sums in state.parts]
    return state


def warning(idle: Mapping[str, Any] | None, now: dt.datetime) -> dict[str, Any] | None:
    """Of the checks that the owner was warned of the one that ends the session first."""
    kept = idle or {}
    due = [
        {"check": name, "message": CAUSES[name], "ends_in": check["ends_at"] - now.timestamp()}
        for name, check in kept.get("checks", {}).items()
        if name in kept["warned"]
    ]
    return min(due, key=lambda each: float(each["ends_in"]), default=None)


def shown(idle: Mapping[str, Any] | None, now: dt.datetime) -> dict[str, Any]:
    """``idleChecks`` as Backend.AI's clients read it."""
    return {
        name: {
            "remaining": round(check["ends_at"] - now.timestamp(), 3),
            "remaining_time_type": check["kind"],
            "extra": check["extra"],
        }
        for name, check in (idle or {}).get("checks", {}).items()
    }
