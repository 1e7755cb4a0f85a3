"""The audit: rows, agents and their engines compared; what differs, in sentences.

One look. Rows and nodes are not read in the same instant, so what is under way may differ for a moment: a
difference that stays in every look of some seconds is a fault.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from authenticator.principals import Principal, Scope, require
from authenticator.problems import AgentUnavailable
from authenticator.tables import UserRow
from spawner.agent.protocol import FoundRun, Inventory, Share
from spawner.sessions import clusters
from spawner.sessions.agents import AgentRegistry
from spawner.sessions.limits import LIVE
from spawner.sessions.registration import ALIVE, REMOVED
from spawner.sessions.states import Status
from spawner.sessions.tables import AgentRow, AllocationRow, KernelRow, LostRunRow, SessionRow
from store.database import Store

Run = tuple[str, int]
"""Kernel and epoch."""
SERVING = (Status.RUNNING.value, Status.RUNNING_DEGRADED.value)
PATIENCE = 20.0
"""Seconds that a node has for its answer."""


@dataclass(frozen=True, slots=True, order=True)
class Difference:
    """Something that is not as it should be: on which node, of what, and how."""

    node: str
    about: str
    """Id of a kernel, name of a network, or empty."""
    sentence: str


@dataclass(frozen=True, slots=True)
class Route:
    """A server of a hub, and where the proxy should send its requests; None: it does not run."""

    hub: str
    owner: str
    server: str
    url: str | None


@dataclass(frozen=True, slots=True)
class Audit:
    """One look at everything."""

    differences: tuple[Difference, ...]
    compared: Mapping[str, int]
    """By node that was asked: the runs that it should have."""
    silent: Mapping[str, str]
    """By node that was not asked: why not."""
    routes: tuple[Route, ...]


@dataclass(slots=True)
class _Node:
    """What the rows say of one node."""

    status: str
    kernels: dict[Run, KernelRow] = field(default_factory=dict)
    lost: set[Run] = field(default_factory=set)
    shares: dict[Run, set[Share]] = field(default_factory=lambda: defaultdict(set))
    networks: frozenset[str] = frozenset()


class AuditService:
    """Looks, and changes nothing."""

    def __init__(self, store: Store, agents: AgentRegistry) -> None:
        self._store, self._agents = store, agents

    async def look(self, principal: Principal | None) -> Audit:
        """Compare now; for superadmins, and for the hub itself (None)."""
        if principal is not None:
            require(principal, Scope.ADMIN)
        # Nodes first: what they have longer than their rows knew of it would be no fault.
        names = await self._store.read(_names)
        asked = [name for name in names if self._agents.is_connected(name)]
        answers = dict(zip(asked, await asyncio.gather(*map(self._ask, asked)), strict=True))
        nodes, routes = await self._store.read(_read)
        networks = frozenset().union(*(node.networks for node in nodes.values()))
        found: list[Difference] = []
        silent: dict[str, str] = {}
        for name, node in nodes.items():
            answer = answers.get(name)
            if isinstance(answer, str):
                found.append(Difference(name, "", f"cannot be asked: {answer}"))
            elif answer is not None:
                found += [Difference(name, *each) for each in _compare(node, answer, networks)]
            else:
                silent[name] = "not connected here" if node.status == ALIVE else node.status.lower()
        compared = {name: len(nodes[name].kernels) for name in answers if name in nodes}
        return Audit(tuple(sorted(found)), compared, silent, routes)

    async def _ask(self, name: str) -> Inventory | str:
        """A node's inventory, or why there is none."""
        params = {"deployment": self._agents.deployment}
        try:
            answer = await self._agents.call(name, "inventory", params, PATIENCE)
            return msgspec.convert(answer, Inventory)
        except AgentUnavailable as error:
            return str(error)
        except msgspec.ValidationError as error:
            return f"its answer is no inventory: {error}"


async def _names(db: AsyncSession) -> list[str]:
    return list(await db.scalars(select(AgentRow.id).where(AgentRow.status != REMOVED)))


async def _read(db: AsyncSession) -> tuple[dict[str, _Node], tuple[Route, ...]]:
    """Everything that rows say of nodes, and of servers of hubs."""
    nodes = {
        row.id: _Node(row.status)
        for row in await db.scalars(select(AgentRow).where(AgentRow.status != REMOVED))
    }
    for kernel in await db.scalars(select(KernelRow).where(KernelRow.status.in_(LIVE))):
        if kernel.agent_id in nodes:
            nodes[kernel.agent_id].kernels[str(kernel.id), kernel.epoch] = kernel
    for lost in await db.scalars(select(LostRunRow)):
        if lost.agent_id in nodes:
            nodes[lost.agent_id].lost.add((str(lost.kernel_id), lost.epoch))
    for row in await db.scalars(select(AllocationRow).where(AllocationRow.freed_at.is_(None))):
        if row.agent_id in nodes:
            share = Share(row.slot, row.device_id, row.amount)
            nodes[row.agent_id].shares[str(row.kernel_id), row.epoch].add(share)
    for name, node in nodes.items():
        wanted = await clusters.wanted_networks(db, name)
        node.networks = frozenset(network.name for network in wanted)
    db.expunge_all()
    return nodes, await _routes(db)


async def _routes(db: AsyncSession) -> tuple[Route, ...]:
    main: dict[uuid.UUID, tuple[SessionRow, str, KernelRow]] = {}
    query = (
        select(SessionRow, UserRow.username, KernelRow)
        .join(UserRow, UserRow.id == SessionRow.owner_id)
        .join(KernelRow, KernelRow.session_id == SessionRow.id)
        .where(KernelRow.cluster_role == "main", SessionRow.status.in_(LIVE))
        .order_by(SessionRow.created_at)
    )
    for session, owner, kernel in await db.execute(query):
        if session.origin.get("hub"):
            main[session.id] = (session, owner, kernel)
    return tuple(
        Route(
            str(session.origin["hub"]),
            owner,
            str(session.origin.get("server", "")),
            kernel.url if session.status in SERVING else None,
        )
        for session, owner, kernel in main.values()
    )


def _compare(node: _Node, told: Inventory, networks: frozenset[str]) -> Iterable[tuple[str, str]]:
    """What rows and inventory of one node do not agree about: of what, and a sentence.

    ``networks`` are wanted somewhere: a swarm shows them on every node that has a member of them.
    """
    driven = {(each.kernel_id, each.epoch): each.status for each in told.kernels}
    runs = {(each.kernel_id, each.epoch): each for each in told.runs}
    known = node.kernels.keys() | node.lost
    for run in driven.keys() - known:
        yield run[0], f"the agent drives epoch {run[1]}, which no row knows"
    for run in runs.keys() - known:
        what = f"{runs[run].native_id[:12]} ({runs[run].phase})"
        yield run[0], f"the engine has epoch {run[1]} as {what}, which no row knows"
    for run, kernel in node.kernels.items():
        if kernel.status == Status.RUNNING:
            for sentence in _running(kernel, node.shares[run], driven.get(run), runs.get(run)):
                yield run[0], sentence
    for name in node.networks - set(told.networks):
        yield name, "the network is wanted and not there"
    for name in set(told.networks) - networks:
        yield name, "the network is there for no session"
    running = {name for (name, _), kernel in node.kernels.items() if kernel.status in SERVING}
    for name in set(told.apps) - running:
        yield name, "an app of it is open, though it does not run"
    for sentence in told.leftovers:
        yield "", sentence


def _running(
    kernel: KernelRow, shares: set[Share], driven: str | None, run: FoundRun | None
) -> Iterable[str]:
    """What is wrong with a kernel that should run."""
    if driven != Status.RUNNING:
        yield f"it should run; the agent says {driven or 'nothing of it'}"
    if run is None or run.phase != "running":
        yield f"it should run; the engine has it {'not' if run is None else run.phase}"
        return
    if kernel.container_id not in (None, run.native_id):
        yield f"it runs as {run.native_id[:12]}, the row says {str(kernel.container_id)[:12]}"
    if shares != set(run.shares):
        yield f"the row holds {_shown(shares)}, the engine gave {_shown(run.shares)}"
    ports = {str(port["container_port"]): int(port["port"]) for port in kernel.ports}
    if ports != run.ports:
        yield f"the row has its ports at {ports}, the engine at {run.ports}"


def _shown(shares: Iterable[Share]) -> str:
    return ", ".join(sorted(f"{s.amount} of {s.slot} {s.device_id}" for s in shares)) or "nothing"
