"""Reads of sessions: by reference, lists, details, as their reader may see them."""

from __future__ import annotations

import re
import uuid
from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import Any

from sqlalchemy import ColumnElement, String, cast, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from authenticator.principals import Principal, Scope, may
from authenticator.problems import NotFound, TooManySessionsMatched
from authenticator.tables import ProjectRow, UserRow
from spawner.sessions import ledger
from spawner.sessions.limits import LIVE
from spawner.sessions.registration import ALIVE
from spawner.sessions.requests import SessionDetail, hide_secrets
from spawner.sessions.states import FINAL, Status
from spawner.sessions.tables import AgentRow, AllocationRow, HistoryRow, KernelRow, SessionRow
from spawner.sessions.wishes import wishes_of

ENDED = [status.value for status in FINAL]
NOT_FOR_USERS = ("agent_id", "agent", "waits_for")
"""Parts of explanations that name agents or other people's sessions."""
_ID_PREFIX = re.compile(r"[0-9a-fA-F-]{4,36}")
NEWEST_FIRST = (SessionRow.created_at.desc(), SessionRow.id)


def as_uuid(text: str) -> uuid.UUID | None:
    """The UUID that ``text`` writes, if it does."""
    try:
        return uuid.UUID(text)
    except ValueError:
        return None


async def resolve(db: AsyncSession, principal: Principal, ref: str, scope: Scope) -> SessionRow:
    """The session that ``ref`` names: an id (ended ones too), or the name of one of the caller's live ones.

    Raises ``NotFound``, alike for what does not exist and what the caller may not know of.
    """
    identity = as_uuid(ref)
    if identity is not None:
        row = await db.get(SessionRow, identity, populate_existing=True)
        if row is not None and may(principal, scope, row.owner_id):
            return row
    row = await live_by_name(db, principal.user_id, ref)
    if row is None or not may(principal, scope, row.owner_id):
        raise NotFound("session", f"there is no session {ref[:80]!r}")
    return row


async def kernel_of(db: AsyncSession, session: SessionRow, ref: str | None) -> KernelRow:
    """A kernel of ``session`` by id or host name; None, or the session's own id, means the main one.

    Raises ``NotFound``.
    """
    query = select(KernelRow).where(KernelRow.session_id == session.id)
    identity = None if ref is None else as_uuid(ref)
    if ref is None or identity == session.id:
        query = query.where(KernelRow.cluster_role == "main")
    elif identity is not None:
        query = query.where(KernelRow.id == identity)
    else:
        query = query.where(KernelRow.hostname == ref)
    found = (await db.scalars(query)).one_or_none()
    if found is None:
        raise NotFound("kernel", f"this session has no container {str(ref)[:80]!r}")
    return found


async def live_by_name(db: AsyncSession, owner_id: uuid.UUID, name: str) -> SessionRow | None:
    """The owner's session of that name that has not ended."""
    query = select(SessionRow).where(
        SessionRow.owner_id == owner_id,
        SessionRow.name == name,
        SessionRow.status.not_in(ENDED),
    )
    return (await db.scalars(query)).one_or_none()


async def matching(db: AsyncSession, owner_id: uuid.UUID, prefix: str) -> list[SessionRow]:
    """The owner's live sessions whose name or id begins with ``prefix``."""
    tests: list[ColumnElement[bool]] = [SessionRow.name.startswith(prefix, autoescape=True)]
    query = select(SessionRow).where(
        SessionRow.owner_id == owner_id, SessionRow.status.not_in(ENDED)
    )
    if _ID_PREFIX.fullmatch(prefix):
        digits = prefix.lower().replace("-", "")
        plain_id = func.replace(cast(SessionRow.id, String), "-", "")
        tests.append(plain_id.startswith(digits, autoescape=True))
    rows = await db.scalars(query.where(or_(*tests)).order_by(SessionRow.created_at))
    return list(rows)


def only_one(rows: list[SessionRow], ref: str) -> SessionRow:
    """The single match. Raises ``NotFound`` or ``TooManySessionsMatched``."""
    if not rows:
        raise NotFound("session", f"there is no session {ref[:80]!r}")
    if len(rows) > 1:
        matches = [{"id": str(row.id), "name": row.name, "status": row.status} for row in rows]
        raise TooManySessionsMatched(f"{ref[:80]!r} fits several sessions", {"matches": matches})
    return rows[0]


def listing(
    owner_id: uuid.UUID | None, statuses: Collection[Status] | None
) -> list[ColumnElement[bool]]:
    """Conditions of a list; ``owner_id`` None means everybody's."""
    conditions: list[ColumnElement[bool]] = []
    if owner_id is not None:
        conditions.append(SessionRow.owner_id == owner_id)
    if statuses is not None:
        conditions.append(SessionRow.status.in_([status.value for status in statuses]))
    return conditions


async def details(
    db: AsyncSession, sessions: Iterable[SessionRow], *, show_agents: bool
) -> list[SessionDetail]:
    """Details in the order of ``sessions``: four queries, however many there are."""
    rows = list(sessions)
    ids = [row.id for row in rows]
    kernels: dict[uuid.UUID, list[KernelRow]] = defaultdict(list)
    order = (KernelRow.cluster_role != "main", KernelRow.cluster_index)
    for kernel in await db.scalars(
        select(KernelRow).where(KernelRow.session_id.in_(ids)).order_by(*order)
    ):
        kernels[kernel.session_id].append(kernel)
    owners = await _owners(db, {row.owner_id for row in rows})
    projects = await _projects(db, {row.project_id for row in rows})
    held = await _held(db, ids)
    lost = await _lost(db)
    answer: list[SessionDetail] = []
    for row in rows:
        mine = kernels[row.id]
        silent = [lost[k.agent_id] for k in mine if k.agent_id in lost and k.status in LIVE]
        for each in (row, *mine):
            db.expunge(each)
        _hide(row, mine, show_agents)
        name, email = owners.get(row.owner_id, ("", ""))
        answer.append(
            SessionDetail(
                row,
                tuple(mine),
                name,
                email,
                projects.get(row.project_id, ""),
                held.get(row.id, {}),
                min(silent, default=None),
            )
        )
    return answer


def _hide(session: SessionRow, kernels: Iterable[KernelRow], show_agents: bool) -> None:
    """Take secrets, and for users the agents' names, out of rows that are only a copy by now."""
    session.cluster_keys = None
    for kernel in kernels:
        environ = hide_secrets(kernel.spec.get("environ", {}))
        kernel.spec = {**kernel.spec, "environ": environ}
        if not show_agents:
            kernel.agent_id = None
    if show_agents:
        return
    session.designated_agents = []
    told = {k: v for k, v in session.status_data.items() if k != "failed_agents"}
    if "scheduler" in told:
        told["scheduler"] = without_agents(told["scheduler"])
    session.status_data = told


def without_agents(value: Any) -> Any:
    """A structured explanation without the names of agents."""
    if isinstance(value, dict):
        return {k: without_agents(v) for k, v in value.items() if k not in NOT_FOR_USERS}
    if isinstance(value, list):
        return [without_agents(each) for each in value]
    return value


async def history(db: AsyncSession, session_id: uuid.UUID, after: int = 0) -> list[HistoryRow]:
    """All rows of a session and its kernels after row ``after``, oldest first."""
    query = (
        select(HistoryRow)
        .where(HistoryRow.session_id == session_id, HistoryRow.id > after)
        .order_by(HistoryRow.id)
    )
    return list(await db.scalars(query))


async def told(db: AsyncSession, session_id: uuid.UUID, *, show_agents: bool) -> list[HistoryRow]:
    """``history`` as detached copies, for whoever may (not) see the names of agents."""
    rows = await history(db, session_id)
    for row in rows:
        db.expunge(row)
        if not show_agents:
            row.data = without_agents(row.data)
    return rows


async def mounted(db: AsyncSession, volume: str, path: str) -> bool:
    """Whether a session that has not ended mounts ``path`` of ``volume``, or something under it."""
    specs = await db.scalars(select(KernelRow.spec).where(KernelRow.status.not_in(ENDED)))
    return any(
        mount["volume"] == volume
        and (mount["path"] == path or mount["path"].startswith(path + "/"))
        for spec in specs
        for mount in spec.get("mounts", ())
    )


async def servers(db: AsyncSession, hub_id: str) -> list[SessionRow]:
    """Live sessions that a hub started, oldest first."""
    query = select(SessionRow).where(
        SessionRow.status.not_in(ENDED), SessionRow.origin["hub"].as_string() == hub_id
    )
    return list(await db.scalars(query.order_by(SessionRow.created_at)))


async def server(
    db: AsyncSession, hub_id: str, owner_id: uuid.UUID, name: str
) -> SessionRow | None:
    """The newest session of a name that a hub started for a user, also when it ended."""
    query = select(SessionRow).where(
        SessionRow.owner_id == owner_id,
        SessionRow.name == name,
        SessionRow.origin["hub"].as_string() == hub_id,
    )
    newest = query.order_by(SessionRow.created_at.desc(), SessionRow.id).limit(1)
    return (await db.scalars(newest)).one_or_none()


async def dependents(db: AsyncSession, row: SessionRow) -> list[SessionRow]:
    """Sessions that wait for ``row``, and those that wait for them; only ones that wait depend."""
    query = select(SessionRow).where(
        SessionRow.owner_id == row.owner_id,
        SessionRow.status == Status.PENDING.value,
        SessionRow.scheduling.is_not(None),
    )
    waiting = list(await db.scalars(query.order_by(SessionRow.created_at, SessionRow.id)))
    reached, found = {str(row.id)}, []
    for each in waiting:  # a parent is older than its children
        if reached & set(wishes_of(each.scheduling).dependencies):
            reached.add(str(each.id))
            found.append(each)
    return found


async def any_lost(db: AsyncSession, agents: Collection[str]) -> bool:
    """Whether one of ``agents`` does not answer."""
    query = select(AgentRow.id).where(AgentRow.id.in_(agents), AgentRow.status != ALIVE)
    return (await db.scalars(query.limit(1))).first() is not None


async def _owners(db: AsyncSession, ids: Collection[uuid.UUID]) -> dict[uuid.UUID, tuple[str, str]]:
    rows = await db.execute(
        select(UserRow.id, UserRow.username, UserRow.email).where(UserRow.id.in_(ids))
    )
    return {user_id: (name, email) for user_id, name, email in rows}


async def _projects(db: AsyncSession, ids: Collection[uuid.UUID]) -> dict[uuid.UUID, str]:
    rows = await db.execute(select(ProjectRow.id, ProjectRow.name).where(ProjectRow.id.in_(ids)))
    return {project_id: str(name) for project_id, name in rows}


async def _held(
    db: AsyncSession, session_ids: Collection[uuid.UUID]
) -> dict[uuid.UUID, dict[str, int]]:
    held: dict[uuid.UUID, dict[str, int]] = defaultdict(dict)
    rows = await db.execute(
        select(KernelRow.session_id, AllocationRow.slot, func.sum(AllocationRow.amount))
        .join(AllocationRow, AllocationRow.kernel_id == KernelRow.id)
        .where(
            KernelRow.session_id.in_(session_ids),
            AllocationRow.freed_at.is_(None),
            ledger.of_present_run(),
        )
        .group_by(KernelRow.session_id, AllocationRow.slot)
    )
    for session_id, slot, amount in rows:
        held[session_id][slot] = int(amount)
    return held


async def _lost(db: AsyncSession) -> dict[str | None, Any]:
    rows = await db.execute(select(AgentRow.id, AgentRow.last_seen).where(AgentRow.status != ALIVE))
    return {str(agent_id): seen for agent_id, seen in rows}
