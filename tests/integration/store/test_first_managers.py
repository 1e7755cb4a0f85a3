"""Managers that are started at once on an empty database: each finds what all need, whoever made it."""

from __future__ import annotations

import asyncio
import datetime as dt

import pytest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from authenticator.identity import IdentityService
from authenticator.tables import UserPolicyRow
from spawner.sessions import offers
from spawner.sessions.clusters import deployment_id
from spawner.sessions.tables import AgentTokenRow, PresetRow
from spawner.sessions.tokens import AgentTokens
from store import schema
from store.database import Store
from tests.integration.postgres_server import PostgresServer

pytestmark = [pytest.mark.integration, pytest.mark.postgres]

MANAGERS = 4


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


async def begin(store: Store) -> str:
    """What a manager makes before it serves."""
    await IdentityService(store, now).bootstrap()
    await offers.bootstrap(store, now())
    await AgentTokens(store, now).ensure_token("a token of all managers", "the same one")
    return await deployment_id(store, now())


async def counts(db: AsyncSession) -> list[int]:
    tables = (UserPolicyRow, PresetRow, AgentTokenRow)
    return [await db.scalar(select(func.count()).select_from(each)) or 0 for each in tables]


async def test_they_do_not_stand_in_each_others_way(postgres_server: PostgresServer) -> None:
    url = postgres_server.new_database()
    await asyncio.to_thread(schema.upgrade, url)
    stores = [Store(url) for _ in range(MANAGERS)]
    for store in stores:
        await store.open()
    try:
        assert len(set(await asyncio.gather(*map(begin, stores)))) == 1
        assert await stores[0].read(counts) == [1, 3, 1]
    finally:
        for store in stores:
            await store.close()
