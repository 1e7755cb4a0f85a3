"""What the cluster can give: presets, resource groups, spawn options, dry runs, agents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from authenticator.principals import Principal
from spawner.sessions.requests import AgentView, Check
from spawner.sessions.tables import PresetRow, ResourceGroupRow


class Offers:
    """Answers about resources. Users never learn the names of agents here."""

    async def presets(self, resource_group: str | None = None) -> list[PresetRow]:
        """Presets offered in ``resource_group`` (all of them when None), by rank."""
        raise NotImplementedError

    async def check_presets(
        self, principal: Principal, *, project: str | None = None, resource_group: str | None = None
    ) -> dict[str, Any]:
        """Backend.AI's check-presets answer; all amounts are text."""
        raise NotImplementedError

    async def spawn_options(self, principal: Principal) -> dict[str, Any]:
        """What the spawn form shows (docs/architecture.md)."""
        raise NotImplementedError

    async def dry_run(
        self,
        principal: Principal,
        *,
        image: str | None,
        resource_group: str | None,
        slots: Mapping[str, object],
        shmem: object = None,
    ) -> Check:
        """Would this request start now, wait, or never start?"""
        raise NotImplementedError

    async def resource_groups(self) -> list[ResourceGroupRow]:
        """Active resource groups, the default one first."""
        raise NotImplementedError

    async def slot_types(self) -> dict[str, str]:
        """Known slots with Backend.AI's type names (``count``, ``bytes``, ``unique-count``)."""
        raise NotImplementedError

    async def agents(self, principal: Principal) -> list[AgentView]:
        """All agents with devices, usage and sessions; superadmins only."""
        raise NotImplementedError

    async def set_schedulable(
        self, principal: Principal, agent_id: str, schedulable: bool, request_id: str
    ) -> AgentView:
        """Cordon (false) or uncordon (true) an agent; superadmins only."""
        raise NotImplementedError
