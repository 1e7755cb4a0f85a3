"""How each process of a deployment is run: command line, environment, secrets."""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from hub.config.deployment import LOOPBACK, Addresses, Deployment, Secrets
from hub.supervision.daemons import DaemonSpec, find_program
from hub.supervision.supervisor import SupervisorError

HUB_CONFIG = Path(__file__).parent.parent / "config" / "jupyterhub_config.py"
PROXY = "configurable-http-proxy"
PROXY_PLACES = (
    Path(__file__).parent.parent / "config" / "proxy" / "node_modules" / ".bin",
    Path(sys.prefix) / "node_modules" / ".bin",
    Path(sys.prefix) / "bin",
)


class Recipes:
    """How each process of a deployment is run."""

    def __init__(
        self,
        deployment: Deployment,
        addresses: Addresses,
        secrets: Secrets,
        config_path: Path | None,
        log_level: int,
    ) -> None:
        self.deployment = deployment
        self.addresses = addresses
        self.secrets = secrets.environ()
        self.config_path = config_path
        self.log_level = log_level

    def proxy(self) -> DaemonSpec:
        """configurable-http-proxy; it asks the hub where it knows no route."""
        places = [*PROXY_PLACES, *map(Path, os.get_exec_path())]
        program = find_program(PROXY, places)
        if program is None:
            raise SupervisorError(
                f"{PROXY} is not installed: run scripts/up in a checkout, or"
                f" `npm install -g {PROXY}`"
            )
        a = self.addresses
        argv = [str(program), "--ip", a.ip, "--port", str(a.port)]
        argv += ["--api-ip", LOOPBACK, "--api-port", str(a.proxy_api_port)]
        argv += ["--default-target", a.hub_url]
        argv += ["--error-target", f"{a.hub_url}{a.base_url}hub/error", "--log-level", "info"]
        return self._spec("proxy", argv, ("CONFIGPROXY_AUTH_TOKEN",))

    def hub(self) -> DaemonSpec:
        """JupyterHub with our configuration."""
        argv = [sys.executable, "-P", "-m", "jupyterhub", "-f", str(HUB_CONFIG)]
        names = (
            "PERIJOVE_HUB_SECRET",
            "PERIJOVE_SERVICE_TOKEN",
            "CONFIGPROXY_AUTH_TOKEN",
            "JPY_COOKIE_SECRET",
        )
        return self._spec("hub", argv, names)

    def manager(self) -> DaemonSpec:
        """The manager, as the hub's external service."""
        names = ("PERIJOVE_HUB_SECRET", "PERIJOVE_SERVICE_TOKEN", "PERIJOVE_AGENT_TOKEN")
        spec = self._spec("manager", self._ours("manager"), names)
        secrets = {**spec.secrets, "PERIJOVE_DB_URL": self.deployment.db_url}
        return DaemonSpec(
            spec.name, spec.argv, spec.environ, secrets, spec.log, spec.record, spec.directory
        )

    def agent(self, engine: str) -> DaemonSpec:
        """The agent of this host."""
        argv = self._ours("agent", "--engine", engine)
        return self._spec("agent", argv, ("PERIJOVE_AGENT_TOKEN",))

    def _ours(self, *words: str) -> list[str]:
        argv = [sys.executable, "-P", "-m", "hub.app", *words]
        return [*argv, "--log-level", logging.getLevelName(self.log_level)]

    def _spec(self, name: str, argv: list[str], secrets: tuple[str, ...]) -> DaemonSpec:
        state = self.deployment.state
        path = os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()])
        return DaemonSpec(
            name=name,
            argv=tuple(argv),
            environ={**self._environ(), "PATH": path},
            secrets={each: self.secrets[each] for each in secrets},
            log=self.deployment.logs / f"{name}.log",
            record=self.deployment.run / f"{name}.json",
            directory=state,
        )

    def _environ(self) -> Mapping[str, str]:
        environ = {
            "PERIJOVE_STATE": str(self.deployment.state),
            "PERIJOVE_MANAGER_URL": self.addresses.manager_url,
            "PERIJOVE_RELEASE": importlib.metadata.version("perijove"),
            "PYTHONUNBUFFERED": "1",
        }
        if self.config_path is not None:
            environ["PERIJOVE_CONFIG"] = str(self.config_path)
            content = self.config_path.read_bytes()
            environ["PERIJOVE_CONFIG_HASH"] = hashlib.sha256(content).hexdigest()[:16]
        return environ
