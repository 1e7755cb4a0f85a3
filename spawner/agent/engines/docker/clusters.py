"""How a container of a cluster begins: its SSH server, then its command.

The server is the image's own (OpenSSH), with the session's keys and settings beneath ``/home/config``. An
image without one has everything but SSH.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from spawner.agent.engines.base import BoundMount
from spawner.agent.engines.config_files import TARGET
from spawner.agent.protocol import File, KernelSpec

SSH_SETTINGS = "/etc/ssh/ssh_config.d/perijove.conf"
"""Where SSH clients of Debian, Fedora and their kin find the session's settings without being told."""
_SSH_CONFIG = "ssh/config"

_SSH_SERVER = r"""
settings=/home/config/ssh/sshd_config
server=
for path in /usr/sbin/sshd /usr/local/sbin/sshd; do [ -x "$path" ] && server=$path && break; done
if [ -n "$server" ] && [ -r "$settings" ]; then
    names=$(env | sed -n \
        's/^\(\(PERIJOVE_CLUSTER\|BACKENDAI_CLUSTER\|OMPI\|PRTE\|NCCL\|GLOO\|DASK\)_[A-Z0-9a-z_]*\)=.*/\1/p')
    line=
    for name in PATH LD_LIBRARY_PATH LANG WORLD_SIZE WORLD_RANK RANK LOCAL_RANK MASTER_ADDR MASTER_PORT $names; do
        eval "value=\${$name-}"
        case $value in '' | *\"* | *\\*) ;; *) line="$line \"$name=$value\"" ;; esac
    done
    "$server" -f "$settings" -E /tmp/sshd.log -o "SetEnv=${line# }"
fi
"""
_EVERYBODY = r"""
tries=0
for host in $(echo "$PERIJOVE_CLUSTER_HOSTS" | tr , ' '); do
    until if [ -n "$server" ]; then ssh -o BatchMode=yes -o ConnectTimeout=2 "$host" true 2>/dev/null
        else getent hosts "$host" >/dev/null; fi
    do
        tries=$((tries + 1))
        [ "$tries" -lt 300 ] || { echo "$host does not answer" >&2; exit 1; }
        sleep 0.5
    done
done
"""


def beginning(spec: KernelSpec, command: Sequence[str]) -> list[str]:
    """``command`` of a container in a cluster, after its SSH server.

    The main container of a batch session waits until all others answer: its command may use them at once.
    """
    waits = (
        spec.session_type == "batch" and spec.cluster is not None and spec.cluster.role == "main"
    )
    script = f'{_SSH_SERVER}{_EVERYBODY if waits else ""}exec "$@"'
    return ["/bin/sh", "-c", script, "cluster", *(command or ("sleep", "infinity"))]


def ssh_settings(written: Sequence[BoundMount], files: Iterable[File]) -> tuple[BoundMount, ...]:
    """The mount that makes ``ssh sub1`` find the keys, if the settings for it are among ``files``."""
    if not any(file.path == _SSH_CONFIG for file in files):
        return ()
    return tuple(
        BoundMount(f"{mount.source}/{_SSH_CONFIG}", SSH_SETTINGS, True)
        for mount in written
        if mount.target == TARGET
    )


def endpoint(spec: KernelSpec) -> dict[str, Any] | None:
    """The container's name in its session's network, in the words of the Docker API."""
    if spec.cluster is None or spec.cluster.network is None:
        return None
    return {"EndpointsConfig": {spec.cluster.network.name: {"Aliases": [spec.hostname]}}}
