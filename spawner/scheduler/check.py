"""What keeps a session from starting whatever is free: its start time, its parents, its owner's limits."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass

from spawner.scheduler.model import Dependency, Quota, Reason, SessionRequest
from spawner.scheduler.slots import human_amount

WHOSE = {
    "keypair": "your limit",
    "user": "your limit",
    "project": "your project's limit",
    "domain": "your domain's limit",
}


@dataclass(frozen=True, slots=True)
class Blocked:
    """Every check that a session fails now; ``never``: those that it fails with nothing held, too."""

    reasons: tuple[Reason, ...]
    never: tuple[Reason, ...] = ()


class Account:
    """What one scope holds within a pass."""

    __slots__ = ("held", "quota", "sessions")

    def __init__(self, quota: Quota) -> None:
        self.quota = quota
        self.held = dict(quota.held_slots)
        self.sessions = quota.held_sessions


class Accounts:
    """All scopes with limits; placements of the pass are charged at once, so later sessions see them."""

    def __init__(self, quotas: Iterable[Quota]) -> None:
        self._accounts = {(quota.scope, quota.scope_id): Account(quota) for quota in quotas}
        self._whose: dict[tuple[str, str, str, str], list[Account]] = {}

    @property
    def limited(self) -> bool:
        """Whether anybody has limits."""
        return bool(self._accounts)

    def charge(self, session: SessionRequest, slots: Iterable[tuple[str, int]]) -> None:
        """Count ``session``, which starts now, on every scope it belongs to."""
        if not self._accounts:
            return
        amounts = tuple(slots)
        for account in self._of(session):
            account.sessions += 1
            for slot, amount in amounts:
                account.held[slot] = account.held.get(slot, 0) + amount

    def violations(
        self, session: SessionRequest, slots: Iterable[tuple[str, int]]
    ) -> tuple[list[Reason], list[Reason]]:
        """Every limit ``session`` would pass, and those that it would pass with nothing held."""
        reasons: list[Reason] = []
        never: list[Reason] = []
        accounts = self._of(session) if self._accounts else ()
        if not accounts:
            return reasons, never
        amounts = tuple(slots)
        for account in accounts:
            quota = account.quota
            if quota.max_sessions is not None and account.sessions >= quota.max_sessions:
                reasons.append(_too_many(account, quota.max_sessions))
                never += reasons[-1:] if quota.max_sessions <= 0 else []
            most = quota.max_containers
            if most is not None and len(session.kernels) > most:
                reasons.append(_too_wide(account, most, len(session.kernels)))
                never += reasons[-1:]
            for slot, amount in amounts if quota.max_slots is not None else ():
                limit = (quota.max_slots or {}).get(slot)
                if limit is not None and account.held.get(slot, 0) + amount > limit:
                    reasons.append(_too_much(account, slot, amount, limit))
                    never += reasons[-1:] if amount > limit else []
        return reasons, never

    def _of(self, session: SessionRequest) -> list[Account]:
        if session.unlimited:
            return []
        whose = (session.access_key, session.owner_id, session.project_id, session.domain)
        found = self._whose.get(whose)
        if found is None:
            scopes = zip(("keypair", "user", "project", "domain"), whose, strict=True)
            found = [self._accounts[scope] for scope in scopes if scope in self._accounts]
            self._whose[whose] = found
        return found


def check(
    session: SessionRequest, slots: Iterable[tuple[str, int]], accounts: Accounts, now: float
) -> Blocked | None:
    """All checks that ``session`` fails at ``now``, or None. ``slots`` are its summed amounts above 0."""
    if session.starts_at is None and not session.dependencies and not accounts.limited:
        return None
    reasons: list[Reason] = []
    if session.starts_at is not None and session.starts_at > now:
        at = dt.datetime.fromtimestamp(session.starts_at, dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        data = {"starts_at": session.starts_at}
        reasons.append(Reason("not-before", f"it is not to start before {at}", data=data))
    if session.dependencies:
        reasons += _unmet(session)
    violated, never = accounts.violations(session, slots)
    reasons += violated
    return Blocked(tuple(reasons), tuple(never)) if reasons else None


def cancelled(session: SessionRequest) -> Reason | None:
    """Why ``session`` is to be cancelled, if a parent failed and its rule says so."""
    failed = _parents(session, "failed") if session.failed_parents == "cancel" else []
    if not failed:
        return None
    return Reason(
        "dependency",
        f"cancelled because {_named(failed)}, on which it depends, failed",
        data={"session_id": session.session_id, "failed": _ids(failed)},
    )


def _unmet(session: SessionRequest) -> list[Reason]:
    reasons: list[Reason] = []
    waiting, failed = _parents(session, "waiting"), _parents(session, "failed")
    if waiting:
        text = f"{_named(waiting)}, on which it depends, must succeed first"
        reasons.append(Reason("dependency", text, data={"waiting": _ids(waiting)}))
    if failed and session.failed_parents == "wait":
        text = f"{_named(failed)}, on which it depends, failed: it waits until you end it"
        reasons.append(Reason("dependency", text, data={"failed": _ids(failed)}))
    return reasons


def _parents(session: SessionRequest, state: str) -> list[Dependency]:
    found = (each for each in session.dependencies if each.state == state)
    return sorted(found, key=lambda each: each.session_id)


def _ids(parents: list[Dependency]) -> list[str]:
    return [each.session_id for each in parents]


def _named(parents: list[Dependency]) -> str:
    names = ", ".join(each.name or each.session_id for each in parents)
    return f"{'session' if len(parents) == 1 else 'sessions'} {names}"


def _too_wide(account: Account, limit: int, asked: int) -> Reason:
    containers = "1 container" if limit == 1 else f"{limit} containers"
    text = f"of {containers} per session is less than it has ({asked})"
    return _passed("containers", account.quota, text, limit=limit, requested=asked)


def _too_many(account: Account, limit: int) -> Reason:
    sessions = "1 session" if limit == 1 else f"{limit} sessions"
    text = f"of {sessions} is reached"
    return _passed("concurrency", account.quota, text, limit=limit, held=account.sessions)


def _too_much(account: Account, slot: str, amount: int, limit: int) -> Reason:
    held, asked = account.held.get(slot, 0), f"asked for {human_amount(slot, amount)}"
    if amount > limit:
        told = f"is less than it needs ({asked})"
    else:
        told = f"would be passed ({human_amount(slot, held)} in use, {asked})"
    text = f"of {human_amount(slot, limit)} {told}"
    return _passed(
        "quota", account.quota, text, slot=slot, limit=limit, held=held, requested=amount
    )


def _passed(name: str, quota: Quota, text: str, **data: object) -> Reason:
    """A limit of ``quota`` that would be passed."""
    scope = {"scope": quota.scope, "scope_id": quota.scope_id}
    return Reason(name, f"{WHOSE[quota.scope]} {text}", data={**scope, **data})
