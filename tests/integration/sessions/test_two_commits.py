"""Two managers are asked at once for an image of one session: one makes it."""

from __future__ import annotations

import asyncio

import pytest

from authenticator.problems import BadRequest
from spawner.sessions.events import EventBus
from spawner.sessions.images import ImageService
from spawner.sessions.tables import CommitRow
from spawner.sessions.transitions import Journal
from store.database import Store
from tests.harness.plane import REQUEST, Rig

pytestmark = [pytest.mark.integration, pytest.mark.postgres]

MANAGERS = 4


async def test_one_image_is_made_at_a_time(plane: Rig, postgres_url: str) -> None:
    await plane.agent()
    ada = await plane.user()
    detail = await plane.run(ada)
    stores = [Store(postgres_url) for _ in range(MANAGERS)]
    for store in stores:
        await store.open()
    try:
        services = [
            ImageService(Journal(store, EventBus(), plane.clock), plane.plane.agents, plane.clock)
            for store in stores
        ]
        told = await asyncio.gather(
            *(each.commit(ada, str(detail.session.id), None, REQUEST) for each in services),
            return_exceptions=True,
        )
    finally:
        for store in stores:
            await store.close()
    made = [each for each in told if isinstance(each, CommitRow)]
    refused = [each for each in told if isinstance(each, BadRequest)]
    assert (len(made), len(refused)) == (1, MANAGERS - 1), told
