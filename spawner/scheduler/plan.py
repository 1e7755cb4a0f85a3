"""One pass: order, check, place, reserve, explain. ``plan`` for what waits, ``fit`` for what someone thinks of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from spawner.scheduler.check import Accounts, Blocked, cancelled, check
from spawner.scheduler.explain import Refusal, Shortage, never_of, shortage_of
from spawner.scheduler.fairness import capacity_of
from spawner.scheduler.floor import Floor
from spawner.scheduler.model import (
    Explanation,
    GroupPolicy,
    Placement,
    Plan,
    Preemption,
    Reason,
    Reservation,
    SessionRequest,
    Snapshot,
    Verdict,
)
from spawner.scheduler.nodes import FOREVER, UNKNOWN, Node
from spawner.scheduler.order import OrderContext, Sequencer, has_aged, in_order, may_precede
from spawner.scheduler.policies import BUILT_IN, Policies
from spawner.scheduler.preempt import Eviction, Preemptor, kept_for
from spawner.scheduler.reserve import Booking, Seat, earliest, holders_of, reserve
from spawner.scheduler.select import Selector
from spawner.scheduler.shapes import Lane, Outline, Shapes

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
    """One resource group within one pass. ``sessions`` are all that will be asked about."""

    def __init__(
        self,
        policy: GroupPolicy,
        selector: Selector,
        snapshot: Snapshot,
        sessions: Sequence[SessionRequest],
        accounts: Accounts,
    ) -> None:
        self._now = snapshot.now
        self._running = [e for e in snapshot.running if e.resource_group == policy.name]
        self._accounts = accounts
        self._line = 0
        mine = [agent for agent in snapshot.agents if agent.resource_group == policy.name]
        shapes = Shapes(policy, mine)
        self._outlines = {each.session_id: shapes.of(each) for each in sessions}
        self.dry = False
        """Whether the next requests are asked for an answer only, which is then exact."""
        self.told = True
        """Whether anybody reads why the next sessions wait."""
        self._floor = Floor(policy, selector, snapshot, shapes)
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
        """Go through the queue: each session starts, waits with or without a reservation, or is cancelled."""
        counted = self._context.counted
        for session in in_order(sessions, sequencer, self._context):
            gone = cancelled(session) if session.dependencies else None
            if gone is not None:
                yield session, gone
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

    def decide(self, session: SessionRequest) -> Seats | Refusal:
        """The nodes where ``session`` may start now, or why it may not. Takes nothing."""
        outline = self._outlines[session.session_id]
        blocked = check(session, outline.slots, self._accounts, self._now)
        if blocked is not None or outline.defects:
            return self._refuse(self._never_starts(outline), blocked)
        run_time = FOREVER if session.run_time is None else session.run_time
        full = self._full.get(outline)
        if full is not None and run_time >= full.run_time:
            return self._refuse(self._shortage(outline, full, run_time).shortage)
        seats = self._floor.find(session, outline, self._now + run_time)
        if seats is not None:
            return seats
        full = self._shortage(outline, full, run_time)
        full.run_time = run_time
        return self._refuse(full.shortage)

    def _shortage(self, outline: Outline, full: _Full | None, run_time: float) -> _Full:
        """What is known of an outline without room, worked out now unless ``full`` says it."""
        if full is None or self.told > full.told:
            exact = self.dry or len(self._full) < EXACT
            shortage = shortage_of(outline, self._floor, exact=exact, told=self.told)
            self._full[outline] = full = _Full(shortage, run_time, self.told)
        return full

    def start(self, session: SessionRequest, seats: Seats) -> Placement:
        """Take the devices for ``session`` and charge its quotas."""
        outline = self._outlines[session.session_id]
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
        seized = self._seize(session, shortage)
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
        outline = self._outlines[session.session_id]
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
        outline = self._outlines[session.session_id]
        booking = earliest(outline, refusal.shortage.eligible, self._now)
        if booking is None:
            return refusal
        waits_for = holders_of(booking, self._running, self._now)
        return replace(refusal, booking=booking, waits_for=waits_for)

    def _refuse(self, shortage: Shortage | None, blocked: Blocked | None = None) -> Refusal:
        return Refusal(self._line + 1, len(self._floor.nodes), shortage, blocked)

    def _reserves(self, session: SessionRequest) -> bool:
        aged = self._aged < AGED_RESERVATIONS and has_aged(session, self._context)
        lane = (session.priority, self._outlines[session.session_id].lane)
        first = lane not in self._lanes
        if first:
            self._lanes.add(lane)
        self._aged += aged
        return first or aged

    def _never_starts(self, outline: Outline) -> Shortage | None:
        if outline not in self._never:
            self._never[outline] = never_of(outline, self._floor)
        return self._never[outline]


def plan(snapshot: Snapshot, policies: Policies = BUILT_IN) -> Plan:
    """Decide which pending sessions start now and where, and say of all others why they wait.

    Raises ``PolicyError`` when a group names a sequencer or selector that ``policies`` lacks.
    """
    policies.check(snapshot.groups)
    accounts = Accounts(snapshot.quotas)
    queues = _by_group(snapshot)
    placements: list[Placement] = []
    waiting: list[Explanation] = []
    order: list[str] = []
    reservations: list[Reservation] = []
    preemptions: list[Preemption] = []
    gone: list[Reason] = []
    for policy in sorted(snapshot.groups, key=lambda group: group.name):
        sessions = queues.pop(policy.name, [])
        group = GroupPass(policy, policies.selector(policy), snapshot, sessions, accounts)
        for session, outcome in group.run(sessions, policies.sequencer(policy)):
            order.append(session.session_id)
            if isinstance(outcome, Placement):
                placements.append(outcome)
            elif isinstance(outcome, Reason):
                gone.append(outcome)
            else:
                waiting.append(outcome.explanation(session.session_id))
                if outcome.booking is not None:
                    reservations.append(outcome.booking.reservation(session.session_id))
        preemptions += group.preemptions
    for name in sorted(queues):
        for session in queues[name]:
            order.append(session.session_id)
            cancel = cancelled(session)
            if cancel is not None:
                gone.append(cancel)
            else:
                waiting.append(_no_group(session).explanation(session.session_id))
    return Plan(
        tuple(placements),
        tuple(waiting),
        tuple(order),
        reservations=tuple(reservations),
        preemptions=tuple(preemptions),
        cancelled=tuple(gone),
    )


def fit(snapshot: Snapshot, request: SessionRequest, policies: Policies = BUILT_IN) -> Verdict:
    """What ``plan`` would say of ``request`` if it were submitted now. Nothing is taken."""
    return fit_all(snapshot, (request,), policies)[0]


def fit_all(
    snapshot: Snapshot, requests: Sequence[SessionRequest], policies: Policies = BUILT_IN
) -> tuple[Verdict, ...]:
    """What ``plan`` would say of each of ``requests`` alone, as the last one of its priority band.

    One run through the queue serves all requests of one group and priority. Quotas count what is held
    and what this group's queue would start; other groups' queues are not run.
    """
    policies.check(snapshot.groups)
    known = {policy.name: policy for policy in snapshot.groups}
    verdicts: dict[int, Verdict] = {}
    lines: dict[tuple[str, int], list[tuple[int, SessionRequest]]] = {}
    for number, request in enumerate(requests):
        asked = replace(request, session_id=f"?{number}")
        lines.setdefault((asked.resource_group, asked.priority), []).append((number, asked))
    for (name, priority), line in lines.items():
        if name not in known:
            for number, asked in line:
                verdicts[number] = _verdict(_no_group(asked), requests[number].session_id)
            continue
        policy = known[name]
        ahead = [
            each
            for each in snapshot.pending
            if each.resource_group == name and may_precede(each, policy, snapshot.now, priority)
        ]
        everyone = [*ahead, *(asked for _, asked in line)]
        accounts = Accounts(snapshot.quotas)
        group = GroupPass(policy, policies.selector(policy), snapshot, everyone, accounts)
        group.told = False
        for _ in group.run(ahead, policies.sequencer(policy)):
            pass
        group.dry = group.told = True
        for number, asked in line:
            decision = group.decide(asked)
            if isinstance(decision, Refusal):
                decision = group.estimated(asked, decision)
            verdicts[number] = _verdict(decision, requests[number].session_id)
    return tuple(verdicts[number] for number in range(len(requests)))


def why(snapshot: Snapshot, session_id: str, policies: Policies = BUILT_IN) -> Verdict:
    """What a pass would do with one pending session now, with an estimate of its start if it waits.

    Only the queue of its group is run, down to its own priority. Raises ``KeyError`` for a session that
    does not wait in ``snapshot``.
    """
    asked = {each.session_id: each for each in snapshot.pending}[session_id]
    gone = cancelled(asked)
    if gone is not None:
        return Verdict("never", gone.message)
    policy = {each.name: each for each in snapshot.groups}.get(asked.resource_group)
    if policy is None:
        return _verdict(_no_group(asked), session_id)
    policies.check((policy,))
    ahead = [
        each
        for each in snapshot.pending
        if each.resource_group == policy.name
        and may_precede(each, policy, snapshot.now, asked.priority)
    ]
    accounts = Accounts(snapshot.quotas)
    group = GroupPass(policy, policies.selector(policy), snapshot, ahead, accounts)
    for session, outcome in group.run(ahead, policies.sequencer(policy)):
        if session is not asked:
            continue
        if isinstance(outcome, Placement):
            agent_id = outcome.kernels[0].agent_id
            return Verdict("now", "can start now", agent_id=agent_id)
        if isinstance(outcome, Refusal):
            if outcome.booking is None:
                outcome = group.estimated(session, outcome)
            return _verdict(outcome, session_id)
    raise KeyError(session_id)


def _by_group(snapshot: Snapshot) -> dict[str, list[SessionRequest]]:
    queues: dict[str, list[SessionRequest]] = {}
    for session in snapshot.pending:
        queues.setdefault(session.resource_group, []).append(session)
    return queues


def _no_group(session: SessionRequest) -> Refusal:
    """For a session whose resource group is unknown or switched off: it may come back."""
    reason = Reason(
        "resource-group", f"resource group {session.resource_group!r} takes no sessions"
    )
    return Refusal(1, 0, None, Blocked((reason,)))


def _verdict(decision: Seats | Refusal, session_id: str) -> Verdict:
    if not isinstance(decision, Refusal):
        return Verdict("now", "can start now", agent_id=decision[0].agent_id)
    return Verdict(
        "never" if decision.never else "wait",
        decision.message,
        explanation=decision.explanation(session_id),
        would_fit=decision.shortage.would_fit if decision.queues and decision.shortage else None,
    )
