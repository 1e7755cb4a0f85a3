"""Measures as Prometheus series: as many as there are nodes, devices and live kernels, and no more."""

from __future__ import annotations

from prometheus_client import generate_latest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from authenticator.tables import ProjectRow, UserRow
from spawner.agent.exposition import Exposition
from spawner.sessions.statistics import Statistics
from spawner.sessions.tables import KernelRow, SessionRow
from store.database import Store


async def render(statistics: Statistics, store: Store) -> bytes:
    """The text format of what is live here."""
    series = Exposition()
    nodes = statistics.nodes()
    owners = await store.read(lambda db: _owners(db, list(nodes)))
    for agent, view in nodes.items():
        series.node(agent, view.node, view.devices)
        for kernel_id, metrics in view.kernels.items():
            owner = owners.get((agent, kernel_id))
            if owner is not None:
                series.kernel(agent, owner, metrics)
    return generate_latest(series.registry)


async def _owners(db: AsyncSession, agents: list[str]) -> dict[tuple[str, str], tuple[str, ...]]:
    """Whose the kernels are that are on these agents, by agent and kernel."""
    query = (
        select(KernelRow.agent_id, KernelRow.id, SessionRow.id, UserRow.username, ProjectRow.name)
        .join(SessionRow, SessionRow.id == KernelRow.session_id)
        .join(UserRow, UserRow.id == SessionRow.owner_id)
        .join(ProjectRow, ProjectRow.id == SessionRow.project_id)
        .where(KernelRow.agent_id.in_(agents), KernelRow.terminated_at.is_(None))
    )
    return {
        (str(agent), str(kernel)): (str(session), str(kernel), str(user), str(project))
        for agent, kernel, session, user, project in (await db.execute(query)).all()
    }
