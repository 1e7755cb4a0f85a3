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
        from hub.commands.records import run_on_database
        from hub.first_start import prepare_database

        deployment = self.deployment()
        deployment.prepare()
        upgrade = run_on_database(prepare_database(deployment))
        if not upgrade.changed:
            say(f"The database is at revision {upgrade.after} already")
            return
        say(f"The database went from revision {upgrade.before or 'none'} to {upgrade.after}")
        if upgrade.backup is not None:
            say(f"The former file is kept as {upgrade.backup}")


class DbStatus(Command):
    """Say whether the database has the newest schema."""

    name = "perijove db status"
    description = "Say whether the database has the newest schema; exit status 1 if not."

    def act(self, *arguments: str) -> None:
        """Compare revisions."""
        from hub.commands.records import run_on_database
        from store import schema

        url = self.deployment().db_url
        if run_on_database(asyncio.to_thread(schema.current_revision, url)) is None:
            raise CommandError("the database is empty or not there: run `perijove db upgrade`")
        run_on_database(asyncio.to_thread(schema.check, url))
        say(f"The database is at revision {schema.head_revision()}, the newest")


class DbGroup(Group):
    """The schema of the manager's database."""

    name = "perijove db"
    description = "The schema of the manager's database."
    subcommands: dict[str, Any] = {
        "upgrade": (DbUpgrade, "Bring the database to the newest schema."),
        "status": (DbStatus, "Say whether the database has the newest schema."),
    }
