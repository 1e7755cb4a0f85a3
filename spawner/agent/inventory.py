"""What is on this node, asked anew of the engine, for the audit (``spawner.sessions.audit``).

Call of the manager: ``inventory`` ``{"deployment"}`` -> ``spawner.agent.protocol.Inventory``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from spawner.agent.apps import Apps
from spawner.agent.calls import Calls
from spawner.agent.protocol import DrivenKernel, FoundRun, Inventory


def offer_inventory(calls: Calls, apps: Apps) -> None:
    """Answer ``inventory`` from now on."""

    async def take(params: Mapping[str, Any]) -> Any:
        engine = calls.engine
        found = Inventory(
            kernels=tuple(
                DrivenKernel(each.kernel_id, each.epoch, each.status)
                for each in calls.kernels.reports()
            ),
            runs=tuple(
                FoundRun(
                    kernel_id=run.identity.kernel_id,
                    epoch=run.identity.epoch,
                    phase=run.phase,
                    native_id=run.native_id,
                    shares=run.shares,
                    ports={str(each.container_port): each.port for each in run.endpoints},
                )
                for run in await engine.list()
            ),
            networks=await engine.networks(str(params.get("deployment") or "")),
            apps=tuple(apps.kernels()),
            leftovers=await engine.leftovers(),
        )
        return msgspec.to_builtins(found)

    calls.offer("inventory", take)
