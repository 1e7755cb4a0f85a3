"""Tokens with which agents dial in: made, listed, revoked. Only their SHA-256 is kept."""

from __future__ import annotations

import datetime as dt
import hashlib
import secrets
import uuid
from collections.abc import Callable

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from authenticator.problems import InvalidParameters, NotFound
from spawner.sessions.tables import AgentTokenRow
from store.database import Store

MIN_LENGTH = 20


class AgentTokens:
    """Use cases of agent tokens, for administrators on the command line."""

    def __init__(self, store: Store, now: Callable[[], dt.datetime]) -> None:
        self._store, self._now = store, now

    async def create(self, note: str = "", agent_id: str | None = None) -> tuple[str, uuid.UUID]:
        """A new token (shown this once) and its id; ``agent_id`` binds it to one agent."""
        plain = secrets.token_urlsafe(32)
        row = await self._insert(plain, note, agent_id)
        return plain, row.id

    async def ensure_token(self, plain: str, note: str) -> None:
        """Make ``plain`` a valid token unless it is known already (also when it was revoked)."""
        if len(plain) < MIN_LENGTH:
            raise InvalidParameters(
                {"token": f"an agent token has at least {MIN_LENGTH} characters"}
            )
        if await self._store.read(lambda db: find(db, plain, live=False)) is None:
            await self._insert(plain, note, None)

    async def list(self) -> list[AgentTokenRow]:
        """All tokens, oldest first."""

        async def work(db: AsyncSession) -> list[AgentTokenRow]:
            return list(
                (await db.scalars(select(AgentTokenRow).order_by(AgentTokenRow.created_at))).all()
            )

        return await self._store.read(work)

    async def revoke(self, token_id: uuid.UUID) -> None:
        """Refuse this token from now on; connections that used it last until they drop."""

        async def work(db: AsyncSession) -> None:
            row = await db.get(AgentTokenRow, token_id)
            if row is None:
                raise NotFound("agent token", f"there is no agent token {token_id}")
            row.revoked_at = row.revoked_at or self._now()

        await self._store.write(work)

    async def _insert(self, plain: str, note: str, agent_id: str | None) -> AgentTokenRow:
        row_id = uuid.uuid4()

        async def work(db: AsyncSession) -> AgentTokenRow:
            row = AgentTokenRow(
                id=row_id,
                token_hash=fingerprint(plain),
                agent_id=agent_id,
                note=note,
                created_at=self._now(),
            )
            db.add(row)
            await db.flush()
            return row

        return await self._store.write(work)


def fingerprint(plain: str) -> str:
    """SHA-256 of a token, in hex. Tokens are long and random, so a plain hash is enough."""
    return hashlib.sha256(plain.encode()).hexdigest()


async def find(db: AsyncSession, plain: str, *, live: bool = True) -> AgentTokenRow | None:
    """The row of a token; only one that is not revoked when ``live``."""
    query = select(AgentTokenRow).where(AgentTokenRow.token_hash == fingerprint(plain))
    if live:
        query = query.where(AgentTokenRow.revoked_at.is_(None))
    return (await db.scalars(query)).one_or_none()
