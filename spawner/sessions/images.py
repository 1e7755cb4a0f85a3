"""Use cases of images: list, approve, get onto nodes, remove, make of a session.

An image of one's own is named ``perijove.invalid/<id of the owner>/<name>:<tag>``: no registry can have that
host, so nothing of the name is ever pulled from elsewhere; it can be used on the nodes that have it.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import re
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from authenticator.principals import Principal, Scope, require
from authenticator.problems import (
    AgentUnavailable,
    BadRequest,
    InvalidParameters,
    NotFound,
    QuotaExceeded,
)
from authenticator.tables import UserPolicyRow, UserRow
from spawner.agent.protocol import ImagePull
from spawner.sessions import queries, steps
from spawner.sessions.agents import AgentRegistry
from spawner.sessions.image_rows import (
    COMMIT_LABEL,
    FAILED,
    ONGOING,
    OWN_HOST,
    OWNER_LABEL,
    holders,
    own_name,
    pull_rules,
    usable_by,
)
from spawner.sessions.registration import ALIVE
from spawner.sessions.states import Status
from spawner.sessions.tables import (
    AgentRow,
    CommitRow,
    ImageRow,
    KernelRow,
    SessionRow,
)
from spawner.sessions.transitions import Change, Journal

NAME = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")
NAME_RULE = "1 to 64 lower-case letters and digits, with single '.', '_' and '-' between them"
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
LONGEST = dt.timedelta(hours=1)
"""After it, a commit of which its node has told nothing holds up no other."""
LABEL_LABEL = "ai.perijove.label"
_SHOWN = 80

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ImageView:
    """An image with the agents that have it."""

    row: ImageRow
    agents: tuple[str, ...]


class ImageService:
    """Images of the cluster. Every method that takes a principal authorizes it."""

    def __init__(
        self, journal: Journal, agents: AgentRegistry, now: Callable[[], dt.datetime]
    ) -> None:
        self._journal, self._agents, self._now = journal, agents, now

    async def list(self, principal: Principal, name: str | None = None) -> Sequence[ImageView]:
        """Images that the caller may use, or all for superadmins; ``name`` limits them to one."""
        require(principal, Scope.SESSIONS_READ)

        async def work(db: AsyncSession) -> Sequence[ImageView]:
            query = select(ImageRow).order_by(ImageRow.name, ImageRow.architecture)
            if not principal.is_superadmin:
                query = query.where(ImageRow.is_enabled, usable_by(principal.user_id))
            if name is not None:
                query = query.where(ImageRow.name == name)
            rows = list(await db.scalars(query))
            where = await holders(db)
            return [ImageView(row, tuple(sorted(where.get(row.name, ())))) for row in rows]

        return await self._journal.store.read(work)

    async def update(
        self,
        principal: Principal,
        name: str,
        *,
        enabled: bool | None,
        digest: str | None,
        request_id: str,
    ) -> None:
        """Switch an image off or on; approve one digest of it (an empty text: any)."""
        require(principal, Scope.ADMIN)
        if digest and not DIGEST.fullmatch(digest):
            raise InvalidParameters({"digest": f"{digest[:_SHOWN]!r}: sha256: and 64 hex digits"})

        async def work(change: Change) -> None:
            for row in await _rows(change.db, name):
                row.is_enabled = row.is_enabled if enabled is None else enabled
                if digest is not None:
                    row.expected_digest = digest or None
            change.schedule = True

        await self._journal.write(request_id, work)
        log.info("%s changed the image %s", principal.username, name)

    async def pull(
        self, principal: Principal, name: str, agents: Sequence[str]
    ) -> dict[str, dict[str, str]]:
        """Have nodes get an image (all live ones if none is named); how far each is, by agent."""
        require(principal, Scope.ADMIN)
        if name.startswith(f"{OWN_HOST}/"):
            raise InvalidParameters({"name": f"{name[:_SHOWN]!r} was made of a session here"})

        async def work(db: AsyncSession) -> tuple[list[str], ImagePull | None]:
            alive = await db.scalars(
                select(AgentRow.id).where(AgentRow.status == ALIVE, AgentRow.engine != "process")
            )
            return list(alive), (await pull_rules(db, [name])).get(name)

        alive, how = await self._journal.store.read(work)
        unknown = sorted(set(agents) - set(alive))
        if unknown:
            there = ", ".join(alive) or "none"
            told = f"{', '.join(unknown)[:200]}: no live node that gets images; there are {there}"
            raise InvalidParameters({"agents": told})
        how = how or ImagePull()
        params = {"username": how.username, "password": how.password, "digest": how.digest}
        chosen = list(agents) or alive
        log.info("%s has %d nodes get the image %s", principal.username, len(chosen), name)
        return await self._ask(chosen, "pull_image", {"name": name, **params})

    async def tasks(self, principal: Principal, name: str) -> dict[str, dict[str, str]]:
        """How far each node's pull of an image is, by agent."""
        require(principal, Scope.ADMIN)
        alive = await self._journal.store.read(
            lambda db: db.scalars(select(AgentRow.id).where(AgentRow.status == ALIVE))
        )
        found = await self._ask(list(alive), "image_tasks", {"name": name})
        pulls: dict[str, dict[str, str]] = {}
        for agent, tasks in found.items():
            if isinstance(tasks, dict):
                continue
            for task in tasks:
                if task["what"] == "pull":
                    pulls[agent] = task
        return pulls

    async def remove(self, principal: Principal, name: str, request_id: str) -> dict[str, Any]:
        """Remove an image from all nodes that can be asked: its owner's, or any for superadmins.

        Its row goes when no node has it any more. Raises ``BadRequest`` while a session needs it.
        """
        require(principal, Scope.SESSIONS)

        async def work(db: AsyncSession) -> list[str]:
            rows = await _rows(db, name)
            mine = all(row.owner_id == principal.user_id for row in rows)
            if not mine:
                if not principal.is_superadmin:
                    raise NotFound("image", f"you have no image {name[:_SHOWN]!r}")
                require(principal, Scope.ADMIN)
            users = select(func.count(KernelRow.session_id.distinct())).where(
                KernelRow.image == name, KernelRow.status.not_in(queries.ENDED)
            )
            count = await db.scalar(users)
            if count:
                raise BadRequest(f"{count} live sessions use {name[:_SHOWN]}: end them first")
            return sorted((await holders(db)).get(name, ()))

        having = await self._journal.store.read(work)
        asked = await self._ask(having, "remove_image", {"name": name})
        failed = {agent: told["message"] for agent, told in asked.items() if isinstance(told, dict)}

        async def forget(change: Change) -> None:
            if not failed:
                for row in await _rows(change.db, name):
                    await change.db.delete(row)
            for agent in set(having) - set(failed):
                node = await change.db.get_one(AgentRow, agent, with_for_update=True)
                node.images = [image for image in node.images if image != name]

        await self._journal.write(request_id, forget)
        log.info("%s removed the image %s from %d nodes", principal.username, name, len(having))
        return {"removed": sorted(set(having) - set(failed)), "failed": failed}

    async def commit(
        self, principal: Principal, ref: str, name: str | None, request_id: str
    ) -> CommitRow:
        """Make an image of a running session's main container; it goes on in the background.

        ``name`` defaults to the session's; an image of the same name is replaced. Raises
        ``QuotaExceeded``, ``BadRequest``, ``InvalidParameters``.
        """
        require(principal, Scope.SESSIONS)
        if name is not None and (not NAME.fullmatch(name) or len(name) > 64):
            raise InvalidParameters({"image_name": f"{name[:_SHOWN]!r}: {NAME_RULE}"})

        async def work(change: Change) -> tuple[CommitRow, KernelRow, SessionRow]:
            row = await queries.resolve(change.db, principal, ref, Scope.SESSIONS)
            loaded = await steps.load(change.db, row.id)
            if loaded is None:
                raise NotFound("session", f"there is no session {ref[:_SHOWN]!r}")
            session, (kernel, *_) = loaded
            if kernel.status != Status.RUNNING or kernel.agent_id is None:
                raise BadRequest("an image can be made of a running session only")
            if await _ongoing(change.db, session.id, change.now) is not None:
                raise BadRequest("an image of this session is being made already")
            image = own_name(session.owner_id, name or _name_of(session.name))
            await _check_count(change.db, session, image, change.now)
            made = CommitRow(
                id=uuid.uuid4(),
                session_id=session.id,
                owner_id=session.owner_id,
                agent_id=kernel.agent_id,
                image=image,
                status=ONGOING,
                message="",
                created_at=change.now,
            )
            change.db.add(made)
            change.note(session, "an image of it is being made")
            await change.db.flush()
            for each in (made, kernel, session):
                change.db.expunge(each)
            return made, kernel, session

        row, kernel, session = await self._journal.write(request_id, work)
        labels = {
            COMMIT_LABEL: str(row.id),
            OWNER_LABEL: row.owner_id.hex,
            LABEL_LABEL: f"{row.image.rpartition('/')[2].partition(':')[0]} (of {session.name})",
        }
        params = {"kernel_id": str(kernel.id), "name": row.image, "labels": labels}
        try:
            await self._agents.call(row.agent_id, "commit", params)
        except AgentUnavailable as error:
            await self._fail(row.id, str(error), request_id)
            raise
        return row

    async def commit_status(
        self, principal: Principal, ref: str, request_id: str
    ) -> CommitRow | None:
        """The newest commit of a session, as far as its node tells; None: there was none."""
        require(principal, Scope.SESSIONS_READ)

        async def work(db: AsyncSession) -> CommitRow | None:
            session = await queries.resolve(db, principal, ref, Scope.SESSIONS_READ)
            return await _newest(db, session.id)

        row = await self._journal.store.read(work)
        if row is None or row.status != ONGOING:
            return row
        asked = await self._ask([row.agent_id], "image_tasks", {"name": row.image})
        tasks = asked[row.agent_id]
        if isinstance(tasks, dict):  # its node cannot be asked now
            if row.created_at > self._now() - LONGEST:
                return row
            return await self._fail(row.id, "its node has not told how it went", request_id)
        task = next((each for each in tasks if each["what"] == "commit"), None)
        if task is not None and task["state"] != FAILED:
            return row
        told = "its node was started again" if task is None else task["message"]
        return await self._fail(row.id, told, request_id)

    async def _fail(self, commit_id: uuid.UUID, message: str, request_id: str) -> CommitRow:
        async def work(change: Change) -> CommitRow:
            row = await change.db.get_one(CommitRow, commit_id, with_for_update=True)
            if row.status == ONGOING:
                row.status, row.message, row.ended_at = FAILED, message, change.now
            await change.db.flush()
            change.db.expunge(row)
            return row

        return await self._journal.write(request_id, work)

    async def _ask(
        self, agents: Iterable[str], method: str, params: dict[str, Any]
    ) -> dict[str, Any]:
        """Answers by agent, asked all at once; of one that cannot answer ``{"state": "failed", "message"}``."""

        async def ask(agent: str) -> Any:
            try:
                return await self._agents.call(agent, method, params)
            except AgentUnavailable as error:
                return {"state": FAILED, "message": str(error)}

        names = list(agents)
        return dict(zip(names, await asyncio.gather(*map(ask, names)), strict=True))


def _name_of(session: str) -> str:
    """A name for an image from that of its session."""
    return re.sub(r"[^a-z0-9]+", "-", session.lower()).strip("-") or "session"


async def _rows(db: AsyncSession, name: str) -> list[ImageRow]:
    rows = list(await db.scalars(select(ImageRow).where(ImageRow.name == name)))
    if not rows:
        raise NotFound("image", f"there is no image {name[:_SHOWN]!r}")
    return rows


async def _newest(db: AsyncSession, session_id: uuid.UUID) -> CommitRow | None:
    query = select(CommitRow).where(CommitRow.session_id == session_id)
    newest = query.order_by(CommitRow.created_at.desc(), CommitRow.id).limit(1)
    return (await db.scalars(newest)).one_or_none()


async def _ongoing(db: AsyncSession, session_id: uuid.UUID, now: dt.datetime) -> CommitRow | None:
    newest = await _newest(db, session_id)
    if newest is None or newest.status != ONGOING or newest.created_at <= now - LONGEST:
        return None
    return newest


async def _check_count(db: AsyncSession, session: SessionRow, image: str, now: dt.datetime) -> None:
    """Raise ``QuotaExceeded`` when the owner may have no further image."""
    limit = await db.scalar(
        select(UserPolicyRow.max_customized_image_count)
        .join(UserRow, UserRow.resource_policy == UserPolicyRow.name)
        .where(UserRow.id == session.owner_id)
    )
    if limit is None:
        return
    images = await db.scalars(select(ImageRow.name).where(ImageRow.owner_id == session.owner_id))
    ongoing = await db.scalars(
        select(CommitRow.image).where(
            CommitRow.owner_id == session.owner_id,
            CommitRow.status == ONGOING,
            CommitRow.created_at > now - LONGEST,
        )
    )
    held = {*images, *ongoing}
    if image not in held and len(held) >= limit:
        raise QuotaExceeded(
            f"you have {len(held)} images made of sessions and may have {limit}: remove one first"
        )
