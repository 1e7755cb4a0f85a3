"""What sessions use: measures of their containers, and the processes in them."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from authenticator.principals import Principal, Scope, require
from spawner.sessions import queries
from spawner.sessions.agents import AgentRegistry
from spawner.sessions.states import FINAL, Status
from spawner.sessions.tables import KernelRow
from store.database import Store


class Observing:
    """Use of users' sessions. Every method authorizes its principal."""

    def __init__(self, store: Store, agents: AgentRegistry) -> None:
        self._store, self._agents = store, agents

    async def measures(self, principal: Principal, ref: str) -> dict[uuid.UUID, Mapping[str, Any]]:
        """What was measured last of each kernel: live where this manager has it, else what was kept."""
        require(principal, Scope.SESSIONS_READ)

        async def work(db: AsyncSession) -> list[KernelRow]:
            row = await queries.resolve(db, principal, ref, Scope.SESSIONS_READ)
            return list(await db.scalars(select(KernelRow).where(KernelRow.session_id == row.id)))

        live = self._agents.statistics
        return {
            kernel.id: (
                (Status(kernel.status) not in FINAL and live.kernel(kernel.agent_id, kernel.id))
                or kernel.last_stat
            )
            for kernel in await self._store.read(work)
        }

    async def processes(
        self, principal: Principal, ref: str, kernel: str | None = None
    ) -> list[dict[str, Any]]:
        """Processes of a kernel (see ``SessionService.logs``) now; none when it does not run.

        Raises ``NotFound``, ``AgentUnavailable``.
        """
        require(principal, Scope.SESSIONS_READ)

        async def work(db: AsyncSession) -> KernelRow:
            row = await queries.resolve(db, principal, ref, Scope.SESSIONS_READ)
            return await queries.kernel_of(db, row, kernel)

        found = await self._store.read(work)
        if found.status != Status.RUNNING:
            return []
        answer = await self._agents.call(found.agent_id, "processes", {"kernel_id": str(found.id)})
        return list(answer) if isinstance(answer, list) else []
