"""Everything that must hold of sessions, kernels and the ledger at every committed state."""

from __future__ import annotations

import uuid
from collections import defaultdict

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from spawner.sessions import ledger
from spawner.sessions.retries import attempt_of, policy_of, retries_of
from spawner.sessions.states import FINAL, HOLDS, REVIVAL, TRANSITIONS, Status, Target
from spawner.sessions.tables import (
    AgentDeviceRow,
    AllocationRow,
    HistoryRow,
    KernelRow,
    LostRunRow,
    SessionRow,
)
from spawner.sessions.transitions import story
from store.database import Store


class InvariantBroken(AssertionError):
    """A state that must never be committed; the text has the story of each object concerned."""


async def validate(store: Store) -> None:
    """Raise ``InvariantBroken`` unless all invariants hold in one snapshot of the database."""
    found = await violations(store)
    if found:
        raise InvariantBroken("\n\n".join(found))


async def violations(store: Store) -> list[str]:
    """What does not hold in one snapshot of the database, with the story of each object concerned."""
    return await store.read(_violations)


async def _violations(db: AsyncSession) -> list[str]:
    found = await _ledger(db)
    for what, object_id in [*await _kernels(db), *await _sessions(db), *await _history(db)]:
        found.append(f"{what}\n{await story(db, object_id)}")
    return found


async def _ledger(db: AsyncSession) -> list[str]:
    """No device gives more than it has, and ``used`` is the sum of live allocation rows."""
    held = await ledger.held_amounts(db)
    found: list[str] = []
    for row in await db.scalars(select(AgentDeviceRow)):
        key = (row.agent_id, row.slot, row.device_id)
        total = held.pop(key, 0)
        if row.used != total:
            found.append(f"device {key}: used {row.used}, but allocations say {total}")
        if not 0 <= row.used <= row.capacity:
            found.append(f"device {key}: used {row.used} of {row.capacity}")
        if row.capacity != max(row.reported, row.used):
            found.append(f"device {key}: capacity {row.capacity}, reported {row.reported}")
    found += [
        f"device {key}: {amount} held of a device without account" for key, amount in held.items()
    ]
    return found


async def _kernels(db: AsyncSession) -> list[tuple[str, str]]:
    """A kernel holds exactly its slots, on its agent, in its present epoch, and only while it may.

    So does each of its runs that was given up with a node; its present run is a later one.
    """
    lost = {
        (row.kernel_id, row.epoch, row.agent_id) for row in await db.scalars(select(LostRunRow))
    }
    live: dict[str, list[AllocationRow]] = defaultdict(list)
    left: dict[tuple[uuid.UUID, int, str], dict[str, int]] = {key: defaultdict(int) for key in lost}
    for row in await db.scalars(select(AllocationRow).where(AllocationRow.freed_at.is_(None))):
        key = (row.kernel_id, row.epoch, row.agent_id)
        if key in lost:
            left[key][row.slot] += row.amount
        else:
            live[str(row.kernel_id)].append(row)
    found: list[tuple[str, str]] = []
    for kernel in await db.scalars(select(KernelRow)):
        name, rows = str(kernel.id), live.pop(str(kernel.id), [])
        slots = {slot: amount for slot, amount in kernel.slots.items() if amount}
        for key in [key for key in lost if key[0] == kernel.id]:
            if dict(left[key]) != slots:
                found.append((f"lost run {key} wants {slots}, holds {dict(left[key])}", name))
            if key[1] > kernel.epoch or (key[1] == kernel.epoch and kernel.status in HOLDS):
                found.append((f"kernel {name} is {kernel.status} in its lost run {key}", name))
        status = Status(kernel.status)
        if status not in HOLDS:
            if rows:
                found.append((f"kernel {name} is {status} and holds {len(rows)} allocations", name))
            continue
        if kernel.agent_id is None:
            found.append((f"kernel {name} is {status} on no agent", name))
        if any(r.epoch != kernel.epoch or r.agent_id != kernel.agent_id for r in rows):
            found.append((f"kernel {name} holds allocations of another run", name))
        held: dict[str, int] = defaultdict(int)
        for row in rows:
            held[row.slot] += row.amount
        if dict(held) != slots:
            found.append((f"kernel {name} wants {slots} and holds {dict(held)}", name))
    return found


async def _sessions(db: AsyncSession) -> list[tuple[str, str]]:
    """A session's status follows from its kernels'; a cancelled one never ran."""
    kernels: dict[str, list[Status]] = defaultdict(list)
    for kernel in await db.scalars(select(KernelRow)):
        kernels[str(kernel.session_id)].append(Status(kernel.status))
    found: list[tuple[str, str]] = []
    for session in await db.scalars(select(SessionRow)):
        name, status = str(session.id), Status(session.status)
        mine = kernels[name]
        at_rest = FINAL | {Status.TERMINATING}
        if len(mine) != session.cluster_size:
            found.append((f"session {name} has {len(mine)} kernels", name))
        if status in FINAL and not all(each in at_rest for each in mine):
            found.append((f"session {name} is {status}, its kernels {mine}", name))
        if status is Status.RUNNING_DEGRADED and session.type != "inference" and len(mine) == 1:
            found.append((f"session {name} is {session.type}, and {status}", name))
        if retries_of(session) >= attempt_of(session) and status is Status.RUNNING:
            found.append((f"session {name} runs after more retries than attempts", name))
        policy = policy_of(session)
        if retries_of(session) > (0 if policy is None else policy.max_retries):
            found.append((f"session {name} was tried again {retries_of(session)} times", name))
        if status is Status.RUNNING and not all(each is Status.RUNNING for each in mine):
            found.append((f"session {name} is RUNNING, its kernels {mine}", name))
        if status is Status.RUNNING_DEGRADED and Status.RUNNING not in mine:
            found.append((f"session {name} is degraded, its kernels {mine}", name))
        if status is Status.PENDING and not all(each is Status.PENDING for each in mine):
            found.append((f"session {name} is PENDING, its kernels {mine}", name))
        if status not in FINAL and all(each in FINAL for each in mine):
            found.append((f"session {name} is {status}, but its kernels ended: {mine}", name))
        if status is Status.PENDING and session.target != Target.RUNNING:
            found.append((f"session {name} waits although it should end", name))
        if (status in FINAL) != (session.terminated_at is not None):
            found.append((f"session {name} is {status}, ended at {session.terminated_at}", name))
    return found


def _allowed(kind: str, before: Status, after: Status) -> bool:
    revived = kind == "kernel" and before in FINAL and after is REVIVAL
    return revived or after in TRANSITIONS[before]


async def _history(db: AsyncSession) -> list[tuple[str, str]]:
    """Every object's story is one unbroken walk through the table that ends where the object is."""
    last: dict[str, str] = {}
    found: list[tuple[str, str]] = []
    walks = HistoryRow.kind.in_(("session", "kernel"))
    for row in await db.scalars(select(HistoryRow).where(walks).order_by(HistoryRow.id)):
        before = last.get(row.object_id, Status.PENDING.value if row.kind == "kernel" else None)
        if row.from_status != before:
            found.append((f"{row.kind} {row.object_id}: a transition is missing", row.object_id))
        elif before is not None and not _allowed(row.kind, Status(before), Status(row.to_status)):
            found.append(
                (f"{row.kind} {row.object_id}: {before} -> {row.to_status}", row.object_id)
            )
        last[row.object_id] = row.to_status
    for session in await db.scalars(select(SessionRow)):
        if last.get(str(session.id)) != session.status:
            found.append((f"session {session.id} is {session.status}", str(session.id)))
    for kernel in await db.scalars(select(KernelRow)):
        if last.get(str(kernel.id), Status.PENDING.value) != kernel.status:
            found.append((f"kernel {kernel.id} is {kernel.status}", str(kernel.id)))
    return found
