"""Nodes that refuse what is placed on them: closed for a while, longer each time, until they take something again.

A node that refuses says in the same breath which devices it has. One that goes on refusing what fits those would be
asked again and again, by everybody who waits, if it stayed open.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

from spawner.sessions.tables import AgentRow
from spawner.sessions.transitions import Change

REFUSING = "refusing"
"""In ``AgentRow.features``, of the manager's own making: ``{"count", "until"}``, seconds since the epoch."""
PAUSE, LONGEST = 1.0, 60.0
"""Seconds for which a node is closed after its first refusal in a row, and at most."""


async def note(change: Change, agent_id: str) -> None:
    """The node refused a placement; those of the same round count once."""
    row = await _locked(change, agent_id)
    if row is not None and not closes(row.features, change.now):
        count = int(kept(row.features).get(REFUSING, {}).get("count", 0)) + 1
        pause = min(LONGEST, PAUSE * 2.0 ** min(count - 1, 60))
        told = {"count": count, "until": change.now.timestamp() + pause}
        row.features = {**(row.features or {}), REFUSING: told}


async def forget(change: Change, agent_id: str | None) -> None:
    """The node took a placement."""
    row = None if agent_id is None else await change.db.get(AgentRow, agent_id)
    if agent_id is not None and row is not None and kept(row.features):
        row = await _locked(change, agent_id)
        if row is not None:
            row.features = {k: v for k, v in (row.features or {}).items() if k != REFUSING}


def kept(features: Mapping[str, Any] | None) -> dict[str, Any]:
    """What news of the node itself must not overwrite."""
    found = (features or {}).get(REFUSING)
    return {} if found is None else {REFUSING: found}


def closes(features: Mapping[str, Any] | None, now: dt.datetime) -> bool:
    """Whether nothing is placed on the node now."""
    until = float(kept(features).get(REFUSING, {}).get("until", 0.0))
    return now.timestamp() < until


async def _locked(change: Change, agent_id: str) -> AgentRow | None:
    return await change.db.get(AgentRow, agent_id, with_for_update=True, populate_existing=True)
