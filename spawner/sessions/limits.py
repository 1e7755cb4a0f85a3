"""Limits of key pairs, users, projects and domains: what each may hold, and what it holds now.

Every limit that is set holds. A user's or project's own limits and those of its resource policy make one
``Quota`` with the smaller of both.
"""

from __future__ import annotations

import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from authenticator.tables import (
    DomainRow,
    KeyPairPolicyRow,
    KeyPairRow,
    ProjectPolicyRow,
    ProjectRow,
    UserPolicyRow,
    UserRow,
)
from spawner.scheduler.model import KernelRequest, Quota, SessionRequest
from spawner.sessions import ledger
from spawner.sessions.kinds import SYSTEM
from spawner.sessions.states import FINAL, HOLDS
from spawner.sessions.tables import AllocationRow, KernelRow, SessionRow

LIVE = [status.value for status in HOLDS]
Limit = tuple[Any, dict[str, int] | None, int | None, int | None]
"""Id of a scope, amounts, number of sessions, containers per session."""


@dataclass(frozen=True, slots=True)
class Payer:
    """Whose limits a request counts against."""

    access_key: str
    project_id: str
    domain: str
    user_id: str


def least(*limits: int | None) -> int | None:
    """The smallest of the limits that there are; None: unlimited."""
    return min((each for each in limits if each is not None), default=None)


def least_amounts(*limits: Mapping[str, int] | None) -> dict[str, int] | None:
    """By slot, the smallest of the limits that there are; None: unlimited."""
    found: dict[str, int] = {}
    for each in limits:
        for slot, amount in (each or {}).items():
            found[slot] = min(int(amount), found.get(slot, int(amount)))
    return found or None


async def read_quotas(
    db: AsyncSession, whose: Iterable[Payer], *, hold: bool = False
) -> tuple[Quota, ...]:
    """Limits of all payers that have any, with what they hold now.

    With ``hold`` nobody changes these limits before the transaction ends (PostgreSQL; SQLite has one
    writer anyway).
    """
    payers = set(whose)
    if not payers:
        return ()
    limits: tuple[tuple[str, InstrumentedAttribute[Any], list[Limit]], ...] = (
        ("keypair", SessionRow.access_key, await _key_pairs(db, payers, hold)),
        ("user", SessionRow.owner_id, await _users(db, payers, hold)),
        ("project", SessionRow.project_id, await _projects(db, payers, hold)),
        ("domain", SessionRow.domain, await _domains(db, payers, hold)),
    )
    quotas: list[Quota] = []
    for scope, column, each in limits:
        quotas += await _limited(db, scope, column, each)
    return tuple(quotas)


async def _rows(db: AsyncSession, query: Select[*tuple[Any, ...]], hold: bool) -> list[Any]:
    return list(await db.execute(query.with_for_update(read=True) if hold else query))


def payable(session: SessionRow, kernels: Sequence[KernelRow]) -> SessionRequest:
    """What counts of a session against limits."""
    return SessionRequest(
        session_id=str(session.id),
        owner_id=str(session.owner_id),
        access_key=session.access_key,
        project_id=str(session.project_id),
        domain=session.domain,
        resource_group=session.resource_group,
        priority=session.priority,
        submitted_at=session.created_at.timestamp(),
        kernels=tuple(
            KernelRequest(str(row.id), row.slots, row.image, session.architecture)
            for row in kernels
        ),
        unlimited=session.type == SYSTEM,
    )


def summed(kernels: Iterable[KernelRow]) -> list[tuple[str, int]]:
    """What the kernels of a session ask for together, without what is 0."""
    total: Counter[str] = Counter()
    for row in kernels:
        total.update({slot: int(amount) for slot, amount in row.slots.items()})
    return sorted((+total).items())


async def _key_pairs(db: AsyncSession, payers: set[Payer], hold: bool) -> list[Limit]:
    query = (
        select(
            KeyPairRow.access_key,
            KeyPairPolicyRow.total_resource_slots,
            KeyPairPolicyRow.max_concurrent_sessions,
            KeyPairPolicyRow.max_containers_per_session,
        )
        .join(KeyPairPolicyRow, KeyPairPolicyRow.name == KeyPairRow.policy)
        .where(KeyPairRow.access_key.in_({payer.access_key for payer in payers}))
        .order_by(KeyPairRow.access_key)
    )
    return [tuple(row) for row in await _rows(db, query, hold)]


async def _users(db: AsyncSession, payers: set[Payer], hold: bool) -> list[Limit]:
    ids = {uuid.UUID(payer.user_id) for payer in payers}
    return await _with_policy(db, UserRow, UserPolicyRow, ids, hold)


async def _projects(db: AsyncSession, payers: set[Payer], hold: bool) -> list[Limit]:
    ids = {uuid.UUID(payer.project_id) for payer in payers}
    return await _with_policy(db, ProjectRow, ProjectPolicyRow, ids, hold)


async def _with_policy(
    db: AsyncSession,
    scope: type[UserRow | ProjectRow],
    policy: type[UserPolicyRow | ProjectPolicyRow],
    ids: set[uuid.UUID],
    hold: bool,
) -> list[Limit]:
    """The smaller of each own limit and the policy's."""
    own = (
        select(
            scope.id,
            scope.resource_policy,
            scope.total_resource_slots,
            scope.max_concurrent_sessions,
        )
        .where(scope.id.in_(ids))
        .order_by(scope.id)
    )
    rows = await _rows(db, own, hold)
    shared = (
        select(
            policy.name,
            policy.total_resource_slots,
            policy.max_concurrent_sessions,
            policy.max_containers_per_session,
        )
        .where(policy.name.in_({name for _, name, _, _ in rows}))
        .order_by(policy.name)
    )
    policies = {name: limits for name, *limits in await _rows(db, shared, hold)}
    found: list[Limit] = []
    for key, name, slots, most in rows:
        also_slots, also_most, containers = policies.get(name, (None, None, None))
        found.append((key, least_amounts(slots, also_slots), least(most, also_most), containers))
    return found


async def _domains(db: AsyncSession, payers: set[Payer], hold: bool) -> list[Limit]:
    query = (
        select(DomainRow.name, DomainRow.total_resource_slots, DomainRow.max_concurrent_sessions)
        .where(DomainRow.name.in_({payer.domain for payer in payers}))
        .order_by(DomainRow.name)
    )
    return [(*row, None) for row in await _rows(db, query, hold)]


async def _limited(
    db: AsyncSession, scope: str, column: InstrumentedAttribute[Any], rows: Iterable[Limit]
) -> list[Quota]:
    """Quotas of the scopes that have a limit."""
    limits = [row for row in rows if any(each is not None for each in row[1:])]
    held, counts = await held_by(db, column, sorted(row[0] for row in limits))
    return [
        Quota(scope, str(key), slots, held[key], most, counts[key], containers)
        for key, slots, most, containers in limits
    ]


async def held_by(
    db: AsyncSession, column: InstrumentedAttribute[Any], values: list[Any]
) -> tuple[dict[Any, dict[str, int]], dict[Any, int]]:
    """Amounts by slot, and sessions, that are held by each of ``values`` of a session column."""
    held: dict[Any, dict[str, int]] = defaultdict(dict)
    counts: dict[Any, int] = defaultdict(int)
    if not values:
        return held, counts
    amounts = await db.execute(
        select(column, AllocationRow.slot, func.sum(AllocationRow.amount))
        .join(KernelRow, KernelRow.session_id == SessionRow.id)
        .join(AllocationRow, AllocationRow.kernel_id == KernelRow.id)
        .where(
            AllocationRow.freed_at.is_(None),
            ledger.of_present_run(),
            column.in_(values),
            SessionRow.type != SYSTEM,
            SessionRow.status.not_in([status.value for status in FINAL]),
        )
        .group_by(column, AllocationRow.slot)
    )
    for value, slot, amount in amounts:
        held[value][slot] = int(amount)
    sessions = await db.execute(
        select(column, func.count())
        .where(SessionRow.status.in_(LIVE), SessionRow.type != SYSTEM, column.in_(values))
        .group_by(column)
    )
    for value, count in sessions:
        counts[value] = count
    return held, counts
