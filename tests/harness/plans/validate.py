"""The invariants of a plan, checked by replaying it against its snapshot with plain, slow code.

Nothing here is shared with the pass but the value objects, the quantum of a slot and the length of a
grace, so that an error in one is not repeated in the other. The list is in spawner/scheduler/README.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from spawner.scheduler.model import (
    Explanation,
    KernelPlacement,
    KernelRequest,
    Placement,
    Plan,
    Preemption,
    Reservation,
    SessionRequest,
    Snapshot,
)
from tests.harness.plans.party import Party, ending_for, hold_for_preemptors
from tests.harness.plans.replay import FOREVER, Cluster, amounts

OWN_LIMITS = frozenset(
    {"quota", "concurrency", "not-before", "resource-group", "dependency", "containers"}
)
AGED_RESERVATIONS = 64
TOP = 100
"""The highest priority."""


class InvalidPlan(AssertionError):
    """The plan breaks invariants; the text lists all of them."""


def validate(snapshot: Snapshot, plan: Plan) -> None:
    """Raise ``InvalidPlan`` unless ``plan`` is a right answer to ``snapshot``."""
    replay = Replay(snapshot, plan)
    replay.everybody_once()
    if not replay.faults:
        replay.in_order()
        replay.run()
    if replay.faults:
        raise InvalidPlan("; ".join(replay.faults))


class Replay:
    """A plan replayed session by session, with every fault found so far."""

    def __init__(self, snapshot: Snapshot, plan: Plan) -> None:
        self.faults: list[str] = []
        self._snapshot = snapshot
        self._plan = plan
        self._sessions = {each.session_id: each for each in snapshot.pending}
        self._groups = {each.name: each for each in snapshot.groups}
        self._cluster = Cluster(snapshot)
        self._quotas = {(q.scope, q.scope_id): q for q in snapshot.quotas}
        self._held = {scope: Counter(q.held_slots) for scope, q in self._quotas.items()}
        self._running = {scope: q.held_sessions for scope, q in self._quotas.items()}
        self._reserved = {each.session_id: each for each in plan.reservations}
        self._line: Counter[str] = Counter()
        self._lanes: set[object] = set()
        self._aged: Counter[str] = Counter()
        self._holds = hold_for_preemptors(self._cluster, snapshot)
        self._victims = {each.session_id: each for each in snapshot.running}

    def _fault(self, session: SessionRequest, text: str) -> None:
        self.faults.append(f"{session.session_id}: {text}")

    # Who is there, and in which order.

    def everybody_once(self) -> None:
        """Each pending session is placed, explained or cancelled, once, and the order names each once."""
        plan = self._plan
        pending = Counter(each.session_id for each in self._snapshot.pending)
        answered = Counter(each.session_id for each in plan.placements)
        answered.update(each.session_id for each in plan.waiting)
        answered.update(str(each.data["session_id"]) for each in plan.cancelled)
        if pending != answered:
            self.faults.append(f"pending {dict(pending)} but answered {dict(answered)}")
        if Counter(plan.order) != pending:
            self.faults.append(f"pending {dict(pending)} but ordered {plan.order}")
        victims = Counter(each.victim_id for each in plan.preemptions)
        if any(count > 1 for count in victims.values()):
            self.faults.append(f"ends sessions twice: {dict(victims)}")
        strays = {each.for_session_id for each in plan.preemptions} | set(self._reserved)
        strays -= {each.session_id for each in plan.waiting}
        if strays:
            self.faults.append(f"{sorted(strays)} preempt or reserve and do not wait")

    def in_order(self) -> None:
        """Who rose comes first; then bands descend, and in them the aged come first, both by waiting time."""
        last: dict[str, tuple[int, bool, float, str]] = {}
        for session_id in self._plan.order:
            session = self._sessions[session_id]
            group = self._groups.get(session.resource_group)
            if group is None:
                continue
            aged = self._is_aged(session)
            since = self._waits_since(session) if aged else session.submitted_at
            band = -1 - TOP if self._has_risen(session) else -session.priority
            key = (band, not aged, since, session_id)
            if not aged and group.sequencer not in ("fifo", "lifo"):
                key = (*key[:2], 0.0, "")
            before = last.get(group.name, key)
            wrong = before > key
            if group.sequencer == "lifo" and not aged and before[:2] == key[:2]:
                wrong = before < key
            if wrong:
                self.faults.append(f"{session_id} was looked at out of order")
            last[group.name] = key

    def run(self) -> None:
        """Go through the sessions in the order of the plan."""
        placed = {each.session_id: each for each in self._plan.placements}
        waiting = {each.session_id: each for each in self._plan.waiting}
        for session_id in self._plan.order:
            session = self._sessions[session_id]
            failed = any(each.state == "failed" for each in session.dependencies)
            cancel = failed and session.failed_parents == "cancel"
            if not cancel:
                self._cluster.drop_hold(session_id)
            if cancel != (session_id not in placed and session_id not in waiting):
                self._fault(session, f"should be cancelled: {cancel}")
            elif session_id in placed:
                self._start(session, placed[session_id])
            elif session_id in waiting:
                self._wait(session, waiting[session_id])

    # Waiting sessions.

    def _wait(self, session: SessionRequest, explanation: Explanation) -> None:
        group = self._groups.get(session.resource_group)
        party = Party(session, self._cluster, group)
        barred, beyond = self._barred(session)
        never = group is not None and (bool(party.defects) or beyond or party.hopeless())
        if group is None:
            barred = ["resource-group"]
        if explanation.unsatisfiable != never:
            self._fault(session, f"unsatisfiable is {explanation.unsatisfiable}, should be {never}")
        told = {reason.name for reason in explanation.reasons}
        if told & OWN_LIMITS != set(barred):
            self._fault(session, f"told of {told & OWN_LIMITS}, barred by {barred}")
        if not party.defects <= told:
            self._fault(session, f"told of {told}, wrong are {party.defects}")
        if explanation.position != self._line[session.resource_group] + 1:
            self._fault(session, f"position {explanation.position}, line {dict(self._line)}")
        if explanation.agents_total != len(party.agents) or not explanation.message or not told:
            self._fault(session, f"explained by {explanation}")
        reservation = self._reserved.get(session.session_id)
        if never or barred:
            if reservation is not None:
                self._fault(session, f"does not stand in line but has {reservation}")
            return
        self._line[session.resource_group] += 1
        takers = party.takers(self._until(session))
        if takers:
            self._fault(session, f"waits although {takers} could take it")
        for missing in explanation.missing:
            asked = {each.get(missing.slot, 0) for each in party.parts}
            if not 0 <= missing.available < missing.requested or missing.requested not in asked:
                self._fault(session, f"misses {missing}")
        if explanation.starts_at != (reservation.starts_at if reservation else None):
            self._fault(session, f"told {explanation.starts_at}, reserved {reservation}")
        self._reserve(session, party, reservation)

    def _reserve(
        self, session: SessionRequest, party: Party, reservation: Reservation | None
    ) -> None:
        """The first of a lane and the aged have the right reservation, and nobody else has one."""
        due = False
        if party.could_start():
            lane = (session.resource_group, session.priority, party.lane())
            aged = self._is_aged(session) and self._aged[session.resource_group] < AGED_RESERVATIONS
            due = lane not in self._lanes or aged
            self._lanes.add(lane)
            self._aged[session.resource_group] += aged
        ends = [e for e in self._plan.preemptions if e.for_session_id == session.session_id]
        held = self._holds.get(session.session_id)
        seized = party.could_start() and (bool(ends) or held is not None)
        if ends and held is not None:
            self._fault(session, f"preempts {ends} while its victims still end")
        if reservation is not None and ends:
            for text in self._unjust(session, party, reservation, ends):
                self._fault(session, text)
        elif seized and reservation is not None:
            kept = zip(reservation.agent_ids, reservation.amounts, strict=True)
            if {agent_id: Counter(amount) for agent_id, amount in kept} != held:
                self._fault(session, f"leaves {held}, where its victims are, for {reservation}")
        due = due or seized
        if due != (reservation is not None):
            self._fault(session, f"a reservation is due: {due}, there is {reservation}")
        if reservation is None:
            return
        for text in party.misreserved(reservation, seized=seized):
            self._fault(session, text)
        run_time = FOREVER if session.run_time is None else session.run_time
        self._cluster.claim(reservation, run_time)

    def _unjust(
        self,
        session: SessionRequest,
        party: Party,
        reservation: Reservation,
        ends: Sequence[Preemption],
    ) -> Iterable[str]:
        """What is wrong with ending these sessions for this one."""
        rules = self._groups[session.resource_group].preemption
        if rules is None:
            yield f"preempts {ends} though its group does not allow it"
            return
        chosen = [self._victims[each.victim_id] for each in ends]
        for each, end in zip(chosen, ends, strict=True):
            same = {
                "user": each.owner_id == session.owner_id,
                "project": each.project_id == session.project_id,
                "domain": each.domain == session.domain,
                "group": True,
            }
            if (
                each.priority >= session.priority
                or not each.preemptible
                or each.ending
                or each.claimed_by is not None
                or each.resource_group != session.resource_group
                or self._snapshot.now - each.started_at < rules.minimum_run_time
                or not same[rules.scope]
                or end.action != rules.action
            ):
                yield f"may not preempt {each.session_id}"
        waits = ending_for(session, self._snapshot)
        if party.would_fit(waits):
            yield f"preempts {[e.session_id for e in chosen]} though nobody has to end"
        if not party.has_then(reservation, [*waits, *chosen]):
            yield f"preempts {[e.session_id for e in chosen]}, which does not help"
        for spared in chosen:
            if party.would_fit([*waits, *(e for e in chosen if e is not spared)]):
                yield f"preempts {spared.session_id}, which is not needed"

    def _barred(self, session: SessionRequest) -> tuple[list[str], bool]:
        """Names of the session's own limits that keep it from starting, and whether they always will."""
        names: list[str] = []
        never = False
        if session.starts_at is not None and session.starts_at > self._snapshot.now:
            names.append("not-before")
        for parent in session.dependencies:
            if parent.state == "waiting" or (
                parent.state == "failed" and session.failed_parents == "wait"
            ):
                names.append("dependency")
        for scope in self._scopes(session):
            quota = self._quotas[scope]
            if quota.max_sessions is not None and self._running[scope] + 1 > quota.max_sessions:
                names.append("concurrency")
                never = never or quota.max_sessions < 1
            if quota.max_containers is not None and len(session.kernels) > quota.max_containers:
                names.append("containers")
                never = True
            for slot, amount in amounts(session.kernels).items():
                limit = None if quota.max_slots is None else quota.max_slots.get(slot)
                if limit is not None and self._held[scope][slot] + amount > limit:
                    names.append("quota")
                    never = never or amount > limit
        return names, never

    def _scopes(self, session: SessionRequest) -> list[tuple[str, str]]:
        if session.unlimited:
            return []
        mine = {
            "keypair": session.access_key,
            "user": session.owner_id,
            "project": session.project_id,
            "domain": session.domain,
        }
        return [scope for scope in self._quotas if mine.get(scope[0]) == scope[1]]

    def _is_aged(self, session: SessionRequest) -> bool:
        group = self._groups[session.resource_group]
        return self._snapshot.now - self._waits_since(session) > group.ageing

    def _has_risen(self, session: SessionRequest) -> bool:
        rise = self._groups[session.resource_group].rise
        waited = self._snapshot.now - self._waits_since(session)
        return rise is not None and waited > rise and self._is_aged(session)

    @staticmethod
    def _waits_since(session: SessionRequest) -> float:
        free = session.eligible_since
        return max(session.submitted_at if free is None else free, session.starts_at or 0.0)

    def _until(self, session: SessionRequest) -> float:
        return FOREVER if session.run_time is None else self._snapshot.now + session.run_time

    # Sessions that start.

    def _start(self, session: SessionRequest, placement: Placement) -> None:
        names, _ = self._barred(session)
        if names:
            self._fault(session, f"starts although barred by {names}")
        kernels = {kernel.kernel_id: kernel for kernel in session.kernels}
        if sorted(kernels) != sorted(each.kernel_id for each in placement.kernels):
            self._fault(session, "not all of its kernels are placed, each once")
            return
        agent_ids = {each.agent_id for each in placement.kernels}
        party = Party(session, self._cluster, self._groups.get(session.resource_group))
        apart = session.cluster_mode == "multi-node"
        if not agent_ids <= set(party.agents) or (len(agent_ids) > 1 and not apart):
            self._fault(session, f"goes to {agent_ids}")
            return
        if party.defects:
            self._fault(session, f"starts in spite of {party.defects}")
        for agent_id in sorted(agent_ids):
            here = [kernels[k.kernel_id] for k in placement.kernels if k.agent_id == agent_id]
            if not party.may_take(agent_id, here, self._until(session)):
                self._fault(session, f"goes to {agent_id}, which cannot or may not take it")
        for agent_id in sorted(agent_ids):
            here = [kernels[k.kernel_id] for k in placement.kernels if k.agent_id == agent_id]
            shares = [s for k in placement.kernels if k.agent_id == agent_id for s in k.shares]
            self._cluster.occupy(agent_id, here, self._until(session), session, shares)
        for each in placement.kernels:
            self._cut(session, kernels[each.kernel_id], each)
        for scope in self._scopes(session):
            self._held[scope].update(amounts(session.kernels))
            self._running[scope] += 1

    def _cut(self, session: SessionRequest, kernel: KernelRequest, placed: KernelPlacement) -> None:
        given: Counter[str] = Counter()
        for share in placed.shares:
            step = self._cluster.steps[placed.agent_id].get(share.slot, 1)
            if share.amount <= 0 or share.amount % step:
                self._fault(session, f"share {share}")
            place = (placed.agent_id, share.slot, share.device_id)
            free = self._cluster.free.get(place, 0)
            if share.amount > free:
                self._fault(session, f"{share} of {free} free")
            self._cluster.free[place] = free - share.amount
            given[share.slot] += share.amount
        if dict(given) != {slot: amount for slot, amount in kernel.slots.items() if amount}:
            self._fault(session, f"{kernel.kernel_id} gets {dict(given)} for {dict(kernel.slots)}")
