"""Hints between the processes on one PostgreSQL database: ``NOTIFY`` with a commit, ``LISTEN`` on its own connection.

A hint may get lost (while a listener connects again), so nothing may depend on one but speed. On SQLite there
are none: there one manager does everything, and commands wait for its slow tick.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from sqlalchemy import URL, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

from store.engine import sqlite_path

CHANNEL = "perijove_hints"
APPLICATION = "perijove-hints"
"""As the database lists the connections of listeners."""
MAX_HINT = 7000
"""Bytes; PostgreSQL takes less than 8000."""
CHECK_SECONDS = 5.0
ANSWER_SECONDS = 5.0


def can_hint(url: URL) -> bool:
    """Whether the database passes hints on."""
    return sqlite_path(url) is None


async def hint(db: AsyncSession, payload: str) -> None:
    """Tell all listeners ``payload`` when this transaction is committed, and never when it is not."""
    await db.execute(
        text("SELECT pg_notify(:channel, :payload)"), {"channel": CHANNEL, "payload": payload}
    )


class HintListener:
    """Calls ``receive`` (which must not fail or wait) with each payload while ``run`` runs."""

    def __init__(self, url: URL, receive: Callable[[str], None]) -> None:
        self._engine = create_async_engine(
            url,
            poolclass=NullPool,
            isolation_level="AUTOCOMMIT",
            connect_args={"server_settings": {"application_name": APPLICATION}},
        )
        self._receive = receive
        self.listening = asyncio.Event()
        """Set while hints arrive."""

    async def run(self) -> None:
        """Listen until cancelled, or until the connection is lost: then raises what the driver says."""
        try:
            async with self._engine.connect() as connection:
                await self._listen(connection)
        finally:
            self.listening.clear()

    async def _listen(self, connection: AsyncConnection) -> None:
        driver: Any = (await connection.get_raw_connection()).driver_connection
        gone = asyncio.Event()
        driver.add_termination_listener(lambda ended: gone.set())
        await driver.add_listener(CHANNEL, self._heard)
        self.listening.set()
        while not gone.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(CHECK_SECONDS):
                    await gone.wait()
            async with asyncio.timeout(ANSWER_SECONDS):  # a dead connection is silent otherwise
                await connection.execute(text("SELECT 1"))

    def _heard(self, connection: object, process: int, channel: str, payload: object) -> None:
        self._receive(str(payload))
