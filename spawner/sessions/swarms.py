"""Which agents can connect containers with each other: on one node, and over the nodes of one swarm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from spawner.scheduler.networks import NODE
from spawner.sessions.registration import ALIVE
from spawner.sessions.tables import AgentRow

Names = frozenset[str]


def networks_of(agents: Iterable[AgentRow]) -> Mapping[str, Names]:
    """Names of networks by agent id: ``node`` and ``node:<agent>`` where its engine connects containers,
    ``swarm:<node id>`` where a living agent can make networks for the whole swarm.

    A worker does not know its swarm's id, but which nodes manage it: agents with a manager in common
    belong to one swarm.
    """
    able = [agent for agent in agents if (agent.features or {}).get("clusters")]
    found = {agent.id: {NODE, f"node:{agent.id}"} for agent in able}
    for members in _swarms(able):
        if any(agent.status == ALIVE and _swarm(agent).get("control") for agent in members):
            name = min(node for agent in members for node in _swarm(agent)["managers"])
            for agent in members:
                found[agent.id].add(f"swarm:{name}")
    return {agent_id: frozenset(names) for agent_id, names in found.items()}


def _swarms(agents: Sequence[AgentRow]) -> list[list[AgentRow]]:
    """Agents of the same swarm."""
    groups: list[tuple[set[str], list[AgentRow]]] = []
    for agent in agents:
        managers = set(_swarm(agent).get("managers", ()))
        if not managers:
            continue
        members = [agent]
        apart: list[tuple[set[str], list[AgentRow]]] = []
        for nodes, others in groups:
            if nodes & managers:
                managers |= nodes
                members = [*others, *members]
            else:
                apart.append((nodes, others))
        groups = [*apart, (managers, members)]
    return [members for _, members in groups]


def _swarm(agent: AgentRow) -> Mapping[str, Any]:
    return (agent.features or {}).get("swarm") or {}
