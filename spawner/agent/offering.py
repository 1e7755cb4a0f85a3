"""What a node offers, and whether its engine answers. A sign of life never waits for an engine that does not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from spawner.accelerators.registry import Accelerators, PluginError
from spawner.agent.engines.base import Engine, EngineError
from spawner.agent.protocol import UNWELL, DeviceReport, Heartbeat, ImageReport

LOOK_EVERY = 5.0
"""Seconds between questions whether the engine is well."""
PATIENCE = 3.0
"""Seconds that a sign of life waits for news."""
Offered = tuple[tuple[DeviceReport, ...], tuple[ImageReport, ...], dict[str, Any]]
log = logging.getLogger(__name__)


class Offering:
    """Devices, images and features, as they were when the engine last told."""

    def __init__(
        self, engine: Engine, accelerators: Accelerators, changed: Callable[[], None]
    ) -> None:
        """``changed`` is called when the next sign of life should not wait."""
        self._engine, self._accelerators, self._changed = engine, accelerators, changed
        self._offered: Offered = ((), (), {})
        self._unwell = ""
        self._repeats = False
        self._told: Mapping[str, Any] = {}
        self._reading: asyncio.Task[Offered] | None = None

    async def open(self) -> None:
        """Read all for the first time. Raises ``EngineError``, ``PluginError``."""
        self._offered = await self._read()

    @property
    def devices(self) -> tuple[DeviceReport, ...]:
        """Of all plug-ins."""
        return self._offered[0]

    @property
    def images(self) -> tuple[ImageReport, ...]:
        """That sessions can be made from."""
        return self._offered[1]

    def features(self) -> dict[str, Any]:
        """What the engine can do, and why it cannot; the manager knows of it from now on."""
        features = self._offered[2]
        self._told = {**features, UNWELL: self._unwell} if self._unwell else features
        return dict(self._told)

    def repeat(self) -> None:
        """Tell the devices soon, also if they are the same as before."""
        self._repeats = True
        self._changed()

    async def heartbeat(self) -> Heartbeat:
        """A sign of life, with what changed since the last one."""
        before = self._offered
        repeats, self._repeats = self._repeats, False
        if not self._unwell:
            await self._refresh()
        told = self._told
        features = self.features()
        devices = None if self.devices == before[0] and not repeats else self.devices
        return Heartbeat(
            images=None if self.images == before[1] else self.images,
            devices=devices,
            features=None if features == told else features,
            slots=() if devices is None else self._accelerators.slots(),
        )

    async def watch(self) -> None:
        """Ask the engine whether it is well, one question at a time; until cancelled."""
        while True:
            try:
                await self._engine.ping()
                unwell = ""
            except EngineError as error:
                unwell = str(error)
            if bool(unwell) != bool(self._unwell):
                log.warning("the engine is %s", f"unwell: {unwell}" if unwell else "well again")
                self._unwell = unwell
                self._changed()
            await asyncio.sleep(LOOK_EVERY)

    async def close(self) -> None:
        """Wait for nothing any more."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])

    async def _refresh(self) -> None:
        """Read all anew if that is not under way; news that come too late are for the next sign of life."""
        if self._reading is None:
            self._reading = asyncio.create_task(self._read(), name="offering")
        await asyncio.wait([self._reading], timeout=PATIENCE)
        if not self._reading.done():
            return
        reading, self._reading = self._reading, None
        try:
            self._offered = reading.result()
        except (EngineError, PluginError, OSError) as error:
            log.warning("images and devices cannot be listed: %s", error)

    async def _read(self) -> Offered:
        return (
            await self._accelerators.devices(),
            await self._engine.images(),
            dict(await self._engine.features()),
        )
