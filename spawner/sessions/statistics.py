"""What agents measured last, in memory: a live view that each ``Measures`` frame of an agent replaces.

The manager that has an agent's connection has its measures. The last ones of a kernel are kept in its row
(``last_stat``) when it ends, or when its agent is not there any more.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from spawner.agent.protocol import Measures, ProtocolError
from spawner.sessions.states import FINAL, Status
from spawner.sessions.tables import KernelRow

MOST_METRICS = 64
MOST_KERNELS = 4096
MOST_DEVICES = 1024
NAME_LENGTH = 64


@dataclass(frozen=True, slots=True)
class NodeView:
    """Measures of one node; ``at`` is when they arrived."""

    at: dt.datetime
    node: Mapping[str, Any]
    devices: Mapping[str, Any]
    kernels: Mapping[str, Any]


class Statistics:
    """Live measures of the agents that are connected to this manager."""

    def __init__(self) -> None:
        self._nodes: dict[str, NodeView] = {}

    def take(self, agent_id: str, measures: Measures, now: dt.datetime) -> None:
        """Replace what is known of an agent. Raises ``ProtocolError`` naming the part that is wrong."""
        check_metrics("node", measures.node)
        _bounded("devices", measures.devices, MOST_METRICS)
        for name, devices in measures.devices.items():
            _bounded(f"devices.{name}", devices, MOST_DEVICES)
        _bounded("kernels", measures.kernels, MOST_KERNELS)
        for kernel_id, metrics in measures.kernels.items():
            check_metrics(f"kernels.{kernel_id}", metrics)
        self._nodes[agent_id] = NodeView(now, measures.node, measures.devices, measures.kernels)

    def forget(self, agent_id: str) -> NodeView | None:
        """The agent is not connected any more: what it told grows old. What was known of it."""
        return self._nodes.pop(agent_id, None)

    def node(self, agent_id: str) -> NodeView | None:
        """What is known of a node."""
        return self._nodes.get(agent_id)

    def kernel(self, agent_id: str | None, kernel_id: uuid.UUID) -> Mapping[str, Any] | None:
        """Live measures of a kernel on that agent; None when there are none here."""
        view = self._nodes.get(agent_id or "")
        return None if view is None else view.kernels.get(str(kernel_id))

    def nodes(self) -> Mapping[str, NodeView]:
        """All that is known, by agent."""
        return dict(self._nodes)


async def keep(db: AsyncSession, agent_id: str, view: NodeView) -> None:
    """Write down what was measured last of an agent's kernels: it may come back without it, or never."""
    known = {each: metrics for name, metrics in view.kernels.items() if (each := _id(name))}
    query = select(KernelRow).where(KernelRow.id.in_(known), KernelRow.agent_id == agent_id)
    for kernel in await db.scalars(query):
        if not (kernel.last_stat and Status(kernel.status) in FINAL):
            kernel.last_stat = dict(known[kernel.id])


def _id(text: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(text)
    except ValueError:
        return None


def check_metrics(where: str, metrics: object) -> None:
    """Metrics by name, each an object. Raises ``ProtocolError``."""
    _bounded(where, metrics, MOST_METRICS)
    assert isinstance(metrics, Mapping)  # noqa: S101 - narrows for the type checker
    for name, shape in metrics.items():
        if not isinstance(shape, Mapping):
            raise ProtocolError(f"measures: {where}.{name} is not an object")


def _bounded(where: str, given: object, most: int) -> None:
    if not isinstance(given, Mapping):
        raise ProtocolError(f"measures: {where[:NAME_LENGTH]} is not an object")
    if len(given) > most:
        raise ProtocolError(
            f"measures: {where[:NAME_LENGTH]} has {len(given)} entries, at most {most}"
        )
    for name in given:
        if len(name) > NAME_LENGTH:
            raise ProtocolError(
                f"measures: {where[:NAME_LENGTH]} has the name {name[:NAME_LENGTH]!r}..., at most"
                f" {NAME_LENGTH} characters"
            )
