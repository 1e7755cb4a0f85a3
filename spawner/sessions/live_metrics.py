"""Measures as Prometheus series: as many as there are nodes, devices and live kernels, and no more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from authenticator.tables import ProjectRow, UserRow
from spawner.sessions.statistics import Statistics
from spawner.sessions.tables import KernelRow, SessionRow
from store.database import Store

VALUES = ("current", "capacity", "pct")
LABELS = ("agent", "session", "kernel", "user", "project")


async def render(statistics: Statistics, store: Store) -> bytes:
    """The text format of what is live here."""
    registry = CollectorRegistry()
    more = ("metric", "value")
    node = Gauge(
        "perijove_node_measure", "Measures of a node.", ("agent", *more), registry=registry
    )
    device = Gauge(
        "perijove_device_measure",
        "Measures of a device.",
        ("agent", "device", *more),
        registry=registry,
    )
    kernel = Gauge(
        "perijove_kernel_measure", "Measures of a kernel.", (*LABELS, *more), registry=registry
    )
    nodes = statistics.nodes()
    owners = await store.read(lambda db: _owners(db, list(nodes)))
    for agent, view in nodes.items():
        _set(node, (agent,), view.node)
        for metric, devices in view.devices.items():
            for name, shape in devices.items():
                _set(device, (agent, name), {metric: shape})
        for kernel_id, metrics in view.kernels.items():
            labels = owners.get((agent, kernel_id))
            if labels is not None:
                _set(kernel, labels, metrics)
    return generate_latest(registry)


def _set(gauge: Gauge, labels: tuple[str, ...], metrics: Mapping[str, Any]) -> None:
    for metric, shape in metrics.items():
        for value in VALUES:
            try:
                number = float(shape.get(value))
            except (AttributeError, TypeError, ValueError):  # not told
                continue
            gauge.labels(*labels, metric, value).set(number)


async def _owners(db: AsyncSession, agents: list[str]) -> dict[tuple[str, str], tuple[str, ...]]:
    """Labels of the kernels that are on these agents, by agent and kernel."""
    query = (
        select(KernelRow.agent_id, KernelRow.id, SessionRow.id, UserRow.username, ProjectRow.name)
        .join(SessionRow, SessionRow.id == KernelRow.session_id)
        .join(UserRow, UserRow.id == SessionRow.owner_id)
        .join(ProjectRow, ProjectRow.id == SessionRow.project_id)
        .where(KernelRow.agent_id.in_(agents), KernelRow.terminated_at.is_(None))
    )
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    for agent, kernel, session, user, project in (await db.execute(query)).all():
        labels = (str(agent), str(session), str(kernel), str(user), str(project))
        found[str(agent), str(kernel)] = labels
    return found
