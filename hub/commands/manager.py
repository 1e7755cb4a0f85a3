"""``perijove manager``: the manager alone."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from hub.commands.base import Command, CommandError


class ManagerCommand(Command):
    """Run the manager alone."""

    name = "perijove manager"
    description = """Run the manager alone: session API, scheduler and reconciler.

    Its secrets are in the environment: PERIJOVE_HUB_SECRET, PERIJOVE_SERVICE_TOKEN and, for the
    deployment's own agent, PERIJOVE_AGENT_TOKEN. Sessions go on when it ends."""
    examples = """
    perijove manager --ManagerConfig.bind=127.0.0.1:8090 --ManagerConfig.bind=10.0.0.1:8090
    """
    aliases: dict[Any, Any] = {**Command.aliases, "bind": "ManagerConfig.bind"}

    def _log_level_default(self) -> int:
        return logging.INFO

    def _classes_default(self) -> list[Any]:
        from hub.manager import ManagerConfig

        return [ManagerConfig]

    def act(self, *arguments: str) -> None:
        """Serve until SIGTERM or SIGINT."""
        from hub.manager import Manager, ManagerConfig, ManagerError
        from store.database import StoreError
        from store.schema import SchemaMismatch

        self.log_everything()
        try:
            asyncio.run(Manager(ManagerConfig(parent=self), self.deployment()).run())
        except (ManagerError, SchemaMismatch, StoreError) as error:
            raise CommandError(str(error)) from error
