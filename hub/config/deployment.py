"""One deployment on one host: its state folder, its secrets, its addresses.

The state folder holds ``secrets.json`` (0600), ``deployment.json`` (addresses, no secrets),
``perijove.sqlite``, ``jupyterhub.sqlite``, ``volumes/``, ``agent/``, ``logs/`` and ``run/``.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import random
import secrets as tokens
import socket
import tempfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from traitlets import Integer, TraitError, Unicode, default, validate
from traitlets.config import Configurable

LOOPBACK = "127.0.0.1"
INNER_PORTS = ("proxy_api_port", "hub_port", "manager_port")
MANAGER_PORT = 8090
"""Taken for the manager if it is free: agents of other nodes are told it. Nobody types the others."""
FREE_PORTS = range(20000, 30000)
"""Below the kernel's own range of outgoing ports, so that a remembered port stays free."""


class DeploymentError(Exception):
    """The state folder or an address cannot be used; the sentence is for the operator."""


@dataclass(frozen=True, slots=True)
class Secrets:
    """What the processes prove themselves with; each is 64 hexadecimal digits."""

    hub_secret: str
    service_token: str
    agent_token: str
    proxy_token: str
    cookie_secret: str

    def __repr__(self) -> str:
        """Never the values: representations end up in logs."""
        return "Secrets(...)"

    @classmethod
    def generate(cls) -> Secrets:
        """New random secrets."""
        return cls(**{field.name: tokens.token_hex(32) for field in fields(cls)})

    def environ(self) -> dict[str, str]:
        """All secrets under the names of the environment variables that carry them."""
        return {
            "PERIJOVE_HUB_SECRET": self.hub_secret,
            "PERIJOVE_SERVICE_TOKEN": self.service_token,
            "PERIJOVE_AGENT_TOKEN": self.agent_token,
            "CONFIGPROXY_AUTH_TOKEN": self.proxy_token,
            "JPY_COOKIE_SECRET": self.cookie_secret,
        }


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the processes of the deployment listen."""

    ip: str
    """Public address of the proxy."""
    port: int
    host: str
    """Where hub and manager listen and sessions reach them: loopback, or the gateway of the Docker network."""
    hub_port: int
    manager_port: int
    proxy_api_port: int
    base_url: str

    @property
    def public_url(self) -> str:
        """What people type into the browser."""
        shown = "127.0.0.1" if self.ip in ("", "0.0.0.0", "::") else self.ip  # noqa: S104 - compared, not bound
        return f"http://{_bracketed(shown)}:{self.port}{self.base_url}"

    @property
    def hub_url(self) -> str:
        """Root of the hub without its prefix."""
        return f"http://{_bracketed(self.host)}:{self.hub_port}"

    @property
    def hub_api_url(self) -> str:
        """The hub's REST API, as manager and sessions call it."""
        return f"{self.hub_url}{self.base_url}hub/api"

    @property
    def manager_url(self) -> str:
        """Root of the manager, as hub, proxy, agents and sessions reach it."""
        return f"http://{_bracketed(self.host)}:{self.manager_port}"

    @property
    def proxy_api_url(self) -> str:
        """The proxy's routing API, on loopback only."""
        return f"http://{LOOPBACK}:{self.proxy_api_port}"

    @property
    def service_prefix(self) -> str:
        """Path of the session API behind the proxy."""
        return f"{self.base_url}services/perijove/"

    @property
    def apps_prefix(self) -> str:
        """Path of sessions' apps behind the proxy."""
        return f"{self.base_url}services/perijove-apps/"


class Deployment(Configurable):
    """Where a deployment keeps its state and which addresses it uses."""

    state_dir = Unicode(
        help="""Folder with everything the deployment must remember: secrets, databases, home
        folders, logs. Default: the environment variable PERIJOVE_STATE, or
        ~/.local/state/perijove.""",
    ).tag(config=True)
    ip = Unicode(
        LOOPBACK,
        help="""Address on which the proxy answers browsers. The default is reachable from this
        machine only; 0.0.0.0 means every IPv4 interface (put TLS in front, see
        docs/operations.md).""",
    ).tag(config=True)
    port = Integer(8000, min=1, max=65535, help="Port on which the proxy answers browsers.").tag(
        config=True
    )
    base_url = Unicode(
        "/",
        help="Path under which everything is served; begins and ends with a slash.",
    ).tag(config=True)
    db_url = Unicode(
        help="""SQLAlchemy URL of the manager's database: sqlite+aiosqlite:///FILE, or
        postgresql+asyncpg://USER@HOST/NAME (extra `postgres`). Default: the environment variable
        PERIJOVE_DB_URL (the place for a URL with a password), or perijove.sqlite in the state
        folder.""",
    ).tag(config=True)

    @default("state_dir")
    def _default_state_dir(self) -> str:
        named = os.environ.get("PERIJOVE_STATE")
        return named or str(Path.home() / ".local" / "state" / "perijove")

    @default("db_url")
    def _default_db_url(self) -> str:
        named = os.environ.get("PERIJOVE_DB_URL")
        return named or f"sqlite+aiosqlite:///{self.state / 'perijove.sqlite'}"

    @validate("base_url")
    def _valid_base_url(self, proposal: dict[str, Any]) -> str:
        value = str(proposal["value"])
        if not (value.startswith("/") and value.endswith("/")):
            raise TraitError(f"base_url is {value!r}: it must begin and end with a slash")
        return value

    @property
    def state(self) -> Path:
        """The state folder, absolute."""
        return Path(self.state_dir).expanduser().absolute()

    @property
    def logs(self) -> Path:
        """Folder of the log files."""
        return self.state / "logs"

    @property
    def run(self) -> Path:
        """Folder of the pid files."""
        return self.state / "run"

    @property
    def volume(self) -> Path:
        """Root of the volume ``local`` on this host."""
        return self.state / "volumes" / "local"

    @property
    def scratch(self) -> Path:
        """Scratch folder of the local agent."""
        return self.state / "agent"

    def prepare(self) -> None:
        """Create the folders; raises ``DeploymentError`` when the state folder cannot be used."""
        try:
            self.state.mkdir(parents=True, exist_ok=True, mode=0o700)
            for folder in (self.logs, self.run, self.volume, self.scratch):
                folder.mkdir(parents=True, exist_ok=True, mode=0o711)
            self.state.chmod(0o711)  # mounted home folders must be reachable by their users
            self.logs.chmod(0o700)
            self.run.chmod(0o700)
        except OSError as error:
            raise DeploymentError(
                f"the state folder {self.state} cannot be used: {error.strerror}"
            ) from error

    def secrets(self, *, create: bool = False) -> Secrets:
        """Read ``secrets.json``; with ``create`` write it first if it does not exist.

        Raises ``DeploymentError`` when it is missing, unreadable by us or damaged.
        """
        path = self.state / "secrets.json"
        if create and not path.exists():
            write_once(path, json.dumps(asdict(Secrets.generate()), indent=1) + "\n")
        try:
            content = json.loads(path.read_text())
            return Secrets(**{field.name: str(content[field.name]) for field in fields(Secrets)})
        except FileNotFoundError as error:
            raise DeploymentError(
                f"{path} does not exist: `perijove up` writes it at the first start"
            ) from error
        except OSError as error:
            raise DeploymentError(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise DeploymentError(f"{path} is damaged; restore it from a backup") from error

    def addresses(self) -> Addresses:
        """The remembered addresses; chosen now if nothing was remembered yet.

        Raises ``DeploymentError`` when ``deployment.json`` is damaged.
        """
        known = self._remembered()
        if not known:
            return self.choose_addresses(LOOPBACK)
        try:
            return Addresses(**known)
        except TypeError as error:
            raise DeploymentError(
                f"{self.state / 'deployment.json'} is damaged: {error}"
            ) from error

    def choose_addresses(self, host: str) -> Addresses:
        """Remember the configured public address and ``host``, where hub and manager listen.

        The inner ports are chosen when they are needed first and stay the same from then on, because
        living sessions know them. Raises ``DeploymentError``.
        """
        known = self._remembered()
        chosen: dict[str, Any] = {
            "ip": self.ip,
            "port": self.port,
            "base_url": self.base_url,
            "host": host,
        }
        taken = {self.port}
        for name in INNER_PORTS:
            port = known.get(name)
            if port is None or port == self.port:
                where = LOOPBACK if name == "proxy_api_port" else host
                preferred = MANAGER_PORT if name == "manager_port" else None
                port = free_port(where, preferred, taken)
            chosen[name] = port
            taken.add(port)
        if chosen != known:
            path = self.state / "deployment.json"
            write_atomically(path, json.dumps(chosen, indent=1) + "\n", 0o644)
        return Addresses(**chosen)

    def _remembered(self) -> dict[str, Any]:
        """Content of ``deployment.json``; empty if there is none."""
        path = self.state / "deployment.json"
        try:
            known = json.loads(path.read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise DeploymentError(f"{path} is damaged: {error}") from error
        if not isinstance(known, dict):
            raise DeploymentError(f"{path} is damaged: it holds no object")
        return known


def apps_token(service_token: str) -> str:
    """The API token of the apps' service, another one than that of the API's."""
    return hmac.new(service_token.encode(), b"perijove-apps", hashlib.sha256).hexdigest()


def _bracketed(host: str) -> str:
    """``host`` as it stands in a URL."""
    return f"[{host}]" if ":" in host else host


def can_bind(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def free_port(host: str, preferred: int | None, taken: set[int]) -> int:
    """``preferred`` if it is free on ``host``, else a free one of ``FREE_PORTS``."""
    if preferred is not None and preferred not in taken and can_bind(host, preferred):
        return preferred
    start = random.randrange(len(FREE_PORTS))  # noqa: S311 - spreads deployments, hides nothing
    for step in range(len(FREE_PORTS)):
        port = FREE_PORTS[(start + step) % len(FREE_PORTS)]
        if port not in taken and can_bind(host, port):
            return port
    raise DeploymentError(f"no port of {FREE_PORTS[0]}-{FREE_PORTS[-1]} is free on {host}")


def write_atomically(path: Path, text: str, mode: int) -> None:
    """Replace ``path`` by a file with ``text``: readers see the old one or the new one, whole."""
    temporary = _written_beside(path, text, mode)
    try:
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise


def write_once(path: Path, text: str) -> None:
    """Create ``path`` (0600) with ``text`` unless it exists; of several writers one wins."""
    temporary = _written_beside(path, text, 0o600)
    try:
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        os.unlink(temporary)


def _written_beside(path: Path, text: str, mode: int) -> str:
    """Write a temporary file in the folder of ``path``, durable, and return its name."""
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with os.fdopen(handle, "w") as file:
                os.fchmod(file.fileno(), mode)
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise DeploymentError(f"{path} cannot be written: {error.strerror}") from error
    return temporary
