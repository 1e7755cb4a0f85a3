"""What becomes of a session whose run failed: another attempt after a pause, as its owner asked.

A policy names causes, a cap and a growing pause. Every attempt is a new run (epoch) of the same session;
``spawner.sessions.runs`` keeps how each ended.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spawner.agent.protocol import KernelReport
from spawner.sessions.durations import seconds_of
from spawner.sessions.states import TRANSITIONS, Status, Target
from spawner.sessions.tables import KernelRow, SessionRow
from spawner.sessions.transitions import Change

SUCCESS, ENDED = "success", "ended"
FAILURE = "failure"
OOM = "oom"
REMOVED = "removed"
TIMEOUT = "timeout"
NODE_LOST = "node-lost"
PREEMPTED = "preempted"
UNHEALTHY = "unhealthy"
START_FAILED = "start-failed"
RESTARTED = "restarted"
ENGINE_RESTARTED = "engine-restarted"
CAUSES = (FAILURE, OOM, REMOVED, TIMEOUT, NODE_LOST, PREEMPTED, UNHEALTHY, START_FAILED,
          ENGINE_RESTARTED)  # fmt: skip
DEFAULT_CAUSES = (FAILURE, OOM, REMOVED, NODE_LOST, UNHEALTHY, ENGINE_RESTARTED)
MOST_RETRIES = 100
FIELDS = ("max_retries", "causes", "backoff", "backoff_limit")
_REPORTED = {"oom-killed": OOM, "removed": REMOVED, "start-timeout": UNHEALTHY,
             "create-failed": START_FAILED, "fenced": NODE_LOST,
             "engine-restarted": ENGINE_RESTARTED}  # fmt: skip
_ENDS = {"task-timeout": TIMEOUT, "preempted": PREEMPTED, "agent-termination": NODE_LOST}
"""Causes by the reason for which a session ends."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When a failed run is followed by another one."""

    max_retries: int
    causes: tuple[str, ...] = DEFAULT_CAUSES
    backoff: float = 10.0
    """Seconds before the first retry; each further one waits twice as long."""
    backoff_limit: float = 600.0

    def pause(self, used: int) -> float:
        """Seconds before the next attempt when ``used`` retries were made."""
        return float(min(self.backoff_limit, self.backoff * 2.0 ** min(used, 60)))

    def row(self) -> dict[str, Any]:
        """As it is kept."""
        return {
            "max_retries": self.max_retries,
            "causes": list(self.causes),
            "backoff": self.backoff,
            "backoff_limit": self.backoff_limit,
        }


def read_policy(given: Mapping[str, Any], errors: dict[str, str]) -> RetryPolicy | None:
    """The policy of a request; what is wrong goes to ``errors``, by the name of the field."""
    found: dict[str, Any] = {}
    for name in given:
        if name not in FIELDS:
            errors[str(name)[:80]] = f"unknown: one of {', '.join(FIELDS)}"
    most = given.get("max_retries")
    if isinstance(most, bool) or not isinstance(most, int) or not 0 <= most <= MOST_RETRIES:
        errors["max_retries"] = f"{str(most)[:80]!r}: a number from 0 to {MOST_RETRIES}"
    found["max_retries"] = most
    causes = given.get("causes")
    if causes is not None:
        if not isinstance(causes, list) or not causes or not set(map(str, causes)) <= set(CAUSES):
            errors["causes"] = f"{str(causes)[:80]!r}: a list of {', '.join(CAUSES)}"
        else:
            found["causes"] = tuple(dict.fromkeys(causes))
    for name in ("backoff", "backoff_limit"):
        if given.get(name) is not None:
            try:
                found[name] = seconds_of(given[name])
            except ValueError as error:
                errors[name] = str(error)
    return None if errors else RetryPolicy(**found)


def policy_of(session: SessionRow) -> RetryPolicy | None:
    """The policy that a row keeps."""
    kept = (session.recovery or {}).get("policy")
    return None if kept is None else RetryPolicy(**{**kept, "causes": tuple(kept["causes"])})


def attempt_of(session: SessionRow) -> int:
    """The how manieth run this is, or will be; the first is 1."""
    return int((session.recovery or {}).get("attempt", 1))


def retries_of(session: SessionRow) -> int:
    """How many retries its policy has paid for."""
    return int((session.recovery or {}).get("retries", 0))


def next_attempt(session: SessionRow) -> None:
    """The run before is over: what comes next is another attempt."""
    session.recovery = {**(session.recovery or {}), "attempt": attempt_of(session) + 1}


def cause_of(session: SessionRow, report: KernelReport) -> str:
    """Why a run ended, as far as its node can tell; ``ended`` when it was asked to, or left in peace."""
    if report.failure == "exited":
        if report.exit_code != 0 or session.type == "inference":
            return FAILURE
        return SUCCESS if session.type == "batch" else ENDED
    return _REPORTED.get(report.failure or "", ENDED)


def told_cause(session: SessionRow) -> str:
    """Why a run was told to end: for another attempt, at a limit, for others, or because somebody wanted it."""
    if session.target == Target.TERMINATED:
        end: Mapping[str, Any] = session.status_data.get("end", {})
        return _ENDS.get(str(end.get("reason")), ENDED)
    return str(session.status_data.get("retry", {}).get("cause", ENDED))


async def try_again(
    change: Change,
    session: SessionRow,
    kernels: Sequence[KernelRow],
    cause: str,
    why: str,
    *,
    ended: KernelRow | None = None,
) -> bool:
    """Another attempt if the policy of ``session`` has one left for ``cause``; False: there is none.

    ``ended`` is the kernel whose run is over already. The caller brings the session on (``steps.step``).
    """
    policy = policy_of(session)
    if policy is None or cause not in policy.causes or session.target == Target.TERMINATED:
        return False
    used = retries_of(session)
    if used >= policy.max_retries:
        return False
    pause = policy.pause(used)
    session.recovery = {**(session.recovery or {}), "retries": used + 1}
    told = f"{why}: trying again in {pause:g} s (retry {used + 1} of {policy.max_retries})"
    await requeue(change, session, kernels, cause, told, pause=pause, ended=ended)
    return True


async def requeue(
    change: Change,
    session: SessionRow,
    kernels: Sequence[KernelRow],
    cause: str,
    told: str,
    *,
    pause: float = 0.0,
    ended: KernelRow | None = None,
) -> None:
    """Recall every kernel of ``session``; once all are back, it waits for its next attempt."""
    session.starts_at = change.now + dt.timedelta(seconds=pause)
    session.ends_at = None
    session.status_data = {
        **session.status_data,
        "retry": {"cause": cause, "message": told, "attempt": attempt_of(session)},
    }
    if Status.RESTARTING in TRANSITIONS[Status(session.status)]:
        await change.move_session(session, Status.RESTARTING, told, reason=cause)
    else:
        change.note(session, told)
    for kernel in kernels:
        if kernel is ended:
            await back(change, session, kernel, told, cause)
        else:
            await recall(change, session, kernel, told)


async def back(
    change: Change, session: SessionRow, kernel: KernelRow, told: str, cause: str
) -> None:
    """A kernel whose run is over waits again."""
    status = Status(kernel.status)
    data = {"attempt": attempt_of(session), "cause": cause, "exit_code": kernel.exit_code}
    if Status.PENDING not in TRANSITIONS[status]:
        await change.move_kernel(session, kernel, Status.TERMINATING, told)
    await change.move_kernel(session, kernel, Status.PENDING, told, data=data)


async def recall(change: Change, session: SessionRow, kernel: KernelRow, cause: str) -> None:
    """Bring a kernel back to the queue: at once, or when its node says that it is gone."""
    status = Status(kernel.status)
    if status is Status.SCHEDULED:
        await change.move_kernel(session, kernel, Status.PENDING, cause)
    elif status in (Status.PREPARING, Status.CREATING, Status.RUNNING, Status.RESTARTING):
        await change.move_kernel(session, kernel, Status.TERMINATING, cause)


def exhausted(session: SessionRow, cause: str, why: str) -> str:
    """``why`` with the number of attempts, where a policy had foreseen ``cause``."""
    policy = policy_of(session)
    if policy is None or cause not in policy.causes or not retries_of(session):
        return why
    return f"{why}; it was the last of {retries_of(session) + 1} attempts"
