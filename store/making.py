"""Rows that every deployment has: whichever manager comes first makes them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from store.database import Store


async def make_missing(store: Store, work: Callable[[AsyncSession], Awaitable[None]]) -> None:
    """Run ``work``, which makes only what is not there: again, if another manager made it at the same moment."""
    try:
        await store.write(work)
    except IntegrityError:
        await store.write(work)
