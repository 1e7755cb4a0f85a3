"""What those who wait are told, and the record of how often they were tried.

An explanation is kept in the session's ``status_data`` under ``scheduler``. Passes that end alike for a
session are one attempt: it knows when it began, and the count of passes of its resource group then, so
that the count of tries is a subtraction and a pass that changes nothing writes nothing. An attempt that
ends differently goes to the history.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import Table, bindparam, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from spawner.scheduler.filters import ROOM, SAYINGS
from spawner.scheduler.model import Explanation, Reason
from spawner.scheduler.slots import human_amount
from spawner.sessions.snapshot import Reading
from spawner.sessions.states import Status
from spawner.sessions.tables import HistoryRow, PassRow, ResourceGroupRow, SessionRow
from spawner.sessions.transitions import Change

TOLD_PLACES = 20
"""Places in line whose every move is told to the owner; others learn theirs every ``RETELL`` seconds."""
RETELL = 30.0
BATCH = 500
"""Sessions told in one write: other writers come in between."""
UNSTEADY = ("starts_at", "waits_for")
"""Parts of an explanation whose change alone is not worth a write."""
CHECKS = ("not-before", "dependency", "concurrency", "containers", "quota")
"""What is checked before any node is looked at; a session held by one of them does not age."""
ROOMS = frozenset(each.name for each in ROOM)
OWN = frozenset({*CHECKS, "resource-group", "policy"})
ATTEMPT = "attempt"
"""Kind of the history rows that are attempts."""
KEPT = (
    "first_try",
    "first_pass",
    "last_try",
    "retries",
    "steps",
    "passed_predicates",
    "failed_predicates",
)
"""Parts of a kept explanation that say how often and how, not why."""


@dataclass(frozen=True, slots=True)
class Telling:
    """An explanation to be written. ``quiet`` ones are only kept: those who follow learn nothing."""

    explanation: Explanation
    group: str
    quiet: bool = False


def describe(explanation: Explanation) -> dict[str, Any]:
    """The structured explanation as it is kept, in Backend.AI's words where it has them."""
    answer = dataclasses.asdict(explanation)
    del answer["session_id"]
    answer["msg"] = explanation.message
    failed = [{"name": each.name, "msg": each.message} for each in explanation.reasons]
    answer["failed_predicates"] = failed
    answer["passed_predicates"] = [{"name": name} for name in _passed(explanation)]
    answer["steps"] = steps(explanation)
    for each in answer["missing"]:
        each["human"] = human_amount(each["slot"], each["requested"] - each["available"])
    if explanation.largest is not None:
        answer["largest_human"] = {
            slot: human_amount(slot, amount) for slot, amount in explanation.largest.items()
        }
    return {name: plain(value) for name, value in answer.items()}


def steps(explanation: Explanation) -> list[dict[str, Any]]:
    """The steps of a pass for one session, as far as it came, each with what it passed and what not."""
    failed = {each.name: each for each in explanation.reasons}
    told: list[dict[str, Any]] = [{"step": "order", "position": explanation.position}]
    barred = [each for each in explanation.reasons if each.name in OWN]
    told.append(
        {
            "step": "checks",
            "passed": [name for name in CHECKS if name not in failed],
            "failed": [{"name": each.name, "msg": each.message} for each in barred],
        }
    )
    if barred:
        return told
    wrong = [each for each in explanation.reasons if each.name not in SAYINGS]
    if wrong:
        told.append(
            {
                "step": "request",
                "failed": [{"name": each.name, "msg": each.message} for each in wrong],
            }
        )
        return told
    left, filters = explanation.agents_total, []
    for name in SAYINGS:
        removed = failed[name].removed if name in failed else 0
        left -= removed
        filters.append({"name": name, "removed": removed, "left": left})
    told.append({"step": "filters", "agents": explanation.agents_total, "filters": filters})
    if not explanation.unsatisfiable:
        held = explanation.starts_at is not None or bool(explanation.waits_for)
        told.append({"step": "reservation", "made": held, "starts_at": explanation.starts_at})
    return told


def is_held(explanation: Explanation) -> bool:
    """Whether anything but a lack of room keeps it: its own limits, or that it can never start."""
    return explanation.unsatisfiable or any(each.name in OWN for each in explanation.reasons)


def plain(value: Any) -> Any:
    """JSON values of nested mappings and sequences."""
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(each) for each in value]
    return value


def to_tell(waiting: Iterable[Explanation], reading: Reading) -> list[Telling]:
    """Explanations that say something else than before."""
    found: list[Telling] = []
    groups = {each.session_id: each.resource_group for each in reading.snapshot.pending}
    for each in waiting:
        told = reading.waiting.get(each.session_id)
        kept = {} if told is None else told.status_data.get("scheduler", {})
        last = kept.get("last_try")
        moved = told is not None and (told.eligible_since is None) != is_held(each)
        same = told is not None and told.status_info == each.message and not moved
        if same and _steady(kept) == _steady(describe(each)):
            continue
        group = groups.get(each.session_id, "")
        if last is None or each.position <= TOLD_PLACES or each.unsatisfiable:
            found.append(Telling(each, group))
        elif moved or reading.snapshot.now - dt.datetime.fromisoformat(last).timestamp() > RETELL:
            found.append(Telling(each, group, quiet=True))
    return found


async def tell(change: Change, tellings: Sequence[Telling], passes: Mapping[str, int]) -> None:
    """Write explanations, a few statements whatever their number; only of sessions that still wait."""
    for start in range(0, len(tellings), BATCH):
        await _tell(change, tellings[start : start + BATCH], passes)


async def _tell(change: Change, tellings: Sequence[Telling], passes: Mapping[str, int]) -> None:
    by_id = {uuid.UUID(each.explanation.session_id): each for each in tellings}
    query = (
        select(SessionRow)
        .where(SessionRow.id.in_(by_id), SessionRow.status == Status.PENDING.value)
        .order_by(SessionRow.id)
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    written: list[dict[str, Any]] = []
    over: list[dict[str, Any]] = []
    for row in list(await change.db.scalars(query)):
        telling = by_id[row.id]
        explanation = telling.explanation
        kept, ended = _attempt(row, explanation, passes.get(telling.group, 1), change.now)
        if ended is not None:
            over.append(ended_attempt(row, ended, change))
        since = None if is_held(explanation) else row.eligible_since or change.now
        written.append(
            {
                "session": row.id,
                "told": explanation.message,
                "why": {**row.status_data, "scheduler": kept},
                "since": since,
            }
        )
        if not telling.quiet and row.status_info != explanation.message:
            over.append(change.told(row, explanation.message))
        change.db.expunge(row)
    if not written:
        return
    table = cast("Table", SessionRow.__table__)
    statement = (
        update(table)
        .where(table.c.id == bindparam("session"))
        .values(
            status_info=bindparam("told"),
            status_data=bindparam("why"),
            eligible_since=bindparam("since"),
        )
    )
    connection = await change.db.connection()
    await connection.execute(statement, written)
    if over:
        await change.db.execute(insert(HistoryRow), over)


def ended_attempt(row: SessionRow, kept: Mapping[str, Any], change: Change) -> dict[str, Any]:
    """The history row of an attempt that is over: how often, from when to when, and how far it came."""
    return {
        "kind": ATTEMPT,
        "object_id": str(row.id),
        "session_id": row.id,
        "at": change.now,
        "from_status": Status.PENDING.value,
        "to_status": Status.PENDING.value,
        "cause": str(kept.get("message", "")),
        "request_id": change.request_id[:64],
        "data": {
            "attempts": kept.get("retries", 1),
            "first_at": kept.get("first_try"),
            "last_at": kept.get("last_try"),
            "steps": kept.get("steps", []),
        },
    }


async def refused(change: Change, session_id: uuid.UUID, reason: Reason) -> None:
    """Keep that a session was to start, and why it could not: something changed while the plan was made."""
    row = await change.db.get(SessionRow, session_id, populate_existing=True)
    if row is None:
        return
    stamp = change.now.isoformat()
    failed = [{"name": reason.name, "msg": reason.message}]
    kept = {
        "message": f"not started: {reason.message}",
        "first_try": stamp,
        "last_try": stamp,
        "steps": [{"step": "commit", "failed": failed}],
    }
    change.db.add(HistoryRow(**ended_attempt(row, kept, change)))


def tries(kept: Mapping[str, Any], passes: int) -> int:
    """How many passes the attempt ``kept`` stands for, once its group had ``passes``."""
    return max(1, passes - int(kept.get("first_pass", passes)) + 1)


async def read_passes(db: AsyncSession) -> dict[str, tuple[int, dt.datetime]]:
    """Passes of each resource group so far, and when the last one was."""
    rows = await db.execute(select(PassRow.resource_group, PassRow.passes, PassRow.at))
    return {group: (int(count), at) for group, count, at in rows}


async def count_passes(db: AsyncSession, passes: Mapping[str, int], now: dt.datetime) -> None:
    """Keep the counts of resource groups that are still there."""
    if not passes:
        return
    there = await db.scalars(select(ResourceGroupRow.name).where(ResourceGroupRow.name.in_(passes)))
    groups = set(there)
    rows = await db.scalars(select(PassRow).where(PassRow.resource_group.in_(passes)))
    known = {row.resource_group: row for row in rows}
    for group, count in sorted(passes.items()):
        if group not in groups:
            continue
        row = known.get(group)
        if row is None:
            db.add(PassRow(resource_group=group, passes=count, at=now))
        else:
            row.passes, row.at = max(row.passes, count), now
    await db.flush()


def _attempt(
    row: SessionRow, explanation: Explanation, passed: int, now: dt.datetime
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What is kept from now on, and the attempt that is over by that, if one is."""
    before: dict[str, Any] = row.status_data.get("scheduler", {})
    described = describe(explanation)
    stamp = now.isoformat()
    same = bool(before) and _outcome(before) == _outcome(described)
    described["first_try"] = before.get("first_try", stamp) if same else stamp
    described["first_pass"] = before.get("first_pass", passed) if same else passed
    described["last_try"] = stamp
    described["retries"] = tries(described, passed)
    if same or not before:
        return described, None
    return described, {**before, "retries": max(1, tries(before, passed) - 1)}


def _outcome(described: Mapping[str, Any]) -> tuple[object, ...]:
    """What makes two passes the same attempt: what failed, not by how much or in which place.

    Which of the filters for room took the last node out changes with every start: they count as one.
    """
    names = {str(each["name"]) for each in described.get("reasons", ())}
    return (
        tuple(sorted({"room" if name in ROOMS else name for name in names})),
        bool(described.get("unsatisfiable")),
    )


def _passed(explanation: Explanation) -> list[str]:
    failed = {each.name for each in explanation.reasons}
    looked: tuple[str, ...] = CHECKS if failed & OWN else (*CHECKS, *SAYINGS)
    return [name for name in looked if name not in failed]


def _steady(described: Mapping[str, Any]) -> dict[str, Any]:
    """An explanation without what is a little different in every pass."""
    return {k: v for k, v in described.items() if k not in UNSTEADY and k not in KEPT}
