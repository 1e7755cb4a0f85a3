"""The watch over idle sessions: looks at measures, warns owners ahead and ends what stays idle.

The leader's reconciler calls it. Verdicts and warnings are kept in rows (``spawner.sessions.idle_state``).
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from authenticator.tables import KeyPairPolicyRow, KeyPairRow, UserRow
from spawner.sessions import idleness, steps
from spawner.sessions.idle_state import IdleState, read_state
from spawner.sessions.idleness import LIFETIME, NETWORK, REASONS, UTILIZATION, Step, Verdict
from spawner.sessions.kinds import BATCH, INTERACTIVE
from spawner.sessions.states import Status, Target
from spawner.sessions.statistics import Statistics
from spawner.sessions.tables import KernelRow, SessionRow
from spawner.sessions.transitions import Change, Journal

WARNING = "session_idle_warning"
REQUEST_ID = "idleness"
RUNNING = (Status.RUNNING.value, Status.RUNNING_DEGRADED.value)
SAVED_EVERY = 60.0
"""Seconds after which verdicts are written again though nothing was decided."""
PAUSE = 60.0
"""Seconds without a look after which the manager, or its host, was suspended."""
PERCENT = ("pct", "percent")
"""Units of measures that are percents themselves."""
AT_ONCE = 25
"""Sessions of one write."""
Verdicts = dict[str, Verdict | None]
"""By checker that the policy asks for; None: it lacks data."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Found:
    """A session that runs, its kernels, and what its policy says."""

    session: SessionRow
    kernels: Sequence[KernelRow]
    idle_timeout: int | None
    checks: idleness.Checks
    owner_since: dt.datetime
    """When the owner's account was made."""

    @property
    def started(self) -> dt.datetime:
        """When this run began."""
        return self.session.started_at or self.session.created_at

    @property
    def grace_ends(self) -> float:
        """From when on idleness may count at all."""
        return self.owner_since.timestamp() + self.checks.new_user_grace


@dataclass(frozen=True, slots=True)
class Decision:
    """What a look decided about a session."""

    session_id: uuid.UUID
    state: IdleState
    warnings: Sequence[tuple[str, str]]
    """Sentences by checker."""
    end: tuple[str, str] | None
    """Reason and sentence."""


class IdleWatch:
    """Looks at all running sessions; ``interval`` is how often it is called."""

    def __init__(self, journal: Journal, statistics: Statistics, interval: float) -> None:
        self._journal, self._statistics = journal, statistics
        self._pause = max(PAUSE, 4 * interval)
        self._states: dict[uuid.UUID, IdleState] = {}
        self._looked_at: float | None = None
        self._resumed_at = 0.0
        self._looking = asyncio.Lock()

    def begin(self) -> None:
        """This manager watches from now on, or again: what it knew may be old."""
        self._states.clear()
        self._looked_at = None

    async def look(self) -> None:
        """Judge every running session once."""
        async with self._looking:
            now = self._journal.now().timestamp()
            if self._looked_at is None or not 0 <= now - self._looked_at <= self._pause:
                self._resumed_at = now
            self._looked_at = now
            found = await self._journal.store.read(_running)
            states = {each.session.id: self._state(each) for each in found}
            self._states = states
            decisions = [self._decide(each, states[each.session.id], now) for each in found]
            due = [each for each in decisions if each is not None]
            for start in range(0, len(due), AT_ONCE):
                part = due[start : start + AT_ONCE]
                await self._journal.write(REQUEST_ID, partial(_apply, decisions=part))
                self._states |= {each.session_id: each.state for each in part}

    def _state(self, found: Found) -> IdleState:
        """What was kept of it; what this manager counted since, unless it was extended meanwhile."""
        kept = read_state(found.session.idle, found.started)
        known = self._states.get(found.session.id)
        same = known is not None and known.run == kept.run
        return known if known is not None and same else kept

    def _decide(self, found: Found, state: IdleState, now: float) -> Decision | None:
        verdicts = self._judge(found, state, now)
        warn_before = found.checks.warn_before
        warned = {name: at for name, at in state.warned.items() if name in verdicts}
        warnings: list[tuple[str, str]] = []
        end: tuple[str, str] | None = None
        for name, verdict in verdicts.items():
            if verdict is None:
                continue
            step = idleness.decide(verdict, warned.get(name), warn_before, now)
            if step is Step.WARN:
                warned[name] = now
                ends_at = idleness.deadline(verdict, now, warn_before, now)
                warnings.append((name, _warning(name, verdict, ends_at, now)))
            elif step is Step.CLEAR:
                del warned[name]
            elif step is Step.END and name != LIFETIME and end is None:
                end = (REASONS[name], _why(name, verdict))
        decided = warnings or end or warned != state.warned
        stale = any(  # whoever reads that it ends so soon would believe to have been warned
            name not in warned and kept["ends_at"] <= now + _ahead(verdicts.get(name), warn_before)
            for name, kept in state.checks.items()
        )
        if not (decided or stale) and now - state.at < SAVED_EVERY:
            return None
        fresh = replace(state, at=now, warned=warned)
        judged = {name: each for name, each in verdicts.items() if each is not None}
        fresh.judged(judged, warn_before, now)
        if not decided and not fresh.parts and fresh.checks == state.checks:
            return None
        return Decision(found.session.id, fresh, warnings, end)

    def _judge(self, found: Found, state: IdleState, now: float) -> Verdicts:
        session, verdicts = found.session, Verdicts()
        if session.ends_at is not None:
            ends_at = session.ends_at.timestamp()
            verdicts[LIFETIME] = idleness.session_lifetime(state.started_at, ends_at, now)
        if found.idle_timeout and session.type == INTERACTIVE:
            verdicts[NETWORK] = idleness.network_timeout(
                found.idle_timeout,
                session.type,
                self._activity(found),
                since=max(state.since, found.grace_ends),
                resumed_at=self._resumed_at,
                now=now,
            )
        rules = found.checks.utilization
        if rules is not None and session.type in (INTERACTIVE, BATCH):
            since = max(state.started_at + rules.initial_grace, state.since, found.grace_ends)
            window = state.window_of(rules.window)
            self._sample(found, state, window, rules, since)
            slots = {slot for kernel in found.kernels for slot in kernel.slots}
            verdicts[UTILIZATION] = idleness.utilization(rules, window, slots, since=since, now=now)
        return verdicts

    def _activity(self, found: Found) -> idleness.Activity | None:
        """The newest connection to any of its containers; None when one of them was not measured."""
        measured: list[tuple[float, float]] = []
        for kernel in found.kernels:
            view = self._statistics.node(kernel.agent_id or "")
            metrics = {} if view is None else view.kernels.get(str(kernel.id), {})
            quiet = metrics.get("connections", {}).get("quiet")
            if view is None or not isinstance(quiet, int | float):
                return None
            measured.append((view.at.timestamp(), float(quiet)))
        if not measured:
            return None
        return idleness.Activity(min(at for at, _ in measured), min(quiet for _, quiet in measured))

    def _sample(
        self,
        found: Found,
        state: IdleState,
        window: idleness.Window,
        rules: idleness.Utilization,
        since: float,
    ) -> None:
        """Add what was measured last to the window, once."""
        values: dict[str, list[float]] = {}
        at: float | None = None
        for kernel in found.kernels:
            view = self._statistics.node(kernel.agent_id or "")
            if view is None or str(kernel.id) not in view.kernels:
                return
            at = min(at or view.at.timestamp(), view.at.timestamp())
            for metric in rules.of(kernel.slots):
                percent = _percent(view.kernels[str(kernel.id)].get(metric))
                if percent is None:
                    return
                values.setdefault(metric, []).append(percent)
        if at is None or at < since or at <= state.sampled_at:
            return
        window.add(at, {name: sum(each) / len(each) for name, each in values.items()})
        state.parts, state.window, state.sampled_at = window.parts, window.length, at


def _ahead(verdict: Verdict | None, warn_before: float) -> float:
    return warn_before if verdict is None else idleness.lead(verdict, warn_before)


def _percent(shape: Mapping[str, Any] | None) -> float | None:
    """How much of what it may use; None when that is not known, ``pct`` is 0 then."""
    told = shape or {}
    try:
        if told["capacity"] is None:
            return float(told["current"]) if told["unit_hint"] in PERCENT else None
        return float(told["pct"])
    except (KeyError, TypeError, ValueError):
        return None


async def _running(db: AsyncSession) -> list[Found]:
    """Running sessions that nobody asked to end, with their owners' policies."""
    query = (
        select(SessionRow, KeyPairPolicyRow, UserRow.created_at)
        .join(UserRow, UserRow.id == SessionRow.owner_id)
        .join(KeyPairRow, KeyPairRow.access_key == SessionRow.access_key)
        .join(KeyPairPolicyRow, KeyPairPolicyRow.name == KeyPairRow.policy)
        .where(SessionRow.status.in_(RUNNING), SessionRow.target == Target.RUNNING.value)
    )
    rows = (await db.execute(query)).all()
    ids = select(SessionRow.id).where(SessionRow.status.in_(RUNNING))
    kernels: dict[uuid.UUID, list[KernelRow]] = {}
    for kernel in await db.scalars(select(KernelRow).where(KernelRow.session_id.in_(ids))):
        kernels.setdefault(kernel.session_id, []).append(kernel)
    checks: dict[str, idleness.Checks] = {}
    for _, policy, _ in rows:
        if policy.name not in checks:
            checks[policy.name] = _checks(policy)
    return [
        Found(session, kernels.get(session.id, []), policy.idle_timeout, checks[policy.name], since)
        for session, policy, since in rows
    ]


def _checks(policy: KeyPairPolicyRow) -> idleness.Checks:
    try:
        return idleness.read_checks(policy.idle_checks)
    except ValueError as error:
        log.error("policy %s: idle_checks cannot be used: %s", policy.name, error)
        return idleness.Checks()


async def _apply(change: Change, decisions: Sequence[Decision]) -> None:
    for each in decisions:
        loaded = await steps.load(change.db, each.session_id)
        if loaded is None:
            continue
        session, kernels = loaded
        kept = read_state(session.idle, session.started_at or session.created_at)
        current = session.status in RUNNING and session.target == Target.RUNNING
        if not current or kept.run != each.state.run:
            continue
        session.idle = each.state.document()
        if each.end is not None:
            if session.type == BATCH and session.result == "undefined":
                session.result = "failure"
            steps.ask_to_end(session, *each.end)
            await steps.step(change, session, kernels)
            continue
        for _, message in each.warnings:
            change.note(session, message)
            change.tell_session(session, WARNING, message)


def _why(name: str, verdict: Verdict) -> str:
    if name == NETWORK:
        return f"nobody was connected to it for {_span(verdict.limit)}"
    used = (verdict.extra or {}).get("resources", {})
    told = ", ".join(
        f"{each} {mean:g} of {least:g} percent" for each, (mean, least) in used.items()
    )
    return f"it used too little for {_span(verdict.limit)}: {told}"


def _warning(name: str, verdict: Verdict, ends_at: float, now: float) -> str:
    when = dt.datetime.fromtimestamp(ends_at, dt.UTC).strftime("%H:%M UTC")
    ends = f"it ends in {_span(ends_at - now)}, at {when}"
    unless = {NETWORK: "somebody connects or ", UTILIZATION: "it works or "}.get(name, "")
    return f"{idleness.CAUSES[name]}: {ends}, unless {unless}you extend it"


def _span(seconds: float) -> str:
    """A length of time for people."""
    whole = max(round(seconds), 0)
    for unit, length in (("hour", 3600), ("minute", 60)):
        if whole >= 2 * length:
            return f"{round(whole / length)} {unit}s"
    return f"{whole} second{'' if whole == 1 else 's'}"
