"""``perijove db``: the manager's database: its schema, and its accounts."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from hub.commands.administration import with_administration
from hub.commands.base import Command, CommandError, Group, say
from hub.commands.records import run_on_database
from hub.first_start import prepare_database
from store import schema


class DbUpgrade(Command):
    """Bring the database to the newest schema and create what a new one lacks.

    Stop the managers first; a backup of a SQLite file is a copy of it."""

    def act(self, *arguments: str) -> None:
        """Upgrade; harmless when it is current."""
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
    """Say whether the database has the newest schema; exit status 1 if not."""

    def act(self, *arguments: str) -> None:
        """Compare revisions."""
        url = self.deployment().db_url
        if run_on_database(asyncio.to_thread(schema.current_revision, url)) is None:
            raise CommandError("the database is empty or not there: run `perijove db upgrade`")
        run_on_database(asyncio.to_thread(schema.check, url))
        say(f"The database is at revision {schema.head_revision()}, the newest")


class DbRepair(Command):
    """Recompute what devices give from the sessions that hold them.

    The manager does the same by itself all the time; nothing is changed when all is well."""

    def act(self, *arguments: str) -> None:
        """Say what was wrong."""
        done = with_administration(self.deployment(), lambda admin, who: admin.repair(who))
        for drift in done.drifts:
            where = f"{drift.slot} {drift.device_id} of {drift.agent_id}"
            say(f"{where}: {drift.was} were counted as used, {drift.should} are")
        if done.freed or done.restored:
            say(f"{done.freed} allocations were held by nobody, {done.restored} were lost")
        if not done:
            say("All is well; nothing was changed")


class DbGroup(Group):
    """The manager's database: its schema and its accounts."""

    name = "perijove db"
    commands: ClassVar = {"upgrade": DbUpgrade, "status": DbStatus, "repair": DbRepair}
