"""One resource group within one pass: check, place, preempt or reserve, explain, session after session."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from spawner.scheduler.check import Accounts, Blocked, cancelled, check
from spawner.scheduler.explain import Refusal, Shortage, never_of, shortage_of
from spawner.scheduler.fairness import capacity_of
from spawner.scheduler.floor import Floor
from spawner.scheduler.model import (
    GroupPolicy,
    Placement,
    Preemption,
    Reason,
    SessionRequest,
    Snapshot,
)
from spawner.scheduler.nodes import FOREVER, UNKNOWN, Node
from spawner.scheduler.observe import Observer, Phase, unobserved
from spawner.scheduler.order import OrderContext, Sequencer, has_aged, in_order
from spawner.scheduler.preempt import Eviction, Preemptor, kept_for
from spawner.scheduler.reserve import Booking, Seat, earliest, holders_of, reserve
from spawner.scheduler.select import Selector
from spawner.scheduler.shapes import Lane, Outline, Shapes
from spawner.scheduler.sieve import Sieve

EXACT = 50
"""For how many different requests in line the node that lacks least is looked for among all nodes."""
AGED_RESERVATIONS = 64
"""How many of the sessions that waited too long have their own reservations in one group at once."""

Seats = tuple[Node, ...]


@dataclass(slots=True)
class _Full:
    """An outline for which no room was found in this pass, for sessions that run this long or longer."""

    shortage: Shortage
    run_time: float
    told: bool = True
    """Whether ``shortage`` has what people read."""


class GroupPass:
    """One resource group within one pass. ``sessions`` are all that will be asked about.

    ``readers`` are the ids of those of whom somebody reads what becomes of them, which is then exact;
    None: of all.
    """

    def __init__(
        self,
        policy: GroupPolicy,
        selector: Selector,
        snapshot: Snapshot,
        sessions: Sequence[SessionRequest],
        accounts: Accounts,
        observer: Observer = unobserved,
        readers: Collection[str] | None = None,
    ) -> None:
        self._mark: Callable[[Phase], None] = partial(observer, policy.name)
        self._mark("prepare")
        self._now = snapshot.now
        self._running = [e for e in snapshot.running if e.resource_group == policy.name]
        self._accounts = accounts
        self._line = 0
        mine = [agent for agent in snapshot.agents if agent.resource_group == policy.name]
        self._readers = readers
        self._shapes = Shapes(policy, mine)
        self._floor = Floor(policy, selector, snapshot, self._shapes)
        self._waits = {} if readers is None else self._sift(policy, sessions, readers)
        """Of sessions that find no room for sure, and of whom nobody reads: the lane."""
        self._outlines = {
            each.session_id: self._shapes.of(each)
            for each in sessions
            if each.session_id not in self._waits
        }
        self._full: dict[Outline, _Full] = {}
        self._never: dict[Outline, Shortage | None] = {}
        self._lanes: set[tuple[int, Lane]] = set()
        self._aged = 0
        capacity = capacity_of(snapshot.agents, policy.name)
        self._context = OrderContext(snapshot.now, policy, capacity, self._running, snapshot.usage)
        self.preemptions: list[Preemption] = []
        self._preemptor: Preemptor | None = None
        self._rules = policy.preemption
        if self._rules is not None:
            self._preemptor = Preemptor(self._rules, self._running, capacity, self._now)
        self._held = self._hold()

    def _sift(
        self, policy: GroupPolicy, sessions: Iterable[SessionRequest], readers: Collection[str]
    ) -> dict[str, Lane]:
        """Who need not be worked out, as no node has room: not who preempts, or preempted already."""
        sieve = Sieve(policy, self._floor.nodes, self._floor.census.bunches)
        claimants = {each.claimed_by for each in self._running}
        least = FOREVER
        if policy.preemption is not None:
            least = min((each.priority for each in self._running), default=FOREVER)
        found: dict[str, Lane] = {}
        for each in sessions:
            known = each.session_id in readers or each.session_id in claimants
            lane = None if known or each.priority > least else sieve.lane(each)
            if lane is not None:
                found[each.session_id] = lane
        return found

    def _outline(self, session: SessionRequest) -> Outline:
        found = self._outlines.get(session.session_id)
        if found is None:
            found = self._outlines[session.session_id] = self._shapes.of(session)
        return found

    def _hold(self) -> dict[str, tuple[Seat, ...]]:
        """Keep from everybody what victims of earlier passes leave for those who preempted them."""
        held: dict[str, tuple[Seat, ...]] = {}
        for session_id in sorted({each.claimed_by or "" for each in self._running}):
            outline = self._outlines.get(session_id)
            if outline is None or outline.defects:
                continue
            by_part = {part: self._floor.eligible(part) for part in dict.fromkeys(outline.parts)}
            eligible = [by_part[part] for part in outline.parts]
            seats = kept_for(session_id, outline, eligible, self._running)
            if seats:
                held[session_id] = seats
                self._keep(session_id, Booking(UNKNOWN, seats), FOREVER)
        return held

    def _keep(self, session_id: str, booking: Booking, run_time: float) -> None:
        reserve(booking, session_id, self._now, run_time)
        self._floor.claims_on(seat.node for seat in booking.seats)

    def run(
        self, sessions: Sequence[SessionRequest], sequencer: Sequencer
    ) -> Iterator[tuple[SessionRequest, Placement | Refusal | Reason]]:
        """Go through the queue: each session starts, waits with or without a reservation, or is cancelled.

        Of those of whom nobody reads, some that only stand in line are left out.
        """
        counted = self._context.counted
        self._mark("order")
        for session in in_order(sessions, sequencer, self._context):
            gone = cancelled(session) if session.dependencies else None
            if gone is not None:
                yield session, gone
                self._mark("order")
                continue
            if session.session_id in self._waits and self._stands_by(session):
                continue
            if session.session_id in self._held:
                self._release(session.session_id)
            decision = self.decide(session)
            if not isinstance(decision, Refusal):
                counted.append(session)
                yield session, self.start(session, decision)
            elif decision.queues:
                counted.append(session)
                yield session, self.line_up(session, decision)
            else:
                yield session, decision
            self._mark("order")

    def _stands_by(self, session: SessionRequest) -> bool:
        """Let one that finds no room stand in line, if that is all that becomes of it."""
        if (session.priority, self._waits[session.session_id]) not in self._lanes:
            return False
        if self._aged < AGED_RESERVATIONS and has_aged(session, self._context):
            return False
        wants = [(slot, n) for slot, n in session.kernels[0].slots.items() if n]
        if check(session, wants, self._accounts, self._now) is None:
            self._line += 1
            self._context.counted.append(session)
        return True

    def decide(self, session: SessionRequest) -> Seats | Refusal:
        """The nodes where ``session`` may start now, or why it may not. Takes nothing."""
        self._mark("check")
        outline = self._outline(session)
        blocked = check(session, outline.slots, self._accounts, self._now)
        if blocked is not None or outline.defects:
            return self._refuse(self._never_starts(outline), blocked)
        run_time = FOREVER if session.run_time is None else session.run_time
        full = self._full.get(outline)
        if full is not None and run_time >= full.run_time:
            return self._refuse(self._shortage(session, outline, full, run_time).shortage)
        self._mark("place")
        if session.session_id not in self._waits:
            seats = self._floor.find(session, outline, self._now + run_time)
            if seats is not None:
                return seats
        self._mark("explain")
        full = self._shortage(session, outline, full, run_time)
        full.run_time = run_time
        return self._refuse(full.shortage)

    def _shortage(
        self, session: SessionRequest, outline: Outline, full: _Full | None, run_time: float
    ) -> _Full:
        """What is known of an outline without room, worked out now unless ``full`` says it."""
        told = self._readers is None or session.session_id in self._readers
        if full is None or told > full.told:
            exact = self._readers is not None or len(self._full) < EXACT
            shortage = shortage_of(outline, self._floor, exact=exact, told=told)
            self._full[outline] = full = _Full(shortage, run_time, told)
        return full

    def start(self, session: SessionRequest, seats: Seats) -> Placement:
        """Take the devices for ``session`` and charge its quotas."""
        outline = self._outline(session)
        self._accounts.charge(session, outline.slots)
        ends_at = FOREVER if session.run_time is None else self._now + session.run_time
        return self._floor.take(session, outline, seats, ends_at)

    def line_up(self, session: SessionRequest, refusal: Refusal) -> Refusal:
        """Let ``session`` stand in line; reserve for it when it is the first of its lane or waited too long."""
        self._line += 1
        shortage = refusal.shortage
        if shortage is None or not shortage.eligible:
            return refusal
        due = self._reserves(session)
        if not (due or self._preemptor or self._held):
            return refusal
        self._mark("preempt")
        seized = self._seize(session, shortage)
        self._mark("reserve")
        if seized is not None:
            victims = tuple(sorted(v.session_id for v in seized.victims))
            refusal = replace(refusal, booking=Booking(UNKNOWN, seized.seats), waits_for=victims)
        elif due:
            refusal = self.estimated(session, refusal)
        if refusal.booking is not None:
            run_time = FOREVER if session.run_time is None else session.run_time
            self._keep(session.session_id, refusal.booking, run_time)
        return refusal

    def _release(self, session_id: str) -> None:
        """Let ``session_id`` itself have what is kept for it."""
        for seat in self._held[session_id]:
            seat.node.release(session_id)

    def _seize(self, session: SessionRequest, shortage: Shortage) -> Eviction | None:
        """Where ``session`` gets its place from others, and whose end it waits for; or None."""
        seats = self._held.get(session.session_id)
        if seats is not None:  # those who end already are enough, or nothing would be held
            mine = (e for e in self._running if e.claimed_by == session.session_id)
            return Eviction(seats, tuple(mine))
        if self._preemptor is None or self._rules is None:
            return None
        outline = self._outline(session)
        found = self._preemptor.victims(session, outline, shortage.eligible)
        if found is not None:
            self.preemptions += [
                Preemption(each.session_id, session.session_id, self._rules.action)
                for each in found.victims
            ]
        return found

    def estimated(self, session: SessionRequest, refusal: Refusal) -> Refusal:
        """``refusal`` with when and where ``session`` can start first, when it waits for resources."""
        if refusal.shortage is None or not refusal.queues:
            return refusal
        outline = self._outline(session)
        booking = earliest(outline, refusal.shortage.eligible, self._now)
        if booking is None:
            return refusal
        waits_for = holders_of(booking, self._running, self._now)
        return replace(refusal, booking=booking, waits_for=waits_for)

    def _refuse(self, shortage: Shortage | None, blocked: Blocked | None = None) -> Refusal:
        return Refusal(self._line + 1, len(self._floor.nodes), shortage, blocked)

    def _reserves(self, session: SessionRequest) -> bool:
        aged = self._aged < AGED_RESERVATIONS and has_aged(session, self._context)
        lane = (session.priority, self._outline(session).lane)
        first = lane not in self._lanes
        if first:
            self._lanes.add(lane)
        self._aged += aged
        return first or aged

    def _never_starts(self, outline: Outline) -> Shortage | None:
        if outline not in self._never:
            self._never[outline] = never_of(outline, self._floor)
        return self._never[outline]


def no_group(session: SessionRequest) -> Refusal:
    """For a session whose resource group is unknown or switched off: it may come back."""
    reason = Reason(
        "resource-group", f"resource group {session.resource_group!r} takes no sessions"
    )
    return Refusal(1, 0, None, Blocked((reason,)))
