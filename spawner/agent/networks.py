"""Networks of sessions on this node: made as the manager wants them, removed when nobody uses them.

A keeper lives as long as one connection to the manager: without word from it nothing is removed.
"""

from __future__ import annotations

import asyncio
import logging

from spawner.agent.engines.base import Engine, EngineError
from spawner.agent.protocol import Network

PAUSE = 2.0
"""Seconds until what is left to do is tried again."""
log = logging.getLogger(__name__)


class NetworkKeeper:
    """Follows the wanted networks of one connection."""

    def __init__(self, engine: Engine, deployment: str, interval: float) -> None:
        self._engine, self._deployment, self._interval = engine, deployment, interval
        self._wanted: tuple[Network, ...] = ()
        self._told = asyncio.Event()

    def want(self, networks: tuple[Network, ...]) -> None:
        """The manager wants these."""
        self._wanted = networks
        self._told.set()

    async def run(self) -> None:
        """Make reality match, after each word of the manager and on a slow tick; until cancelled."""
        await self._told.wait()
        while True:
            self._told.clear()
            done = False
            try:
                done = await self._engine.keep_networks(self._wanted, self._deployment)
            except EngineError as error:
                log.warning("networks of sessions: %s", error)
            try:
                async with asyncio.timeout(self._interval if done else PAUSE):
                    await self._told.wait()
            except TimeoutError:
                continue
