"""What is left of this agent's containers after the engine forgot them: control groups, mounts, shims, rules, links.

An engine knows nothing of a container that was removed, and nothing of its traces bears our labels; so ids are
written down while there is a container. What has another id is somebody else's, and is never named.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import threading
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from docker.utils import parse_host

from spawner.agent.engines import cgroups
from spawner.agent.engines.counters import text
from spawner.agent.engines.docker import firewall
from spawner.agent.engines.docker.networks import BRIDGE

GROUP = re.compile(r"(?:docker-)?([0-9a-f]{64})(?:\.scope)?")
"""A container's control group as Docker names it, with cgroupfs and with systemd."""
MANY = 500
"""Ids of containers that are gone after which somebody looks, that those without a trace are forgotten."""
SESSION_BRIDGE = re.compile(r"perijove[0-9a-f]{7}")
_TARGET = re.compile(r" --to-destination ([0-9.]+):")
_DESTINATION = re.compile(r" -d ([0-9.]+)/32 ")
_LONG = re.compile(r"[0-9a-f]{64}")


class Traces:
    """The ids of this agent's containers, each with that of its file system, in ``file``."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._known: dict[str, str] = {}
        with contextlib.suppress(OSError):
            for line in file.read_text().splitlines():
                native_id, _, layer = line.partition(" ")
                if _LONG.fullmatch(native_id):  # the last line may be half-written
                    self._known[native_id] = layer

    @property
    def known(self) -> frozenset[str]:
        """Ids of containers that were there, but for those of which nothing was left."""
        return frozenset(self._known)

    def note(self, facts: Mapping[str, Any]) -> None:
        """There is this container."""
        native_id = str(facts["Id"])
        if native_id in self._known:
            return
        merged = ((facts.get("GraphDriver") or {}).get("Data") or {}).get("MergedDir") or ""
        layer = _LONG.search(merged)
        with self._lock, contextlib.suppress(OSError):  # the audit of a full disk knows one less
            self._known[native_id] = layer[0] if layer else ""
            with self._file.open("a") as file:
                file.write(f"{native_id} {self._known[native_id]}\n")

    def look(self, gone: Iterable[str], root: Path = cgroups.ROOT) -> list[str]:
        """A sentence on every trace of the containers ``gone``; those without any are forgotten. Blocks."""
        owners = {native_id: native_id for native_id in gone if native_id in self._known}
        owners |= {self._known[each]: each for each in list(owners) if self._known[each]}
        found: dict[str, list[str]] = {}
        if owners:
            groups: dict[str, list[Path]] = {}
            for native_id, folder in control_groups(root):
                groups.setdefault(native_id, []).append(folder)
            for native_id, folders in groups.items():
                if native_id in owners:
                    found.setdefault(native_id, []).append(cgroups.left(folders))
            for point in _mount_points():
                for each in _LONG.findall(point):
                    if each in owners:
                        found.setdefault(owners[each], []).append(f"{point} is still mounted")
            for native_id, pid in _shims():
                if native_id in owners:
                    found.setdefault(native_id, []).append(f"its shim still runs as {pid}")
            self._forget(set(owners.values()) - found.keys())
        return [
            f"the container {native_id[:12]} is gone, {what}"
            for native_id, several in sorted(found.items())
            for what in several
        ]

    def _forget(self, native_ids: Collection[str]) -> None:
        with self._lock, contextlib.suppress(OSError):
            kept = {i: layer for i, layer in self._known.items() if i not in native_ids}
            new = self._file.with_suffix(".new")
            new.write_text("".join(f"{each} {layer}\n" for each, layer in kept.items()))
            new.rename(self._file)
            self._known = kept


def control_groups(root: Path) -> Iterable[tuple[str, Path]]:
    """Id and folder of every control group of a container, in all hierarchies beneath ``root``."""
    for folder, below, _ in os.walk(root):
        for name in list(below):
            named = GROUP.fullmatch(name)
            if named:
                below.remove(name)
                yield named[1], Path(folder) / name


def network_leftovers(
    networks: Iterable[Mapping[str, Any]], addresses: Collection[str]
) -> list[str]:
    """A sentence on each bridge and rule of ours for a network or container that is gone. Blocks.

    ``networks`` are all that the engine has, ``addresses`` those of all its containers.
    """
    key = "com.docker.network.bridge.name"
    bridges = {str((each.get("Options") or {}).get(key)) for each in networks}
    ours = [name for _, name in socket.if_nameindex() if SESSION_BRIDGE.fullmatch(name)]
    told = [f"the bridge {name} belongs to no network" for name in ours if name not in bridges]
    for rule in firewall.container_rules():
        named = [w for w in rule.split() if w == BRIDGE or SESSION_BRIDGE.fullmatch(w)]
        if not named:
            continue
        lead = _TARGET.search(rule) or _DESTINATION.search(rule)
        if not bridges.issuperset(named):
            told.append(f"a firewall rule is left for {named[0]}, which no network has: {rule}")
        elif lead and lead[1] not in addresses:
            told.append(f"a firewall rule leads to a container that is gone: {rule}")
    return told


def _mount_points() -> list[str]:
    """Everything that is mounted where the engine sees it, or where this process does."""
    for pid in (_engine_pid(), "self"):
        with contextlib.suppress(OSError):
            lines = text(f"/proc/{pid}/mountinfo").splitlines()
            return [line.split(" ")[4] for line in lines]
    return []


def _engine_pid() -> int:
    """Who listens on the engine's socket; 0 if that cannot be told."""
    host = str(parse_host(os.environ.get("DOCKER_HOST")))
    if not host.startswith(("unix://", "http+unix://")):
        return 0
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(2)
        probe.connect(host.partition("://")[2])
        size = struct.calcsize("3i")
        return int(
            struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))[0]
        )
    return 0


def _shims() -> Iterable[tuple[str, int]]:
    """Container and process id of every shim on this host."""
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].rpartition(b"/")[2].startswith(b"containerd-shim") and b"-id" in words[:-1]:
            yield words[words.index(b"-id") + 1].decode("ascii", "replace"), int(entry)
