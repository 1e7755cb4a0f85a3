"""What must be in the database before a manager serves: the schema, the default domain, an administrator."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from authenticator.identity import IdentityService
from authenticator.principals import Role
from hub.config.deployment import Deployment
from spawner.options import DEFAULT_IMAGE
from store import schema
from store.database import Store

ADMIN = "admin"


def now() -> dt.datetime:
    """The clock of the manager and of commands."""
    return dt.datetime.now(dt.UTC)


@asynccontextmanager
async def open_store(deployment: Deployment) -> AsyncIterator[Store]:
    """The deployment's database, while the block runs."""
    store = Store(deployment.db_url)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def prepare_database(deployment: Deployment) -> schema.Upgrade:
    """Upgrade the schema and create the default domain, project and policies; harmless when repeated.

    Raises ``StoreError``.
    """
    upgrade = await asyncio.to_thread(schema.upgrade, deployment.db_url)
    async with open_store(deployment) as store:
        await IdentityService(store, now).bootstrap()
    return upgrade


async def first_administrator(deployment: Deployment) -> str | None:
    """Create ``admin`` if there is no administrator; returns the new password, else None."""
    async with open_store(deployment) as store:
        identity = IdentityService(store, now)
        if any(user.role == Role.SUPERADMIN for user in await identity.list_users()):
            return None
        made = await identity.create_user(ADMIN, role=Role.SUPERADMIN)
        return made.password


async def default_images(deployment: Deployment) -> frozenset[str]:
    """Images of sessions whose owners choose none."""
    from spawner.sessions.tables import ResourceGroupRow

    async def work(db: AsyncSession) -> list[Mapping[str, Any]]:
        query = select(ResourceGroupRow.options).where(ResourceGroupRow.is_active)
        return list(await db.scalars(query))

    named = deployment.config.PerijoveSpawner.get("image")
    if named:
        return frozenset({str(named)})
    async with open_store(deployment) as store:
        groups = await store.read(work)
    return frozenset(each.get("default_image") or DEFAULT_IMAGE for each in groups)
