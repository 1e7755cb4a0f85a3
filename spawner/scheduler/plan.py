"""One pass over all resource groups: who starts now and where, and why all others wait."""

from __future__ import annotations

from spawner.scheduler.check import Accounts, cancelled
from spawner.scheduler.group import GroupPass, no_group
from spawner.scheduler.model import (
    Explanation,
    Placement,
    Plan,
    Preemption,
    Reason,
    Reservation,
    SessionRequest,
    Snapshot,
)
from spawner.scheduler.observe import Observer, unobserved
from spawner.scheduler.policies import BUILT_IN, Policies


def plan(
    snapshot: Snapshot, policies: Policies = BUILT_IN, observer: Observer = unobserved
) -> Plan:
    """Decide which pending sessions start now and where, and say of all others why they wait.

    ``observer`` is told of each phase. Raises ``PolicyError`` when a group names a sequencer or selector
    that ``policies`` lacks.
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
        selector = policies.selector(policy)
        group = GroupPass(policy, selector, snapshot, sessions, accounts, observer)
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
        observer(policy.name, "")
    for name in sorted(queues):
        for session in queues[name]:
            order.append(session.session_id)
            cancel = cancelled(session)
            if cancel is not None:
                gone.append(cancel)
            else:
                waiting.append(no_group(session).explanation(session.session_id))
    return Plan(
        tuple(placements),
        tuple(waiting),
        tuple(order),
        reservations=tuple(reservations),
        preemptions=tuple(preemptions),
        cancelled=tuple(gone),
    )


def _by_group(snapshot: Snapshot) -> dict[str, list[SessionRequest]]:
    queues: dict[str, list[SessionRequest]] = {}
    for session in snapshot.pending:
        queues.setdefault(session.resource_group, []).append(session)
    return queues
