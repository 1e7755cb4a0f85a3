"""``perijove manager``: the session API, the scheduler and the reconciler in one process."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Any

from hub.commands.base import Command, CommandError
from hub.config.deployment import Deployment
from hub.manager import Manager, ManagerConfig, ManagerError
from spawner.monitors.registry import MonitorError, Monitors


class ManagerCommand(Command):
    """Run the manager alone: session API, scheduler, reconciler.

    Its secrets come from the environment (PERIJOVE_HUB_SECRET, PERIJOVE_SERVICE_TOKEN,
    PERIJOVE_AGENT_TOKEN), those missing there from secrets.json in the state folder. Several
    managers may share one PostgreSQL database. Sessions go on when it ends."""

    name = "perijove manager"
    examples = """
    perijove manager --state-dir /srv/perijove --bind 0.0.0.0:8090
    """
    classes = [ManagerConfig, Deployment, Monitors]
    aliases: dict[Any, Any] = {
        **Command.aliases,
        "bind": "ManagerConfig.bind",
        "hub-api-url": "ManagerConfig.hub_api_url",
    }

    def _log_level_default(self) -> int:
        return logging.INFO

    def act(self, *arguments: str) -> None:
        """Serve until SIGTERM or SIGINT."""
        from store.engine import StoreError

        self.log_everything()
        deployment = self.deployment()
        deployment.prepare()
        kept = {}
        if not {"PERIJOVE_HUB_SECRET", "PERIJOVE_SERVICE_TOKEN"} <= os.environ.keys():
            kept = deployment.secrets().environ()
        try:
            config = ManagerConfig(parent=self)
            asyncio.run(Manager(config, deployment, {**kept, **os.environ}).run())
        except (ManagerError, MonitorError, StoreError) as error:
            raise CommandError(str(error)) from error
