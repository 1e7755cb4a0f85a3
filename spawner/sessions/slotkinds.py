"""What agents say of their slots: kept in rows, so that every manager reads foreign slots the same way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from spawner.agent.protocol import ProtocolError, SlotMetadata
from spawner.scheduler.slots import SlotKind, SlotType, learn
from spawner.sessions.tables import SlotTypeRow

MAX_NAME = 64


async def record(db: AsyncSession, slots: Iterable[SlotMetadata]) -> None:
    """Keep what an agent says and read its slots so from now on. Raises ``ProtocolError``."""
    for slot in slots:
        if not 0 < len(slot.name) <= MAX_NAME or slot.quantum <= 0:
            raise ProtocolError(f"slot {slot.name[:80]!r} has a quantum of {slot.quantum}")
        if slot.type not in {each.value for each in SlotType}:
            raise ProtocolError(f"slot {slot.name} is of type {slot.type[:80]!r}")
        row = await db.get(SlotTypeRow, slot.name)
        facts = msgspec.to_builtins(slot)
        if row is None:
            db.add(SlotTypeRow(name=slot.name, facts=facts))
        elif row.facts != facts:
            row.facts = facts
        _learn(facts)
    await db.flush()


async def refresh(db: AsyncSession) -> Mapping[str, Mapping[str, Any]]:
    """All that any agent said, by slot; from now on amounts are read and written so here too."""
    rows = {row.name: row.facts for row in await db.scalars(select(SlotTypeRow))}
    for facts in rows.values():
        _learn(facts)
    return rows


def _learn(facts: Mapping[str, Any]) -> None:
    learn(
        SlotKind(
            facts["name"],
            SlotType(facts["type"]),
            facts["human_name"],
            facts["unit"],
            facts["quantum"],
        )
    )
