"""Statuses of sessions and kernels and the one table of allowed transitions."""

import enum


class Status(enum.StrEnum):
    """Status of a session or kernel (Backend.AI's names where it has one)."""

    PENDING = "PENDING"
    SCHEDULED = "SCHEDULED"
    PREPARING = "PREPARING"
    CREATING = "CREATING"
    RUNNING = "RUNNING"
    RUNNING_DEGRADED = "RUNNING_DEGRADED"
    RESTARTING = "RESTARTING"
    PREEMPTED = "PREEMPTED"
    TERMINATING = "TERMINATING"
    TERMINATED = "TERMINATED"
    CANCELLED = "CANCELLED"
    ERROR = "ERROR"


class Target(enum.StrEnum):
    """Where a session should be; the only thing user actions change."""

    RUNNING = "RUNNING"
    TERMINATED = "TERMINATED"


FINAL = frozenset({Status.TERMINATED, Status.CANCELLED, Status.ERROR})
"""Final statuses; nothing leaves them."""

HOLDS = frozenset(
    {
        Status.SCHEDULED,
        Status.PREPARING,
        Status.CREATING,
        Status.RUNNING,
        Status.RUNNING_DEGRADED,
        Status.RESTARTING,
        Status.PREEMPTED,
        Status.TERMINATING,
    }
)
"""Statuses in which a kernel holds its allocation in the ledger (sessions only are PREEMPTED)."""

TRANSITIONS: dict[Status, frozenset[Status]] = {
    Status.PENDING: frozenset({Status.SCHEDULED, Status.CANCELLED, Status.ERROR}),
    Status.SCHEDULED: frozenset(
        {Status.PREPARING, Status.PENDING, Status.TERMINATING, Status.ERROR}
    ),
    Status.PREPARING: frozenset(
        {Status.CREATING, Status.RUNNING, Status.PENDING, Status.TERMINATING, Status.ERROR}
    ),
    Status.CREATING: frozenset({Status.RUNNING, Status.PENDING, Status.TERMINATING, Status.ERROR}),
    Status.RUNNING: frozenset(
        {
            Status.RUNNING_DEGRADED,
            Status.RESTARTING,
            Status.PREEMPTED,
            Status.TERMINATING,
            Status.TERMINATED,
            Status.ERROR,
        }
    ),
    Status.RUNNING_DEGRADED: frozenset(
        {
            Status.RUNNING,
            Status.RESTARTING,
            Status.PREEMPTED,
            Status.TERMINATING,
            Status.ERROR,
        }
    ),
    Status.RESTARTING: frozenset(
        {
            Status.PREPARING,
            Status.CREATING,
            Status.RUNNING,
            Status.PENDING,
            Status.TERMINATING,
            Status.ERROR,
        }
    ),
    Status.PREEMPTED: frozenset({Status.PENDING, Status.TERMINATING}),
    Status.TERMINATING: frozenset({Status.TERMINATED, Status.PENDING, Status.ERROR}),
    Status.TERMINATED: frozenset(),
    Status.CANCELLED: frozenset(),
    Status.ERROR: frozenset(),
}


REVIVAL = Status.PENDING
"""Where a lost part of a cluster goes when its session restarts: the one way out of a final status."""


class IllegalTransition(Exception):
    """A transition that the table does not have; carries the object's story."""

    def __init__(self, what: str, old: Status, new: Status, story: str) -> None:
        super().__init__(f"{what}: {old} -> {new} is not a transition.\n{story}")
        self.old, self.new = old, new


def check_transition(what: str, old: Status, new: Status, story: str = "") -> None:
    """Raise ``IllegalTransition`` unless the table allows ``old`` to ``new``."""
    if new not in TRANSITIONS[old]:
        raise IllegalTransition(what, old, new, story)
