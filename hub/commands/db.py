"""``perijove db``: the schema of the manager's database."""

from __future__ import annotations

import asyncio
from typing import Any

from hub.commands.base import Command, CommandError, Group, say


class DbUpgrade(Command):
    """Bring the database to the newest schema."""

    name = "perijove db upgrade"
    description = """Bring the database to the newest schema and create what a new one lacks.

    Stop the managers first; a backup of a SQLite file is a copy of it."""

    def act(self, *arguments: str) -> None:
        """Upgrade; harmless when it is current."""
        from hub.first_start import prepare_database
        from store import schema

        deployment = self.deployment()
        deployment.prepare()
        asyncio.run(prepare_database(deployment))
        say(f"The database is at revision {schema.head_revision()}")


class DbStatus(Command):
    """Say whether the database has the newest schema."""

    name = "perijove db status"
    description = "Say whether the database has the newest schema; exit status 1 if not."

    def act(self, *arguments: str) -> None:
        """Compare revisions."""
        from store import schema

        current, head = schema.current_revision(self.deployment().db_url), schema.head_revision()
        if current != head:
            raise CommandError(
                f"the database is at revision {current or 'none'}, this release needs {head}:"
                " run `perijove db upgrade`"
            )
        say(f"The database is at revision {head}, the newest")


class DbGroup(Group):
    """The schema of the manager's database."""

    name = "perijove db"
    description = "The schema of the manager's database."
    subcommands: dict[str, Any] = {
        "upgrade": (DbUpgrade, "Bring the database to the newest schema."),
        "status": (DbStatus, "Say whether the database has the newest schema."),
    }
