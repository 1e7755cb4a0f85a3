"""Tokens with which agents dial in: made, used, listed, revoked. Only their SHA-256 is kept."""

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
from store.making import make_missing

MIN_LENGTH = 20
STANDING, JOIN, CREDENTIAL = "standing", "join", "credential"


class TokenRefused(Exception):
    """A token that is known does not let this agent in; one sentence."""


class AgentTokens:
    """Use cases of agent tokens, for administrators on the command line."""

    def __init__(self, store: Store, now: Callable[[], dt.datetime]) -> None:
        self._store, self._now = store, now

    async def create(
        self, note: str = "", agent_id: str | None = None, *, lifetime: float | None = None
    ) -> tuple[str, uuid.UUID]:
        """A new token (shown this once) and its id; ``agent_id`` binds it to one agent.

        With a ``lifetime`` (seconds) it makes one node a member within that time, and is worth nothing
        afterwards; without, agents dial with it as often as they like.
        """
        plain = secrets.token_urlsafe(32)
        expires = None if lifetime is None else self._now() + dt.timedelta(seconds=lifetime)
        kind = STANDING if lifetime is None else JOIN
        row = self._row(plain, note, agent_id, kind=kind, expires_at=expires)

        async def work(db: AsyncSession) -> None:
            db.add(row)

        await self._store.write(work)
        return plain, row.id

    async def ensure_token(self, plain: str, note: str) -> None:
        """Make ``plain`` a valid token unless it is known already (also when it was revoked)."""
        if len(plain) < MIN_LENGTH:
            raise InvalidParameters(
                {"token": f"an agent token has at least {MIN_LENGTH} characters"}
            )

        async def work(db: AsyncSession) -> None:
            if await find(db, plain, live=False) is None:
                db.add(self._row(plain, note, None))
                await db.flush()

        await make_missing(self._store, work)

    async def list(self) -> list[AgentTokenRow]:
        """All tokens, oldest first."""

        async def work(db: AsyncSession) -> list[AgentTokenRow]:
            return list(
                (await db.scalars(select(AgentTokenRow).order_by(AgentTokenRow.created_at))).all()
            )

        return await self._store.read(work)

    async def revoke(self, token_id: uuid.UUID) -> None:
        """Refuse this token from now on, and the credential that was given for it.

        Managers close the connections of agents that dialled with it within their sync interval.
        """

        async def work(db: AsyncSession) -> None:
            row = await db.get(AgentTokenRow, token_id)
            if row is None:
                raise NotFound("agent token", f"there is no agent token {token_id}")
            given = await db.scalars(select(AgentTokenRow).where(AgentTokenRow.join_id == token_id))
            for each in (row, *given):
                each.revoked_at = each.revoked_at or self._now()

        await self._store.write(work)

    def _row(self, plain: str, note: str, agent_id: str | None, **facts: object) -> AgentTokenRow:
        return AgentTokenRow(
            id=uuid.uuid4(),
            token_hash=fingerprint(plain),
            agent_id=agent_id,
            note=note,
            created_at=self._now(),
            **facts,
        )


def fingerprint(plain: str) -> str:
    """SHA-256 of a token, in hex. Tokens are long and random, so a plain hash is enough."""
    return hashlib.sha256(plain.encode()).hexdigest()


async def find(
    db: AsyncSession, plain: str, *, live: bool = True, now: dt.datetime | None = None
) -> AgentTokenRow | None:
    """The row of a token; only one that is not revoked, and not expired unused by ``now``, when ``live``."""
    query = select(AgentTokenRow).where(AgentTokenRow.token_hash == fingerprint(plain))
    if live:
        query = query.where(AgentTokenRow.revoked_at.is_(None))
    row = (await db.scalars(query)).one_or_none()
    if row is None or not live or now is None:
        return row
    expired = row.expires_at is not None and row.used_at is None and row.expires_at <= now
    return None if expired else row


async def still_good(db: AsyncSession, token_id: uuid.UUID) -> bool:
    """Whether a token that was good is not revoked yet."""
    query = select(AgentTokenRow.id).where(
        AgentTokenRow.id == token_id, AgentTokenRow.revoked_at.is_(None)
    )
    return await db.scalar(query) is not None


async def use(
    db: AsyncSession, token_id: uuid.UUID, agent_id: str, now: dt.datetime
) -> tuple[str | None, uuid.UUID]:
    """An agent dials: the credential it gets for a join token (else None), and the id of what it has now.

    An agent that died before it kept its credential joins again with the same token; once the
    credential was used, the token is worth nothing. Raises ``TokenRefused``.
    """
    row = await db.get(AgentTokenRow, token_id, with_for_update=True, populate_existing=True)
    if row is None or row.revoked_at is not None:
        raise TokenRefused("the agent's token was revoked")
    if row.agent_id not in (None, agent_id):
        raise TokenRefused(f"this token is for another agent than {agent_id}")
    row.used_at = row.used_at or now
    if row.kind != JOIN:
        return None, row.id
    row.agent_id = agent_id
    given = list(await db.scalars(select(AgentTokenRow).where(AgentTokenRow.join_id == row.id)))
    if any(each.used_at is not None for each in given):
        raise TokenRefused("this join token was used: an agent joins with a new one")
    for each in given:
        each.revoked_at = each.revoked_at or now
    plain = secrets.token_urlsafe(32)
    credential = AgentTokenRow(
        id=uuid.uuid4(),
        token_hash=fingerprint(plain),
        agent_id=agent_id,
        note=row.note,
        created_at=now,
        kind=CREDENTIAL,
        join_id=row.id,
    )
    db.add(credential)
    await db.flush()
    return plain, credential.id
