"""Usage of domains, projects and users in slot-seconds, for ``fair-share``.

Every allocation carries since when it is not charged yet. ``settle`` charges what is held and what was
freed since it ran last; a charge halves with each half-life of its resource group. A run that was given
up with its node costs nothing from then on. ``settle`` may run at any time, any number of times: each
second of an allocation is charged once.
"""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Mapping
from typing import Literal, cast

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from authenticator.tables import DomainRow, MembershipRow, ProjectRow, UserRow
from spawner.scheduler.model import Usage
from spawner.sessions import ledger
from spawner.sessions.tables import AllocationRow, KernelRow, LostRunRow, SessionRow, UsageRow

Scope = Literal["domain", "project", "user"]
Key = tuple[str, Scope, str, str]
"""Resource group, scope, its id, slot."""
HALF_LIFE = 7 * 86400.0


def decayed(amount: float, seconds: float, half_life: float) -> float:
    """What is left of ``amount`` after ``seconds``."""
    return float(amount * 0.5 ** (max(0.0, seconds) / half_life))


async def settle(db: AsyncSession, now: dt.datetime, half_lives: Mapping[str, float]) -> int:
    """Charge everything up to ``now``; returns the number of allocations charged."""
    rows = await db.execute(
        select(
            AllocationRow.kernel_id,
            AllocationRow.slot,
            AllocationRow.amount,
            AllocationRow.uncharged_since,
            func.coalesce(AllocationRow.freed_at, LostRunRow.lost_at),
            SessionRow.resource_group,
            SessionRow.domain,
            SessionRow.project_id,
            SessionRow.owner_id,
        )
        .join(KernelRow, KernelRow.id == AllocationRow.kernel_id)
        .join(SessionRow, SessionRow.id == KernelRow.session_id)
        .outerjoin(
            LostRunRow,
            (LostRunRow.kernel_id == AllocationRow.kernel_id)
            & (LostRunRow.epoch == AllocationRow.epoch)
            & (LostRunRow.agent_id == AllocationRow.agent_id),
        )
        .where(AllocationRow.uncharged_since.is_not(None))
        .with_for_update(of=AllocationRow)
    )
    charges: dict[Key, float] = defaultdict(float)
    count = 0
    for _, slot, amount, since, freed, group, domain, project, owner in rows:
        count += 1
        if since is None:
            continue  # the query left those out
        until = now if freed is None else freed
        seconds = max(0.0, (until - since).total_seconds())
        half_life = half_lives.get(group, HALF_LIFE)
        charge = decayed(amount * seconds, (now - until).total_seconds(), half_life)
        scopes: tuple[tuple[Scope, str], ...] = (
            ("domain", domain),
            ("project", str(project)),
            ("user", f"{project}/{owner}"),
        )
        for scope, scope_id in scopes:
            charges[(group, scope, scope_id, slot)] += charge
    if not count:
        return 0
    pending = AllocationRow.uncharged_since.is_not(None)
    quiet = {"synchronize_session": False}
    await db.execute(
        update(AllocationRow)
        .where(pending, AllocationRow.freed_at.is_not(None) | ledger.of_lost_run())
        .values(uncharged_since=None)
        .execution_options(**quiet)
    )
    await db.execute(
        update(AllocationRow).where(pending).values(uncharged_since=now).execution_options(**quiet)
    )
    await _add(db, now, charges, half_lives)
    return count


async def _add(
    db: AsyncSession,
    now: dt.datetime,
    charges: Mapping[Key, float],
    half_lives: Mapping[str, float],
) -> None:
    groups = {key[0] for key in charges}
    known = {
        (row.resource_group, row.scope, row.scope_id, row.slot): row
        for row in await db.scalars(
            select(UsageRow)
            .where(UsageRow.resource_group.in_(groups))
            .with_for_update()
            .execution_options(populate_existing=True)
        )
    }
    for key in sorted(charges):
        group, scope, scope_id, slot = key
        row = known.get(key)
        if row is None:
            db.add(
                UsageRow(
                    resource_group=group,
                    scope=scope,
                    scope_id=scope_id,
                    slot=slot,
                    slot_seconds=charges[key],
                    at=now,
                )
            )
            continue
        age, half_life = (now - row.at).total_seconds(), half_lives.get(group, HALF_LIFE)
        row.slot_seconds = decayed(row.slot_seconds, age, half_life) + charges[key]
        row.at = now
    await db.flush()


async def read_usage(
    db: AsyncSession, now: dt.datetime, half_lives: Mapping[str, float]
) -> tuple[Usage, ...]:
    """What every scope has used in each group, decayed to ``now``, with its weight.

    Scopes that have used nothing are named when their weight is not 1.
    """
    weights = await _weights(db)
    totals: dict[tuple[str, Scope, str], dict[str, float]] = defaultdict(dict)
    for row in await db.scalars(select(UsageRow)):
        age, half_life = (now - row.at).total_seconds(), half_lives.get(row.resource_group)
        left = decayed(row.slot_seconds, age, half_life or HALF_LIFE)
        totals[(row.resource_group, cast("Scope", row.scope), row.scope_id)][row.slot] = left
    for (scope, scope_id), weight in weights.items():
        for group in half_lives if weight != 1.0 else ():
            totals.setdefault((group, scope, scope_id), {})
    at = now.timestamp()
    return tuple(
        Usage(scope, scope_id, slots, at, weights.get((scope, scope_id), 1.0), group)
        for (group, scope, scope_id), slots in sorted(totals.items())
    )


async def _weights(db: AsyncSession) -> dict[tuple[Scope, str], float]:
    """Weights of domains, projects, and people in each of their projects."""
    found: dict[tuple[Scope, str], float] = {}
    for name, weight in await db.execute(select(DomainRow.name, DomainRow.weight)):
        found[("domain", name)] = weight
    for project, weight in await db.execute(select(ProjectRow.id, ProjectRow.weight)):
        found[("project", str(project))] = weight
    members = select(MembershipRow.project_id, UserRow.id, UserRow.weight).join(
        UserRow, UserRow.id == MembershipRow.user_id
    )
    for project, user, weight in await db.execute(members):
        found[("user", f"{project}/{user}")] = weight
    return found
