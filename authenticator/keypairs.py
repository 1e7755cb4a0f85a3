"""Key pairs: how programs prove whose they are. One of a user's pairs is the main one, and only it signs."""

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from authenticator.identity import DEFAULT, new_key_pair
from authenticator.problems import NotFound
from authenticator.tables import KeyPairPolicyRow, KeyPairRow, UserRow
from store.database import Store

USED_EVERY = dt.timedelta(minutes=5)
"""``last_used`` is at most this old while a key pair is in use."""


@dataclass(frozen=True, slots=True)
class KeyPairView:
    """A key pair as its owner may see it: without the secret."""

    access_key: str
    username: str
    policy: str
    is_active: bool
    is_main: bool
    rate_limit: int
    created_at: dt.datetime
    last_used: dt.datetime | None


@dataclass(frozen=True, slots=True)
class NewKeyPair:
    """A key pair that was just made; the secret is shown once."""

    access_key: str
    secret_key: str


class KeyPairService:
    """Makes, lists and revokes key pairs, for an operator of the deployment."""

    def __init__(self, store: Store, now: Callable[[], dt.datetime]) -> None:
        self._store = store
        self._now = now

    async def create(self, username: str, policy: str | None = None) -> NewKeyPair:
        """A new main key pair of a user, under ``policy`` or the one of the present main pair.

        The former main pair keeps its row and signs no more. Raises ``NotFound`` for the user or policy.
        """

        async def work(session: AsyncSession) -> NewKeyPair:
            user = await _owner(session, username)
            former = await session.get(KeyPairRow, user.main_access_key or "")
            chosen = policy or (DEFAULT if former is None else former.policy)
            if await session.get(KeyPairPolicyRow, chosen) is None:
                raise NotFound("key pair policy", f"there is no key pair policy {chosen!r}")
            pair = new_key_pair(user, self._now(), chosen)
            if former is not None:
                pair.rate_limit = former.rate_limit
            session.add(pair)
            await session.flush()
            user.main_access_key = pair.access_key
            return NewKeyPair(pair.access_key, pair.secret_key)

        return await self._store.write(work)

    async def list(self, username: str | None = None) -> list[KeyPairView]:
        """Key pairs of a user, or all; by user and age. Raises ``NotFound`` for an unknown user."""

        async def work(session: AsyncSession) -> list[KeyPairView]:
            query = select(KeyPairRow, UserRow).join(UserRow, KeyPairRow.user_id == UserRow.id)
            if username is not None:
                query = query.where(UserRow.id == (await _owner(session, username)).id)
            query = query.order_by(UserRow.username, KeyPairRow.created_at)
            return [_view(pair, user) for pair, user in (await session.execute(query)).all()]

        return await self._store.read(work)

    async def revoke(self, access_key: str) -> KeyPairView:
        """Make a key pair sign no more; its owner can still log in. Raises ``NotFound``."""

        async def work(session: AsyncSession) -> KeyPairView:
            pair = await session.get(KeyPairRow, access_key)
            if pair is None:
                raise NotFound("key pair", f"there is no key pair {access_key[:20]!r}")
            pair.is_active = False
            user = await session.get_one(UserRow, pair.user_id)
            return _view(pair, user)

        return await self._store.write(work)

    async def rate_limit(self, access_key: str) -> int:
        """Requests that a key pair may make in 15 minutes. Raises ``NotFound``."""

        async def work(session: AsyncSession) -> int | None:
            query = select(KeyPairRow.rate_limit).where(KeyPairRow.access_key == access_key)
            return (await session.scalars(query)).one_or_none()

        limit = await self._store.read(work)
        if limit is None:
            raise NotFound("key pair", f"there is no key pair {access_key[:20]!r}")
        return limit

    async def mark_used(self, access_key: str) -> None:
        """Remember that a key pair signed a request (to five minutes, so that reads stay cheap)."""
        now = self._now()
        stale = (KeyPairRow.last_used.is_(None)) | (KeyPairRow.last_used < now - USED_EVERY)
        query = select(KeyPairRow.access_key).where(KeyPairRow.access_key == access_key, stale)

        async def due(session: AsyncSession) -> bool:
            return await session.scalar(query) is not None

        async def work(session: AsyncSession) -> None:
            change = update(KeyPairRow).where(KeyPairRow.access_key == access_key, stale)
            await session.execute(change.values(last_used=now))

        if await self._store.read(due):
            await self._store.write(work)


async def _owner(session: AsyncSession, username: str) -> UserRow:
    user = (
        await session.scalars(select(UserRow).where(UserRow.username == username))
    ).one_or_none()
    if user is None:
        raise NotFound("user", f"there is no user {username[:64]!r}")
    return user


def _view(pair: KeyPairRow, user: UserRow) -> KeyPairView:
    return KeyPairView(
        access_key=pair.access_key,
        username=user.username,
        policy=pair.policy,
        is_active=pair.is_active,
        is_main=user.main_access_key == pair.access_key,
        rate_limit=pair.rate_limit,
        created_at=pair.created_at,
        last_used=pair.last_used,
    )
