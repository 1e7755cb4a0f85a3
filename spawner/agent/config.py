"""Settings of an agent."""

from __future__ import annotations

import os
import platform
import re
import socket
import ssl
from pathlib import Path
from typing import Any

from traitlets import Bool, Dict, Enum, Float, Integer, TraitError, Unicode, default, validate
from traitlets.config import Configurable

from spawner.agent.ports import parse_range

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class AgentConfig(Configurable):
    """What the daemon of a node must know."""

    manager_url = Unicode(
        help="""URL of the manager, e.g. http://127.0.0.1:8090. Default: the environment variable
        PERIJOVE_MANAGER_URL."""
    ).tag(config=True)
    token = Unicode(
        help="""Secret with which the agent dials in (`perijove token create --agent`). Default: the
        environment variable PERIJOVE_AGENT_TOKEN; better there or in a file than here."""
    ).tag(config=True)
    token_file = Unicode(help="File that holds the token, used when there is no other.").tag(
        config=True
    )
    cert_file = Unicode(
        help="""Certificate with which the agent shows who it is, where the manager demands one; the agent's
        id must be among its names."""
    ).tag(config=True)
    key_file = Unicode(help="Private key of `cert_file`. Default: in that same file.").tag(
        config=True
    )
    ca_file = Unicode(
        help="File with the certificate authorities that the manager's certificate is checked against."
    ).tag(config=True)
    agent_id = Unicode(help="Name of this agent in the cluster. Default: the host name.").tag(
        config=True
    )
    resource_group = Unicode("default", help="Resource group that this node belongs to.").tag(
        config=True
    )
    engine = Enum(
        ("auto", "docker", "process"),
        "auto",
        help="""What runs sessions: `docker` containers or local `process`es (for users who trust each
        other). `auto` takes docker if a Docker engine answers.""",
    ).tag(config=True)
    state_dir = Unicode(
        help="""Folder of the agent's own files. Default: agent/ in the folder that the environment
        variable PERIJOVE_STATE names, or in ~/.local/state/perijove."""
    ).tag(config=True)
    volumes = Dict(
        help="""Where the volumes of the cluster are on this node: name to path. Default: the volume
        `local` in volumes/local of the state folder."""
    ).tag(config=True)
    address = Unicode(
        "127.0.0.1",
        help="""Address of this node at which the proxy reaches JupyterHub's servers among its sessions, and the
        manager apps.""",
    ).tag(config=True)
    app_ports = Unicode(
        "30000-31000",
        help="""Ports of this node, FIRST-LAST, at which the manager reaches apps of sessions: one for
        each app that is open. Nobody else is let in, but the manager must be able to reach them.""",
    ).tag(config=True)
    app_port_rest = Float(
        60.0, min=0, help="Seconds that a port of `app_ports` rests before another app gets it."
    ).tag(config=True)
    max_containers = Integer(
        None, allow_none=True, min=1, help="Most kernels on this node at once; none: no such limit."
    ).tag(config=True)
    max_pids = Integer(4096, min=64, help="Most processes and threads of one kernel.").tag(
        config=True
    )
    uid = Integer(
        None,
        allow_none=True,
        min=1,
        help="User id of containers. Default: 1000 when the agent is root, else the agent's own.",
    ).tag(config=True)
    gid = Integer(None, allow_none=True, min=1, help="Group id of containers; as `uid`.").tag(
        config=True
    )
    read_only_root = Bool(
        True, help="Whether containers get a read-only root file system (with a writable /tmp)."
    ).tag(config=True)
    stop_grace = Float(
        5.0, min=0, help="Seconds between asking a session to end and ending it by force."
    ).tag(config=True)
    orphan_grace = Float(
        60.0,
        min=0,
        help="Seconds after which a kernel that the manager does not know is ended.",
    ).tag(config=True)
    relist_interval = Float(
        10.0, min=0.1, help="Seconds between looks at all kernels, in case an event was lost."
    ).tag(config=True)
    measure_interval = Float(
        10.0, min=0.1, help="Seconds between measures of the node and its sessions."
    ).tag(config=True)
    accelerators = Dict(
        help="""Settings of accelerator plug-ins by name, e.g. {"cpu": {"reserved": "1"},
        "mem": {"reserved": "2g"}, "mock": {"file": "devices.toml"}}."""
    ).tag(config=True)

    @default("manager_url")
    def _default_manager_url(self) -> str:
        return os.environ.get("PERIJOVE_MANAGER_URL", "http://127.0.0.1:8090")

    @default("token")
    def _default_token(self) -> str:
        return os.environ.get("PERIJOVE_AGENT_TOKEN", "")

    @default("agent_id")
    def _default_agent_id(self) -> str:
        return re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:64] or platform.machine()

    @default("state_dir")
    def _default_state_dir(self) -> str:
        return str(_state() / "agent")

    @default("volumes")
    def _default_volumes(self) -> dict[str, str]:
        return {"local": str(_state() / "volumes" / "local")}

    @validate("agent_id")
    def _valid_agent_id(self, proposal: dict[str, Any]) -> str:
        value = str(proposal["value"])
        if not _ID.fullmatch(value):
            raise TraitError(f"agent_id is {value!r}: 1 to 64 letters, digits, '.', '_' and '-'")
        return value

    @validate("app_ports")
    def _valid_app_ports(self, proposal: dict[str, Any]) -> str:
        try:
            parse_range(proposal["value"])
        except ValueError as error:
            raise TraitError(str(error)) from error
        return str(proposal["value"])

    @validate("manager_url")
    def _valid_manager_url(self, proposal: dict[str, Any]) -> str:
        value = str(proposal["value"]).rstrip("/")
        if not value.startswith(("http://", "https://")):
            raise TraitError(f"manager_url is {value!r}: give an http:// or https:// URL")
        return value

    def read_token(self) -> str:
        """The token, from the setting or its file; empty when there is none. Raises ``ValueError``."""
        if self.token:
            return str(self.token)
        if self.token_file:
            try:
                return Path(self.token_file).read_text(encoding="ascii").strip()
            except OSError as error:
                raise ValueError(f"token_file {self.token_file}: {error.strerror}") from error
        return ""

    def tls(self) -> ssl.SSLContext | None:
        """How the manager's certificate is checked, and ours shown; None for plain HTTP.

        Raises ``ValueError`` naming the file that cannot be used.
        """
        if not self.manager_url.startswith("https://"):
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca_file or None)
            if self.cert_file:
                context.load_cert_chain(self.cert_file, self.key_file or None)
        except OSError as error:  # ssl.SSLError is one
            named = ", ".join(
                each for each in (self.ca_file, self.cert_file, self.key_file) if each
            )
            raise ValueError(f"certificates {named}: {error.strerror or error}") from error
        return context


def _state() -> Path:
    named = os.environ.get("PERIJOVE_STATE")
    return Path(named) if named else Path.home() / ".local" / "state" / "perijove"
