"""Apps of sessions: what the labels of an image say can be opened, and how it is started.

``ai.backend.service-ports`` is ``name:protocol:port[,...]`` with one port or several in brackets.
``ai.perijove.app.<name>`` is ``{"argv": [...], "protocol": "http", "port": N}``; where it is missing, well-known
names have a start of their own. A label that cannot be read binds nobody; ``label_warnings`` tells of it.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

APP_LABEL = "ai.perijove.app."
PORTS_LABEL = "ai.backend.service-ports"
ENDPOINTS_LABEL = "ai.backend.endpoint-ports"
ACCELERATORS_LABEL = "ai.backend.accelerators"
COMMAND_LABEL = "ai.perijove.command"
KERNELSPEC_LABEL = "ai.backend.kernelspec"
RUNTIME_LABEL = "ai.backend.runtime-path"
MINIMUM_LABEL = "ai.backend.resource.min."
PROTOCOLS = ("http", "https", "tcp", "preopen", "vnc", "rdp", "internal", "pty")
WEB = ("http", "https", "preopen")
"""Protocols of apps that browsers can open."""
JUPYTER_TOKEN = "JUPYTER_TOKEN"  # noqa: S105 - a name
"""In the environment of a session that no hub asked for: what its own server asks for."""
ROLES = ("COMPUTE", "INFERENCE", "SYSTEM", "SERVICE")
TERMINAL = "terminal"
BASE_PATH = "{base_path}"
"""In the start of an app, and in an image's own command: the path under which browsers find it, with slashes around."""
SSHD_PORT = 2200
_ITEM = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9_.-]{0,63}):([a-z]+):(\d+|\[\d+(?:,\d+)*\])\s*")
SSH_FOLDER = r"""
umask 077
dir=${JUPYTER_RUNTIME_DIR:-/tmp}; mkdir -p "$dir" 2>/dev/null; [ -w "$dir" ] || dir=/tmp
dir=$dir/perijove-sshd; mkdir -p "$dir"
"""
"""Finds the folder of a session's SSH server; ``id_container.pub`` in it opens the session."""
_SSHD = rf"""{SSH_FOLDER}
: > "$dir/authorized_keys"
cat /home/config/ssh/authorized_keys >> "$dir/authorized_keys" 2>/dev/null
server=$(command -v sshd || ls /usr/sbin/sshd 2>/dev/null)
[ -n "$server" ] || {{ echo "there is no SSH server in this image" >&2; exit 127; }}
[ -f "$dir/host_key" ] || ssh-keygen -q -t ed25519 -N '' -f "$dir/host_key" || exit 1
sftp=$(ls /usr/lib/openssh/sftp-server /usr/libexec/openssh/sftp-server 2>/dev/null | head -n 1)
umask 022
[ "$(id -u)" != 0 ] || mkdir -p /run/sshd
exec "$server" -D -e -f /dev/null -p "$2" -h "$dir/host_key" -o ListenAddress="$1" -o PidFile=none \
  -o UsePAM=no -o PasswordAuthentication=no -o KbdInteractiveAuthentication=no -o StrictModes=no \
  -o PermitRootLogin=prohibit-password \
  -o AuthorizedKeysFile="$dir/authorized_keys $dir/id_container.pub .ssh/authorized_keys" \
  -o Subsystem="sftp ${{sftp:-internal-sftp}}" -o AllowTcpForwarding=local -o X11Forwarding=no
"""
_JUPYTER = (
    "--no-browser",
    "--ip={bind_host}",
    "--port={bind_port}",
    "--ServerApp.root_dir={home}",
    f"--ServerApp.base_url={BASE_PATH}",
    "--IdentityProvider.token=",
    "--ServerApp.allow_remote_access=True",
)
KNOWN: dict[str, tuple[str, ...]] = {
    "jupyter": ("jupyter", "notebook", *_JUPYTER),
    "jupyterlab": ("jupyter", "lab", *_JUPYTER),
    "tensorboard": ("tensorboard", "--host={bind_host}", "--port={bind_port}", "--logdir={home}"),
    "vscode": (
        "code-server",
        "--bind-addr={bind_host}:{bind_port}",
        "--auth=none",
        "--disable-telemetry",
        "--disable-update-check",
        "{home}",
    ),
    "sshd": ("sh", "-c", _SSHD, "sh", "{bind_host}", "{bind_port}"),
}
"""How well-known apps are started where the image does not say."""


MODULES: dict[str, tuple[int, tuple[str, ...]]] = {
    "jupyter": (2, ("notebook",)),
    "jupyterlab": (2, ("jupyterlab",)),
    "tensorboard": (1, ("tensorboard.main",)),
}
"""How many words of a usual start name its program, and the module that it is."""


def labelled_services(text: str) -> tuple[list[tuple[str, str, int]], list[str]]:
    """Name, protocol and port of each entry of the label, and a sentence for each that is none."""
    found: list[tuple[str, str, int]] = []
    faults: list[str] = []
    taken: set[int] = set()
    for part in re.split(r",(?![^\[]*\])", text):
        if not part.strip():
            continue
        match = _ITEM.fullmatch(part)
        if match is None:
            faults.append(f"{part.strip()[:80]!r} is not name:protocol:port")
            continue
        name, protocol, ports = match.groups()
        if protocol not in PROTOCOLS:
            faults.append(f"{name}: {protocol!r} is none of {', '.join(PROTOCOLS)}")
            continue
        for number in map(int, ports.strip("[]").split(",")):
            if not 1 <= number <= 65535 or number in taken:
                faults.append(f"{name}: port {number} is taken twice or beyond 65535")
            elif protocol != "pty":
                taken.add(number)
                found.append((name, protocol, number))
    return found, faults


def labelled_ports(labels: Mapping[str, str], *, inference: bool = False) -> list[dict[str, Any]]:
    """Ports of ``ai.backend.service-ports``, the main one first: of an inference session an endpoint."""
    services, _ = labelled_services(labels.get(PORTS_LABEL, ""))
    if inference:
        endpoints = {each.strip() for each in labels.get(ENDPOINTS_LABEL, "").split(",")}
        services.sort(key=lambda service: service[0] not in endpoints)
    return [
        {"name": name, "container_port": number, "protocol": protocol}
        for name, protocol, number in services
    ]


def apps_of(labels: Mapping[str, str], preopened: Iterable[int], main: int) -> list[dict[str, Any]]:
    """All apps of a session as rows keep them; ``main`` is the port of its own command, which starts none."""
    apps = [_app(TERMINAL, "pty", 0)]
    services, _ = labelled_services(labels.get(PORTS_LABEL, ""))
    for name, protocol, port in services:
        own = _own_start(labels, name) or {}
        argv = () if port == main else own.get("argv") or _known(name, labels)
        if name != TERMINAL and protocol != "internal":
            apps.append(_app(name, protocol, port, () if protocol == "preopen" else argv))
    named = {app["name"] for app in apps}
    for label in labels:
        name = label.removeprefix(APP_LABEL)
        if label.startswith(APP_LABEL) and name not in named:
            start = _own_start(labels, name)
            if start is not None:
                apps.append(_app(name, start["protocol"], start["port"], start["argv"]))
    if "sshd" not in {app["name"] for app in apps}:
        apps.append(_app("sshd", "tcp", SSHD_PORT, KNOWN["sshd"]))
    return apps + [_app(str(port), "preopen", port) for port in preopened]


def own_command(labels: Mapping[str, str]) -> list[str]:
    """The image's own command if it can be told under which path browsers find it; empty if not."""
    try:
        words = json.loads(labels.get(COMMAND_LABEL, "[]"))
    except ValueError:
        return []  # the engine says so when it starts
    is_told = isinstance(words, list) and any(BASE_PATH in str(word) for word in words)
    return [str(word) for word in words] if is_told else []


def idle_command(labels: Mapping[str, str]) -> list[str]:
    """What an image made for Backend.AI does until somebody opens an app: its kernel runner is not used.

    Empty for images that say, or are made, for what they run.
    """
    needs_runner = KERNELSPEC_LABEL in labels and COMMAND_LABEL not in labels
    return ["sleep", "infinity"] if needs_runner else []


def base_path(path: str, session_id: uuid.UUID, name: str, port: int | None = None) -> str:
    """Where browsers find an app below ``path``, with slashes around; ``port``: if it was named."""
    return f"{path}{session_id}/{name if port is None else f'{name}:{port}'}/"


def placed(spec: Mapping[str, Any], path: str, session_id: uuid.UUID) -> dict[str, Any]:
    """A kernel's ``spec`` whose own command knows where browsers find it below ``path``."""
    ports = spec["ports"] or [{"name": ""}]
    base = base_path(path, session_id, ports[0]["name"])
    return {**spec, "command": [word.replace(BASE_PATH, base) for word in spec["command"]]}


def label_warnings(labels: Mapping[str, str]) -> list[str]:
    """What an image's labels say that cannot be understood: sentences for whoever made the image."""
    _, faults = labelled_services(labels.get(PORTS_LABEL, ""))
    warnings = [f"{PORTS_LABEL}: {fault}" for fault in faults]
    for label, text in labels.items():
        if (
            label.startswith(APP_LABEL)
            and _own_start(labels, label.removeprefix(APP_LABEL)) is None
        ):
            warnings.append(f'{label}: give {{"argv": [...], "protocol": "http", "port": N}}')
        if label.startswith(MINIMUM_LABEL) and not re.fullmatch(
            r"\d+(\.\d+)?[bkmgtp]?", text.lower()
        ):
            warnings.append(f"{label}: {text[:80]!r} is no amount")
    role = labels.get("ai.backend.role", "COMPUTE")
    if role not in ROLES:
        warnings.append(f"ai.backend.role: {role[:80]!r} is none of {', '.join(ROLES)}")
    return warnings


def _known(name: str, labels: Mapping[str, str]) -> tuple[str, ...]:
    """The usual start of an app; programs of Python by the interpreter that the image names."""
    usual, runtime = KNOWN.get(name, ()), labels.get(RUNTIME_LABEL, "")
    if name in MODULES and "python" in runtime:
        words, module = MODULES[name]
        return (runtime, "-m", *module, *usual[words:])
    return usual


def _own_start(labels: Mapping[str, str], name: str) -> dict[str, Any] | None:
    """What the image's own label says of an app, None where there is none that can be read."""
    try:
        start = json.loads(labels.get(f"{APP_LABEL}{name}", ""))
        argv = [str(word) for word in start["argv"]] if isinstance(start["argv"], list) else []
        port, protocol = int(start["port"]), str(start.get("protocol", "http"))
    except (ValueError, KeyError, TypeError):
        return None
    fits = argv and 1 <= port <= 65535 and protocol in PROTOCOLS
    if not fits or not _ITEM.fullmatch(f"{name}:{protocol}:{port}"):
        return None
    return {"argv": argv, "port": port, "protocol": protocol}


def _app(name: str, protocol: str, port: int, argv: Iterable[str] = ()) -> dict[str, Any]:
    return {"name": name, "protocol": protocol, "port": port, "argv": list(argv)}
