"""What becomes of sessions whose node is lost, by type of session: the group's option ``lost_after``.

A session that may go on elsewhere is handed to its node with a lease: a node that hears nothing of the
manager for that long ends the run by itself. The lease is over well before the session is put back to
the queue, so that two runs of it never live at once, whatever became of the network. Sessions that end have
one only where the group says so: a manager that is away for long would cost people their work.

A cluster that is just being started on several nodes has such a lease whatever its type: if one of them is lost,
the others shall not hold their parts for it, and nobody has worked in it yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from spawner.sessions.durations import seconds_of
from spawner.sessions.kinds import TYPES
from spawner.sessions.retries import NODE_LOST, policy_of
from spawner.sessions.states import Status, Target
from spawner.sessions.tables import SessionRow

WAIT, TERMINATE, REQUEUE = "wait", "terminate", "requeue"
REQUEUED = ("batch", "inference")
"""Types that may start again elsewhere; people lose the others' state."""
SHORTEST_LEASED = 180.0
"""Seconds: less leaves no time for a node to notice that it is cut off, and to end what it runs."""
LEASE_SHARE = 0.5
ENDING = 30.0
"""Seconds that a node may take to notice that a lease is over, and to end the run."""
START_LEASE = "start_lease"
"""In ``recovery``: the lease of a cluster's containers until all of them run."""
THEN = "then"
"""In ``recovery``: what was to follow the loss of its node when the present run was handed over."""
ASSEMBLING = (Status.SCHEDULED.value, Status.PREPARING.value, Status.CREATING.value)


@dataclass(frozen=True, slots=True)
class LossRule:
    """After how many seconds without its node something happens to a session, and what."""

    after: float | None = None
    then: str = WAIT
    leased: bool = False
    """Whether the node ends the run first also where the session just ends."""

    @property
    def lease(self) -> float | None:
        """Seconds after which a node that is cut off ends the run; None: never."""
        ends = self.leased or self.then == REQUEUE
        return self.after * LEASE_SHARE if ends and self.after else None


Rules = Mapping[str, LossRule]


def read_rules(value: Any) -> Rules:
    """The rules by type of session. Raises ``ValueError`` with a sentence.

    A plain duration ends the sessions of all types after it; types that are left out wait for ever.
    """
    if not isinstance(value, Mapping):
        after = seconds_of(value)
        return {each: LossRule(after, TERMINATE) for each in TYPES}
    rules = {each: LossRule() for each in TYPES}
    for kind, given in value.items():
        if kind not in TYPES:
            raise ValueError(f"{str(kind)[:80]!r}: session types are {', '.join(TYPES)}")
        try:
            rules[kind] = _rule(kind, given)
        except ValueError as error:
            raise ValueError(f"{kind}: {error}") from None
    return rules


def _rule(kind: str, given: Any) -> LossRule:
    usual = REQUEUE if kind in REQUEUED else TERMINATE
    if not isinstance(given, Mapping):
        given = {"after": given}
    unknown = [name for name in given if name not in ("after", "then", "lease")]
    if unknown:
        raise ValueError(f"{str(unknown[0])[:80]!r} is unknown: give after, then and lease")
    allowed = (WAIT, TERMINATE, REQUEUE) if kind in REQUEUED else (WAIT, TERMINATE)
    then = given.get("then", usual)
    if then not in allowed:
        raise ValueError(f"then is {str(then)[:80]!r}: one of {', '.join(allowed)}")
    leased = given.get("lease", then == REQUEUE)
    if leased not in {REQUEUE: (True,), WAIT: (False,)}.get(then, (True, False)):
        told = "true or false with terminate, true with requeue"
        raise ValueError(f"lease is {str(leased)[:80]!r}: {told}")
    if then == WAIT:
        return LossRule()
    if given.get("after") is None:
        raise ValueError('after is missing: a duration such as "10m"')
    after = seconds_of(given["after"])
    if leased and after < SHORTEST_LEASED:
        what = "to requeue" if then == REQUEUE else "for a lease"
        least = f"{SHORTEST_LEASED:g} seconds"
        raise ValueError(f"{given['after']!r} is too short {what}: at least {least}")
    return LossRule(after, then, leased and then == TERMINATE)


def rule_for(session: SessionRow, rules: Rules | None) -> LossRule:
    """The rule of one session: where its group ends it, its own retry policy may save it."""
    rule = (rules or {}).get(session.type, LossRule())
    policy = policy_of(session)
    if rule.after is None or policy is None or session.type not in REQUEUED:
        return rule
    again = NODE_LOST in policy.causes and rule.after >= SHORTEST_LEASED
    return replace(rule, then=REQUEUE if again else TERMINATE)


def is_assembled(session: SessionRow) -> bool:
    """Whether its containers are just being started on several nodes: all of them, or none."""
    return is_spread(session) and session.status in ASSEMBLING


def is_spread(session: SessionRow) -> bool:
    """Whether its containers may be on several nodes."""
    return session.cluster_size > 1 and session.cluster_mode == "multi-node"


def lease_of(session: SessionRow) -> float | None:
    """The lease with which the present run was handed to its nodes, as it is now."""
    kept = session.recovery or {}
    given = [kept.get("lease"), kept.get(START_LEASE) if is_assembled(session) else None]
    return min((float(each) for each in given if each is not None), default=None)


def may_be_given_up(session: SessionRow, rule: LossRule, silent: float, untold: float) -> bool:
    """Whether a node that was not heard for ``silent`` seconds surely ended the run, where ``rule`` wants that.

    ``untold``: for how long it is told nothing: it may have heard what it could not answer. A run without a
    lease is not given up, unless its session is told to end: then no other run of it follows.
    """
    lease = lease_of(session)
    if rule.lease is None:
        return True
    if lease is None:
        return session.target == Target.TERMINATED
    return silent >= lease / LEASE_SHARE and untold >= lease + ENDING


def starts_again(session: SessionRow) -> bool:
    """Whether another run follows one that its node ended because its lease was over."""
    return is_assembled(session) or (session.recovery or {}).get(THEN) != TERMINATE


def hand_over(session: SessionRow, rules: Rules | None, patience: float) -> None:
    """Fix the leases of the run that its nodes hear of now; ``patience`` is what makes a silent one lost."""
    kept = session.recovery or {}
    rule = rule_for(session, rules)
    new = {**kept, "lease": rule.lease, THEN: rule.then}
    if is_spread(session):
        new[START_LEASE] = patience * LEASE_SHARE
    if any(new[name] != kept.get(name) for name in new):
        session.recovery = new
