"""One pass: order, check, place, explain. ``plan`` for what waits, ``fit`` for what someone thinks of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from spawner.scheduler.check import Accounts, Blocked, check
from spawner.scheduler.explain import Refusal, Shortage, never_of, shortage_of
from spawner.scheduler.fairness import capacity_of
from spawner.scheduler.filters import KIND, PRESENCE, sift
from spawner.scheduler.model import (
    Explanation,
    GroupPolicy,
    Placement,
    Plan,
    Reason,
    SessionRequest,
    Snapshot,
    Verdict,
)
from spawner.scheduler.nodes import Need, Node
from spawner.scheduler.order import OrderContext, Sequencer, in_order
from spawner.scheduler.policies import BUILT_IN, Policies
from spawner.scheduler.select import Key, Ranking, Selector, idle_accelerators
from spawner.scheduler.shapes import Shape, Shapes

Class = tuple[tuple[str, ...], frozenset[str], frozenset[str], frozenset[int]]
"""What shapes that share a ranking have in common: slots wanted, architectures, designation, image."""


class GroupPass:
    """One resource group within one pass.

    ``sessions`` are all that will be asked about: their shapes are known beforehand, so rankings can
    forget nodes that are too full for every one of them.
    """

    def __init__(
        self,
        policy: GroupPolicy,
        selector: Selector,
        snapshot: Snapshot,
        sessions: Sequence[SessionRequest],
        accounts: Accounts,
    ) -> None:
        self._policy = policy
        self._selector = selector
        self._now = snapshot.now
        self._accounts = accounts
        agents = (agent for agent in snapshot.agents if agent.resource_group == policy.name)
        by_id = sorted(agents, key=lambda agent: agent.agent_id)
        self._nodes = [Node(agent, index) for index, agent in enumerate(by_id)]
        self._changed: list[Node] = []
        self._line = 0
        self._shapes = Shapes()
        self._shape_of = {each.session_id: self._shapes.of(each) for each in sessions}
        self._full: dict[Shape, Shortage] = {}
        self._never: dict[Shape, Shortage | None] = {}
        self._holders: dict[frozenset[str], frozenset[int]] = {}
        self._rankings = self._rank()

    def decide(self, session: SessionRequest) -> Node | Refusal:
        """The node where ``session`` may start now, or why it may not. Takes nothing."""
        shape = self._shape_of[session.session_id]
        blocked = check(session, shape.slots, self._accounts, self._now)
        shortage: Shortage | None
        if blocked is not None:
            shortage = self._never_starts(shape)
        elif shape in self._full:
            shortage = self._full[shape]
        else:
            if shape.defect is None:
                node = self._rankings[shape].pick(shape.need, session.failed_agents)
                if node is not None:
                    return node
            shortage = shortage_of(shape, self._nodes)
        return Refusal(self._line + 1, len(self._nodes), shortage, blocked)

    def start(self, session: SessionRequest, node: Node) -> Placement:
        """Take the devices for ``session`` on ``node`` and charge its quotas."""
        kernels = tuple(node.place(kernel) for kernel in session.kernels)
        self._changed.append(node)
        self._accounts.charge(session, self._shape_of[session.session_id].slots)
        return Placement(session.session_id, kernels)

    def line_up(self, session: SessionRequest, refusal: Refusal) -> None:
        """Let ``session`` wait; if it waits for resources, later ones may not take them from it.

        One session of a shape keeps as much as many of them: no later session may get past the first.
        """
        shape = self._shape_of[session.session_id]
        if refusal.queues:
            self._line += 1
        if refusal.blocked is None and refusal.shortage is not None and shape not in self._full:
            self._full[shape] = refusal.shortage
            for node in refusal.shortage.keepers:
                node.keep(shape.need)

    def _never_starts(self, shape: Shape) -> Shortage | None:
        if shape not in self._never:
            self._never[shape] = never_of(shape, self._nodes)
        return self._never[shape]

    def _rank(self) -> dict[Shape, Ranking]:
        """The ranking of each sound shape; shapes that differ in amounts only have the same one."""
        members: dict[Class, list[Shape]] = {}
        for shape in self._shapes:
            if shape.defect is not None:
                continue
            of = (shape.wanted, shape.architectures, shape.designated, self._with_image(shape))
            members.setdefault(of, []).append(shape)
        rankings: dict[Shape, Ranking] = {}
        for shapes in members.values():
            columns = zip(*(shape.need for shape in shapes), strict=True)
            least: Need = tuple(min(column) for column in columns)
            ranking = self._ranking(shapes[0], least)
            rankings.update(dict.fromkeys(shapes, ranking))
        return rankings

    def _ranking(self, shape: Shape, least: Need) -> Ranking:
        nodes = sift(self._nodes, shape, (*KIND, *PRESENCE), {})
        wanted, holders = shape.wanted, self._with_image(shape)
        preference = {
            node.index: (idle_accelerators(node, wanted), int(node.index not in holders))
            for node in nodes
        }

        def key(node: Node) -> Key:
            return preference[node.index] + self._selector(node, wanted, self._policy)

        return Ranking(nodes, key, least, self._changed)

    def _with_image(self, shape: Shape) -> frozenset[int]:
        """Nodes that have all images of ``shape`` already."""
        holders = self._holders.get(shape.images)
        if holders is None:
            holders = self._holders[shape.images] = frozenset(
                node.index for node in self._nodes if shape.images <= node.agent.images
            )
        return holders


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
    for policy in sorted(snapshot.groups, key=lambda group: group.name):
        sessions = queues.pop(policy.name, [])
        group = GroupPass(policy, policies.selector(policy), snapshot, sessions, accounts)
        context = _context(snapshot, policy)
        for session, outcome in _run(group, sessions, policies.sequencer(policy), context):
            order.append(session.session_id)
            if isinstance(outcome, Placement):
                placements.append(outcome)
            else:
                waiting.append(outcome.explanation(session.session_id))
    for name in sorted(queues):
        for session in queues[name]:
            order.append(session.session_id)
            waiting.append(_no_group(session).explanation(session.session_id))
    return Plan(tuple(placements), tuple(waiting), tuple(order))


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
            if each.resource_group == name and each.priority >= priority
        ]
        everyone = [*ahead, *(asked for _, asked in line)]
        accounts = Accounts(snapshot.quotas)
        group = GroupPass(policy, policies.selector(policy), snapshot, everyone, accounts)
        context = _context(snapshot, policy)
        for _ in _run(group, ahead, policies.sequencer(policy), context):
            pass
        for number, asked in line:
            verdicts[number] = _verdict(group.decide(asked), requests[number].session_id)
    return tuple(verdicts[number] for number in range(len(requests)))


def _run(
    group: GroupPass,
    sessions: Sequence[SessionRequest],
    sequencer: Sequencer,
    context: OrderContext,
) -> Iterator[tuple[SessionRequest, Placement | Refusal]]:
    """Go through the queue of a group: each session starts, or waits and keeps what it waits for."""
    for session in in_order(sessions, sequencer, context):
        decision = group.decide(session)
        if isinstance(decision, Node):
            context.counted.append(session)
            yield session, group.start(session, decision)
        else:
            group.line_up(session, decision)
            if decision.queues:
                context.counted.append(session)
            yield session, decision


def _context(snapshot: Snapshot, policy: GroupPolicy) -> OrderContext:
    return OrderContext(
        snapshot.now,
        policy,
        capacity_of(snapshot.agents, policy.name),
        tuple(each for each in snapshot.running if each.resource_group == policy.name),
        snapshot.usage,
    )


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


def _verdict(decision: Node | Refusal, session_id: str) -> Verdict:
    if isinstance(decision, Node):
        return Verdict("now", "can start now", agent_id=decision.agent_id)
    explanation = decision.explanation(session_id)
    return Verdict("never" if decision.never else "wait", decision.message, explanation=explanation)
