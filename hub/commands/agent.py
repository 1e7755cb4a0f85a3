"""``perijove agent``: the daemon of one node."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from hub.commands.base import Command, CommandError
from spawner.agent.config import AgentConfig
from spawner.agent.metrics_endpoint import AgentMetricsEndpoint
from spawner.monitors.registry import Monitors


class AgentCommand(Command):
    """Run the agent of this node: it dials the manager and runs the sessions given to it.

    Its token is in the environment variable PERIJOVE_AGENT_TOKEN or in the file --token-file;
    `perijove token create --agent` on the manager's host makes one. It is needed once: the credential that the
    agent gets for it is kept in the state folder. Sessions go on when the agent ends."""

    name = "perijove agent"
    examples = """
    perijove agent --manager-url https://manager.example.org:8090 --token-file /etc/perijove/token
    """
    classes = [AgentConfig, AgentMetricsEndpoint, Monitors]
    aliases: dict[Any, Any] = {
        **{key: value for key, value in Command.aliases.items() if key != "db-url"},
        "state-dir": ("AgentConfig.state_dir", "Folder of the agent's own files."),
        "manager-url": "AgentConfig.manager_url",
        "manager": ("AgentConfig.manager_url", "The same as --manager-url."),
        "token-file": "AgentConfig.token_file",
        "ca-file": "AgentConfig.ca_file",
        "cert-file": "AgentConfig.cert_file",
        "key-file": "AgentConfig.key_file",
        "agent-id": "AgentConfig.agent_id",
        "resource-group": "AgentConfig.resource_group",
        "address": "AgentConfig.address",
        "engine": "AgentConfig.engine",
    }

    def _log_level_default(self) -> int:
        return logging.INFO

    def act(self, *arguments: str) -> None:
        """Run until SIGTERM or SIGINT."""
        from spawner.accelerators.registry import PluginError
        from spawner.agent.engines.base import EngineError
        from spawner.agent.main import run_agent

        self.log_everything()
        try:
            asyncio.run(run_agent(AgentConfig(parent=self)))
        except (EngineError, PluginError, ValueError) as error:
            raise CommandError(str(error)) from error
