"""Fair orders: dominant shares filled progressively, and shares of decayed usage.

Dominant resource fairness follows Ghodsi et al., NSDI 2011. Both orders are a tree of turns: at each
level the branch with the lowest cost goes next, and what was just decided raises its cost.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from spawner.scheduler.model import (
    Agent,
    GroupPolicy,
    RunningSession,
    SessionRequest,
    Snapshot,
    Usage,
)
from spawner.scheduler.order import OrderContext, by_time

Path = tuple[str, ...]
"""A place in the tree: an owner, or a domain, one of its projects and a user there."""

Level = Literal["domain", "project", "user"]
Scope = tuple[Level, str]
LEVELS: tuple[Level, ...] = ("domain", "project", "user")
PROVISION = 3600.0
"""Seconds for which a session that was just placed is charged, unless it runs shorter: its real usage
is unknown yet, and without a charge one user would get everything that is free at once."""


@dataclass(frozen=True, slots=True)
class Factor:
    """What decides in ``fair-share``: ``cost`` is compared, the smallest first; ``factor`` is for people.

    ``normalised`` is decayed usage as a part (0 to 1) of what using the whole group for ever would come
    to; ``cost`` is that over the weight; ``factor`` is 2 to the power of minus ``cost``: 1 without usage.
    """

    scope: Level
    scope_id: str
    normalised: float
    weight: float
    cost: float
    factor: float


def drf(sessions: Sequence[SessionRequest], context: OrderContext) -> Iterator[SessionRequest]:
    """Progressive filling: the owner with the smallest dominant share goes next.

    The dominant share is the largest part of any slot of the group that the owner holds, over the
    owner's weight (``GroupPolicy.weights``). What starts in the pass counts at once, so equal owners
    alternate. Slots that the group does not have are left out.
    """
    held: dict[str, dict[str, int]] = {}
    for each in context.running:
        mine = held.setdefault(each.owner_id, {})
        for kernel in each.kernels:
            for share in kernel.shares:
                mine[share.slot] = mine.get(share.slot, 0) + share.amount

    capacity, weights = context.capacity, context.group.weights
    dominant = {owner: _dominant(mine, capacity) for owner, mine in held.items()}

    def charge(session: SessionRequest) -> None:
        owner = session.owner_id
        mine = held.setdefault(owner, {})
        most = dominant.get(owner, 0.0)
        for kernel in session.kernels:
            for slot, amount in kernel.slots.items():
                n = mine[slot] = mine.get(slot, 0) + amount
                has = capacity.get(slot)
                if has and n / has > most:
                    most = n / has
        dominant[owner] = most

    def cost(path: Path) -> float:
        part = dominant.get(path[0], 0.0)
        return weighted(part, weights.get(path[0], 1.0)) if weights else part

    return _in_turns(sessions, context, lambda session: (session.owner_id,), cost, charge)


def _dominant(held: Mapping[str, int], capacity: Mapping[str, int]) -> float:
    """The largest part of any slot in ``held``."""
    return max((n / capacity[slot] for slot, n in held.items() if capacity.get(slot)), default=0.0)


def fair_share(
    sessions: Sequence[SessionRequest], context: OrderContext
) -> Iterator[SessionRequest]:
    """The domain, in it the project, in it the user with the least decayed usage for their weight.

    Those without usage come first. Inside a user it is first come, first served.
    """
    costs = Costs(context.group, context.capacity, context.usage, context.now)

    def charge(session: SessionRequest) -> None:
        seconds = PROVISION if session.run_time is None else min(PROVISION, session.run_time)
        path = _scopes(session)
        for kernel in session.kernels:
            costs.add(path, kernel.slots.items(), seconds)

    return _in_turns(sessions, context, _scopes, costs.of, charge)


def fair_share_factors(snapshot: Snapshot, group: str) -> tuple[Factor, ...]:
    """The factors by which ``fair-share`` would order ``group`` now, of all with usage or sessions.

    Sorted by scope and cost. Raises ``KeyError`` for a group that the snapshot does not have.
    """
    policies = {policy.name: policy for policy in snapshot.groups}
    costs = Costs(
        policies[group], capacity_of(snapshot.agents, group), snapshot.usage, snapshot.now
    )
    paths: set[Path] = set(costs.known)
    here = [_scopes(each) for each in snapshot.pending if each.resource_group == group]
    here += [_scopes(each) for each in snapshot.running if each.resource_group == group]
    for whole in here:
        paths.update(whole[:depth] for depth in (1, 2, 3))
    found = {(LEVELS[len(path) - 1], _scope_id(path)): costs.factor(path) for path in paths}
    return tuple(sorted(found.values(), key=lambda f: (LEVELS.index(f.scope), f.cost, f.scope_id)))


def capacity_of(agents: Iterable[Agent], group: str) -> dict[str, int]:
    """What all agents of ``group`` have together, by slot; masked devices do not count."""
    total: dict[str, int] = {}
    for agent in agents:
        if agent.resource_group == group:
            for device in agent.devices:
                if not device.masked:
                    total[device.slot] = total.get(device.slot, 0) + device.capacity
    return total


class _Account:
    """The decayed usage of one scope; ``known``: the snapshot has some of it."""

    __slots__ = ("known", "scope", "used", "weight")

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.used = 0.0
        self.weight = 1.0
        self.known = False


class Costs:
    """Decayed usage of every scope, as costs by path."""

    def __init__(
        self, group: GroupPolicy, capacity: Mapping[str, int], usage: Iterable[Usage], now: float
    ) -> None:
        life = group.half_life / math.log(2)
        weights = {slot: group.slot_weights.get(slot, 1.0) for slot, n in capacity.items() if n > 0}
        total = sum(weights.values())
        self._parts = {
            slot: weight / (capacity[slot] * life * total) if total > 0 else 0.0
            for slot, weight in weights.items()
        }
        """What a slot-second of each slot comes to."""
        self._chains: dict[Path, tuple[_Account, ...]] = {}
        self._accounts: dict[Scope, _Account] = {}
        for each in usage:
            if each.resource_group not in (None, group.name):
                continue
            account = self._account((each.scope, each.scope_id))
            kept = 0.5 ** (max(0.0, now - each.at) / group.half_life)
            account.used += self._normalised(each.slot_seconds.items()) * kept
            account.weight = each.weight
            account.known = True

    @property
    def known(self) -> Iterator[Path]:
        """Paths of the scopes with usage; only the last part of a project's counts."""
        for scope, scope_id in (each.scope for each in self._accounts.values() if each.known):
            if scope == "user":
                project, _, user = scope_id.partition("/")
                yield ("", project, user)
            else:
                yield (scope_id,) if scope == "domain" else ("", scope_id)

    def of(self, path: Path) -> float:
        """The cost of ``path``."""
        account = self._chain(path)[-1]
        return weighted(account.used, account.weight)

    def factor(self, path: Path) -> Factor:
        """All that makes up the cost of ``path``."""
        account = self._chain(path)[-1]
        cost = weighted(account.used, account.weight)
        return Factor(*account.scope, account.used, account.weight, cost, 2.0**-cost)

    def add(self, path: Path, held: Iterable[tuple[str, int]], seconds: float) -> None:
        """Charge the last scope of ``path`` and all above it for amounts that are ``held`` so long."""
        part = self._normalised(held) * seconds
        for account in self._chain(path):
            account.used += part

    def _account(self, scope: Scope) -> _Account:
        found = self._accounts.get(scope)
        if found is None:
            found = self._accounts[scope] = _Account(scope)
        return found

    def _chain(self, path: Path) -> tuple[_Account, ...]:
        """The accounts along ``path``, its own the last."""
        chain = self._chains.get(path)
        if chain is None:
            steps = range(1, len(path) + 1)
            scopes = ((LEVELS[depth - 1], _scope_id(path[:depth])) for depth in steps)
            chain = self._chains[path] = tuple(map(self._account, scopes))
        return chain

    def _normalised(self, slot_seconds: Iterable[tuple[str, float]]) -> float:
        part, total = self._parts.get, 0.0
        for slot, amount in slot_seconds:
            total += part(slot, 0.0) * amount
        return total


def weighted(part: float, weight: float) -> float:
    """``part`` for an owner of this weight; without weight everything costs infinitely much."""
    return part / weight if weight > 0 else math.inf


def _scopes(session: SessionRequest | RunningSession) -> Path:
    return (session.domain, session.project_id, session.owner_id)


def _scope_id(path: Path) -> str:
    """Domains and projects by their own id, users per project (``Usage.scope_id``)."""
    return path[-1] if len(path) < 3 else f"{path[1]}/{path[2]}"


class _Branch:
    """The sessions of one path prefix: a queue at the end of the path, else a heap of branches."""

    __slots__ = ("heap", "prefix", "queue")

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        self.queue: deque[int] = deque()
        """Numbers of sessions, first come, first served."""
        self.heap: list[tuple[float, int, _Branch]] = []

    def head(self) -> int:
        """What decides between branches of equal cost: their next session."""
        return self.queue[0] if self.queue else self.heap[0][1]


def _in_turns(
    sessions: Sequence[SessionRequest],
    context: OrderContext,
    path_of: Callable[[SessionRequest], Path],
    cost: Callable[[Path], float],
    charge: Callable[[SessionRequest], None],
) -> Iterator[SessionRequest]:
    """Sessions by the lowest cost along their paths; costs only change by ``charge``.

    Each session costs the logarithm of the number of owners, however many sessions they have.
    """
    seen = 0
    for session in context.counted:
        charge(session)
        seen += 1
    by_number = sorted(sessions, key=by_time)
    root = _grow(by_number, path_of, cost)
    while len(root.heap) == 1 and root.heap[0][2].heap:
        root = root.heap[0][2]  # a branch without rivals goes next whatever it costs
    counted = context.counted
    walk: list[_Branch] = []
    while root.heap:
        branch = root
        while branch.heap:
            walk.append(branch)
            branch = branch.heap[0][2]
        yield by_number[branch.queue.popleft()]
        while seen < len(counted):
            charge(counted[seen])
            seen += 1
        while walk:
            parent = walk.pop()
            if not (branch.queue or branch.heap):
                heapq.heappop(parent.heap)
            elif len(parent.heap) == 1:  # it goes next whatever it costs
                parent.heap[0] = (0.0, branch.head(), branch)
            else:
                turn = (cost(branch.prefix), branch.head(), branch)
                heapq.heapreplace(parent.heap, turn)
            branch = parent


def _grow(
    sessions: Sequence[SessionRequest],
    path_of: Callable[[SessionRequest], Path],
    cost: Callable[[Path], float],
) -> _Branch:
    branches: dict[Path, _Branch] = {(): _Branch(())}
    for number, session in enumerate(sessions):
        path = path_of(session)
        leaf = branches.get(path)
        if leaf is None:
            for depth in range(1, len(path) + 1):
                branches.setdefault(path[:depth], _Branch(path[:depth]))
            leaf = branches[path]
        leaf.queue.append(number)
    for branch in sorted(branches.values(), key=lambda branch: -len(branch.prefix)):
        if branch.prefix:
            parent = branches[branch.prefix[:-1]]
            heapq.heappush(parent.heap, (cost(branch.prefix), branch.head(), branch))
    return branches[()]
