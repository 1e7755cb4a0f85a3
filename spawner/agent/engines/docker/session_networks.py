"""Networks between the containers of one session: a bridge on this node, or an overlay of its swarm.

A bridge carries the agent's own mark, an overlay that of the deployment: every agent that controls the
swarm may have made it, and any of them removes it. What carries neither is not ours.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import functools
import hashlib
import logging
from collections.abc import Mapping
from typing import Any

from spawner.agent.engines.base import EngineError
from spawner.agent.engines.docker.calls import Calls, Conflict, Missing
from spawner.agent.engines.docker.manifest import LABEL, timestamp
from spawner.agent.protocol import Network

KIND = "session"
WAY_OUT = "docker_gwbridge"
"""The network that engines add to containers of overlays, unless an operator made one of that name before."""
ICC = "com.docker.network.bridge.enable_icc"
BRIDGE_NAME = "com.docker.network.bridge.name"
GRACE = 30.0
"""Seconds for which an overlay that this agent was not told of yet is left alone: another just made it."""
log = logging.getLogger(__name__)


class SessionNetworks:
    """Networks of sessions as one agent sees them; ``home`` is its mark."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self.home = ""
        self._open_way = False
        self._making = asyncio.Lock()
        self._told: set[str] = set()
        """Names of those that this agent was told to keep at some time, while they are there."""

    async def features(self) -> dict[str, Any]:
        """What this node can connect: its own containers, and those of its swarm."""
        client = self._calls.client
        swarm = (await self._calls.run(client.info)).get("Swarm") or {}
        if swarm.get("LocalNodeState") != "active":
            return {"clusters": True}
        way_out = await self._way_out()
        open_way = way_out is not None and (way_out["Options"] or {}).get(ICC) != "false"
        if open_way and not self._open_way:
            told = "sessions over several nodes could reach each other through %s, which lacks %s=false"
            log.warning(told, WAY_OUT, ICC)
        self._open_way = open_way
        if open_way:
            return {"clusters": True}
        managers = [str(each["NodeID"]) for each in swarm.get("RemoteManagers") or ()]
        return {
            "clusters": True,
            "swarm": {
                "node": str(swarm["NodeID"]),
                "control": bool(swarm.get("ControlAvailable")),
                "managers": sorted(managers),
            },
        }

    async def way_out(self) -> str:
        """The bridge through which containers of overlays get out of this node."""
        facts = await self._way_out()
        if facts is None:
            return WAY_OUT  # so the engine calls it when it makes one
        return str((facts["Options"] or {}).get(BRIDGE_NAME) or f"br-{facts['Id'][:12]}")

    async def _way_out(self) -> Mapping[str, Any] | None:
        try:
            call = functools.partial(self._calls.client.api.inspect_network, WAY_OUT)
            facts: Mapping[str, Any] = await self._calls.run(call)
        except Missing:
            return None
        return facts

    async def ensure(self, network: Network, deployment: str) -> None:
        """Make ``network`` unless it is there. Raises ``EngineError``."""
        client = self._calls.client
        labels = {f"{LABEL}.network": KIND, f"{LABEL}.session": network.session_id}
        options = {}
        if network.driver == "overlay":
            labels[f"{LABEL}.deployment"] = deployment
        else:
            labels[f"{LABEL}.home"] = self.home
            digest = hashlib.sha256(network.name.encode()).hexdigest()
            options[BRIDGE_NAME] = f"perijove{digest[:7]}"  # see firewall.py
        make = functools.partial(
            client.api.create_network,
            network.name,
            driver=network.driver,
            check_duplicate=True,
            attachable=network.driver == "overlay" or None,
            labels=labels,
            options=options,
        )
        async with self._making:  # Docker's own check lets two of the same name begin
            try:
                await self._calls.run(make)
            except Conflict:
                return  # it is there, or another agent was faster

    async def keep(self, networks: tuple[Network, ...], deployment: str) -> bool:
        """Make ``networks``, remove others of ours; False when something is left to remove."""
        present = {str(each["Name"]): each for each in await self._ours(deployment)}
        for network in networks:
            if network.name not in present:
                await self.ensure(network, deployment)
        wanted, done = {network.name for network in networks}, True
        self._told = self._told & present.keys() | wanted
        for name in present.keys() - wanted:
            done = await self._remove(present[name]) and done
        return done

    async def names(self, deployment: str) -> tuple[str, ...]:
        """Of all that are ours, on this node."""
        return tuple(sorted(str(each["Name"]) for each in await self._ours(deployment)))

    async def _ours(self, deployment: str) -> list[Mapping[str, Any]]:
        client = self._calls.client
        call = functools.partial(
            client.api.networks, filters={"label": [f"{LABEL}.network={KIND}"]}
        )
        return [each for each in await self._calls.run(call) if self._is_ours(each, deployment)]

    def _is_ours(self, facts: Mapping[str, Any], deployment: str) -> bool:
        labels = facts.get("Labels") or {}
        if facts.get("Driver") == "overlay":
            return bool(deployment) and labels.get(f"{LABEL}.deployment") == deployment
        return labels.get(f"{LABEL}.home") == self.home

    async def _remove(self, facts: Mapping[str, Any]) -> bool:
        """Whether the network is gone; one in use stays until its containers are removed."""
        if facts.get("Driver") == "overlay" and facts["Name"] not in self._told:
            made = timestamp(str(facts["Created"]))
            if made is not None and dt.datetime.now(dt.UTC).timestamp() - made < GRACE:
                return False
        try:
            await self._calls.run(self._calls.client.api.remove_network, facts["Id"])
        except Missing:
            return True
        except EngineError:
            return False
        return True
