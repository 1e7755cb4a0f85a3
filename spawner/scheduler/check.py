"""What keeps a session from starting whatever is free: its start time and the quotas of its owner."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass

from spawner.scheduler.model import Quota, Reason, SessionRequest
from spawner.scheduler.slots import human_amount

WHOSE = {
    "keypair": "your limit",
    "user": "your limit",
    "project": "your project's limit",
    "domain": "your domain's limit",
}


@dataclass(frozen=True, slots=True)
class Blocked:
    """Every check that a session fails now; ``never``: the limits are below what it asks for."""

    reasons: tuple[Reason, ...]
    never: bool = False


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

    def charge(self, session: SessionRequest, slots: Iterable[tuple[str, int]]) -> None:
        """Count ``session``, which starts now, on every scope it belongs to."""
        amounts = tuple(slots)
        for account in self._of(session):
            account.sessions += 1
            for slot, amount in amounts:
                account.held[slot] = account.held.get(slot, 0) + amount

    def violations(
        self, session: SessionRequest, slots: Iterable[tuple[str, int]]
    ) -> tuple[list[Reason], bool]:
        """Every limit ``session`` would pass, and whether it would pass one with nothing held."""
        amounts = tuple(slots)
        reasons: list[Reason] = []
        never = False
        for account in self._of(session):
            quota = account.quota
            if quota.max_sessions is not None and account.sessions >= quota.max_sessions:
                reasons.append(_too_many(account, quota.max_sessions))
                never = never or quota.max_sessions <= 0
            for slot, amount in amounts if quota.max_slots is not None else ():
                limit = (quota.max_slots or {}).get(slot)
                if limit is not None and account.held.get(slot, 0) + amount > limit:
                    reasons.append(_too_much(account, slot, amount, limit))
                    never = never or amount > limit
        return reasons, never

    def _of(self, session: SessionRequest) -> list[Account]:
        scopes = (
            ("keypair", session.access_key),
            ("user", session.owner_id),
            ("project", session.project_id),
            ("domain", session.domain),
        )
        return [self._accounts[scope] for scope in scopes if scope in self._accounts]


def check(
    session: SessionRequest, slots: Iterable[tuple[str, int]], accounts: Accounts, now: float
) -> Blocked | None:
    """All checks that ``session`` fails at ``now``, or None. ``slots`` are its summed amounts above 0."""
    reasons: list[Reason] = []
    if session.starts_at is not None and session.starts_at > now:
        at = dt.datetime.fromtimestamp(session.starts_at, dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        data = {"starts_at": session.starts_at}
        reasons.append(Reason("not-before", f"it is not to start before {at}", data=data))
    violated, never = accounts.violations(session, slots)
    reasons += violated
    return Blocked(tuple(reasons), never) if reasons else None


def _too_many(account: Account, limit: int) -> Reason:
    quota = account.quota
    sessions = "1 session" if limit == 1 else f"{limit} sessions"
    return Reason(
        "concurrency",
        f"{WHOSE[quota.scope]} of {sessions} is reached",
        data={
            "scope": quota.scope,
            "scope_id": quota.scope_id,
            "limit": limit,
            "held": account.sessions,
        },
    )


def _too_much(account: Account, slot: str, amount: int, limit: int) -> Reason:
    quota, held = account.quota, account.held.get(slot, 0)
    whose = f"{WHOSE[quota.scope]} of {human_amount(slot, limit)}"
    asked = f"asked for {human_amount(slot, amount)}"
    if amount > limit:
        text = f"{whose} is less than it needs ({asked})"
    else:
        text = f"{whose} would be passed ({human_amount(slot, held)} in use, {asked})"
    return Reason(
        "quota",
        text,
        data={
            "scope": quota.scope,
            "scope_id": quota.scope_id,
            "slot": slot,
            "limit": limit,
            "held": held,
            "requested": amount,
        },
    )
