"""``perijove session``: the story of a session, and why it waits. Works on the database, on the manager's host."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from hub.api.views import tries
from hub.commands.base import Command, CommandError, Group, say, table
from hub.commands.records import with_store
from spawner.sessions.queries import NEWEST_FIRST, as_uuid, told
from spawner.sessions.tables import HistoryRow, SessionRow


class SessionCommand(Command):
    """What the commands about sessions share."""

    arguments = ("SESSION",)

    def look(self, ref: str) -> tuple[SessionRow, list[HistoryRow]]:
        """The session of this id, or the newest of this name, with its history."""

        async def work(db: AsyncSession) -> tuple[SessionRow, list[HistoryRow]]:
            row = await _find(db, ref)
            return row, await told(db, row.id, show_agents=True)

        return with_store(self.deployment(), lambda store: store.read(work))


class SessionHistory(SessionCommand):
    """Show every status that a session had, and every attempt to schedule it that failed.

    SESSION is an id, or a name: then the newest session of that name."""

    def act(self, *arguments: str) -> None:
        """Transitions first, then attempts with their steps."""
        row, history = self.look(arguments[0])
        say(f"Session {row.name} ({row.id}): {row.status}")
        moves = [
            (f"{each.at:%Y-%m-%d %H:%M:%S}", each.kind, f"{each.to_status}", each.cause)
            for each in history
            if each.kind in ("session", "kernel")
        ]
        say(table(("AT", "WHAT", "STATUS", "CAUSE"), moves))
        for attempt in tries(history):
            times = "once" if attempt["count"] == 1 else f"{attempt['count']} times"
            first, last = (str(attempt[end])[:19].replace("T", " ") for end in _ENDS)
            say(f"Tried {times} from {first} to {last}: {attempt['message']}")
            for line in _steps(attempt["steps"]):
                say(f"  {line}")
        kept: Mapping[str, Any] = row.status_data.get("scheduler", {})
        if kept:
            since = str(kept["first_try"])[:19].replace("T", " ")
            say(f"Since {since}: {row.status_info}")


class SessionWhy(SessionCommand):
    """Show why a session waits, as the last pass of the scheduler found it.

    SESSION is an id, or a name: then the newest session of that name."""

    def act(self, *arguments: str) -> None:
        """The sentence that its owner reads, and the steps of the pass."""
        row, _ = self.look(arguments[0])
        say(f"Session {row.name} ({row.id}): {row.status}; {row.status_info or 'nothing is told'}")
        kept: Mapping[str, Any] = row.status_data.get("scheduler", {})
        for line in _steps(kept.get("steps", ())):
            say(f"  {line}")
        for each in kept.get("missing", ()):
            say(f"  missing on {each['agent_id']}, which fits best: {each['human']}")


_ENDS = ("first_at", "last_at")


async def _find(db: AsyncSession, ref: str) -> SessionRow:
    identity = as_uuid(ref)
    which = SessionRow.name == ref if identity is None else SessionRow.id == identity
    row = (await db.scalars(select(SessionRow).where(which).order_by(*NEWEST_FIRST))).first()
    if row is None:
        raise CommandError(f"there is no session {ref[:80]!r}")
    return row


def _steps(steps: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line for each step of a pass, as far as it came."""
    lines: list[str] = []
    for step in steps:
        told = [str(each["msg"]) for each in step.get("failed", ())]
        if "position" in step:
            told.append(f"place {step['position']} in line")
        if "agents" in step:
            told.append("1 node" if step["agents"] == 1 else f"{step['agents']} nodes")
            told += [f"{f['name']} -{f['removed']}" for f in step["filters"] if f["removed"]]
        if "made" in step:
            told.append("made" if step["made"] else "none")
        lines.append(f"{step['step']}: {', '.join(told) or 'passed'}")
    return lines


class SessionGroup(Group):
    """The story of a session, and why it waits. Works on the manager's host."""

    name = "perijove session"
    commands: ClassVar = {"history": SessionHistory, "why": SessionWhy}
