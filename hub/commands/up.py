"""``perijove up``: proxy, hub, manager and one agent on this machine, kept running."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from traitlets import Bool, Enum

from hub.commands.base import Command, CommandError


class Up(Command):
    """Run proxy, hub, manager and one agent on this machine, and keep them running.

    Ctrl-C ends all sessions and everything else. SIGTERM ends the four processes and leaves the
    sessions running; the next `perijove up` takes them over. What still runs after a crash is
    taken over too. Logs are in the folder logs/ of the state folder.
    """

    name = "perijove up"
    examples = """
    perijove up                                       http://127.0.0.1:8000, Docker if it answers
    perijove up --port 9000 --state-dir /srv/perijove
    perijove up --engine process                      sessions as local processes (trusted users)
    """
    engine = Enum(
        ("auto", "docker", "process"),
        "auto",
        help="""Engine of the local agent. `auto`: docker if a Docker engine answers, else process.
        The process engine runs sessions as processes of this machine, for users who trust each
        other.""",
    ).tag(config=True)
    verbose = Bool(False, help="Show every line of the logs, not only warnings and errors.").tag(
        config=True
    )
    aliases: dict[Any, Any] = {
        **Command.aliases,
        "ip": "Deployment.ip",
        "port": "Deployment.port",
        "base-url": "Deployment.base_url",
    }

    def _log_level_default(self) -> int:
        return logging.INFO

    def act(self, *arguments: str) -> None:
        """Run until a signal ends it."""
        from hub.supervision.ensemble import Ensemble
        from hub.supervision.supervisor import SupervisorError

        ensemble = Ensemble(
            deployment=self.deployment(),
            config_path=self.config_path(),
            engine=self.engine,
            verbose=self.verbose,
            log_level=self.level,
        )
        try:
            asyncio.run(ensemble.run())
        except SupervisorError as error:
            raise CommandError(str(error)) from error
