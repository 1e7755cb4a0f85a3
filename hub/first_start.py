"""What must be in the database before a manager serves: the schema, the default domain, an administrator."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from authenticator.identity import IdentityService
from authenticator.principals import Role
from hub.config.deployment import Deployment
from store import schema
from store.database import Store

ADMIN = "admin"


def now() -> dt.datetime:
    """The clock of commands."""
    return dt.datetime.now(dt.UTC)


@asynccontextmanager
async def open_identity(deployment: Deployment) -> AsyncIterator[IdentityService]:
    """The identity service on the deployment's database, while the block runs."""
    store = Store(deployment.db_url)
    await store.open()
    try:
        yield IdentityService(store, now)
    finally:
        await store.close()


async def prepare_database(deployment: Deployment) -> schema.Upgrade:
    """Upgrade the schema and create the default domain, project and policies; harmless when repeated.

    Raises ``StoreError``.
    """
    upgrade = await asyncio.to_thread(schema.upgrade, deployment.db_url)
    async with open_identity(deployment) as identity:
        await identity.bootstrap()
    return upgrade


async def first_administrator(deployment: Deployment) -> str | None:
    """Create ``admin`` if there is no administrator; returns the new password, else None."""
    async with open_identity(deployment) as identity:
        if any(user.role == Role.SUPERADMIN for user in await identity.list_users()):
            return None
        made = await identity.create_user(ADMIN, role=Role.SUPERADMIN)
        return made.password
