"""Which network the containers of a session are connected by: it narrows the nodes they may run on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from spawner.scheduler.model import Agent, KernelRequest, SessionRequest

NODE = "node"
"""The network that connects containers of one node."""
NOWHERE = "nowhere"
"""For a session whose containers no agents can connect; no network is called so."""
_PLENTY = 2**31


def network_of(session: SessionRequest, agents: Sequence[Agent]) -> str | None:
    """The network that ``session`` needs on each of its nodes; None: any node will do.

    A session over several nodes takes one network for all: the one whose agents could hold most of its
    containers now, then empty. That is the best guess before the pass, and a reservation of one pass
    holds for that pass only, so a wrong guess costs time and never correctness.
    """
    if len(session.kernels) < 2:
        return None
    if session.cluster_mode != "multi-node":
        return NODE
    if all(agent.networks is None for agent in agents):
        return None
    names = {name for agent in agents for name in agent.networks or () if name != NODE}
    if not names:
        return NOWHERE
    kernel = session.kernels[0]
    count = len(session.kernels)

    def rank(name: str) -> tuple[int, int, str]:
        members = [a for a in agents if name in (a.networks or ())]
        open_ones = [a for a in members if a.alive and a.schedulable]
        now = sum(_room(agent, kernel, free=True) for agent in open_ones)
        empty = sum(_room(agent, kernel, free=False) for agent in open_ones)
        return -min(count, now), -min(count, empty), name

    return min(names, key=rank)


def _room(agent: Agent, kernel: KernelRequest, *, free: bool) -> int:
    """How many containers like ``kernel`` fit on ``agent``, by its sums."""
    if agent.architecture != kernel.architecture:
        return 0
    room = _PLENTY
    if agent.max_containers is not None:
        room = max(0, agent.max_containers - (agent.containers if free else 0))
    for slot, amount in kernel.slots.items():
        if amount > 0:
            has = _sum(d.free if free else d.capacity for d in agent.devices if d.slot == slot)
            room = min(room, has // amount)
    return room


def _sum(amounts: Iterable[int]) -> int:
    return sum(amount for amount in amounts if amount > 0)
