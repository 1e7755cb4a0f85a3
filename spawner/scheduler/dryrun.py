"""Dry runs: what a pass would do with a request that someone thinks of, or with one that waits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from spawner.scheduler.check import Accounts, cancelled
from spawner.scheduler.explain import Refusal
from spawner.scheduler.group import GroupPass, Seats, no_group
from spawner.scheduler.model import Placement, SessionRequest, Snapshot, Verdict
from spawner.scheduler.order import may_precede
from spawner.scheduler.policies import BUILT_IN, Policies


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
                verdicts[number] = _verdict(no_group(asked), requests[number].session_id)
            continue
        policy = known[name]
        ahead = [
            each
            for each in snapshot.pending
            if each.resource_group == name and may_precede(each, policy, snapshot.now, priority)
        ]
        accounts = Accounts(snapshot.quotas)
        group = GroupPass(
            policy,
            policies.selector(policy),
            snapshot,
            [*ahead, *(asked for _, asked in line)],
            accounts,
            readers={asked.session_id for _, asked in line},
        )
        for _ in group.run(ahead, policies.sequencer(policy)):
            pass
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
        return _verdict(no_group(asked), session_id)
    policies.check((policy,))
    ahead = [
        each
        for each in snapshot.pending
        if each.resource_group == policy.name
        and may_precede(each, policy, snapshot.now, asked.priority)
    ]
    accounts = Accounts(snapshot.quotas)
    selector = policies.selector(policy)
    group = GroupPass(policy, selector, snapshot, ahead, accounts, readers={session_id})
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


def _verdict(decision: Seats | Refusal, session_id: str) -> Verdict:
    if not isinstance(decision, Refusal):
        return Verdict("now", "can start now", agent_id=decision[0].agent_id)
    return Verdict(
        "never" if decision.never else "wait",
        decision.message,
        explanation=decision.explanation(session_id),
        would_fit=decision.shortage.would_fit if decision.queues and decision.shortage else None,
    )
