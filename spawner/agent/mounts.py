"""From a vfolder mount to a path on this host, checked by the kernel and never by string comparison."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence

from spawner.agent.engines.base import BoundMount, EngineError
from spawner.agent.protocol import Mount
from vfolder.confinement import PathEscapes, open_beneath


def resolve_mounts(mounts: Sequence[Mount], volumes: Mapping[str, str]) -> tuple[BoundMount, ...]:
    """Sources of ``mounts`` beneath the roots of ``volumes``. Raises ``EngineError`` with a sentence.

    The directories above a folder belong to the platform and users cannot write to them, so what was
    checked here cannot be swapped for a link before the engine mounts it. A path inside a folder can:
    it is resolved without following links, and the source handed on is the path the kernel found.
    """
    return tuple(_resolve(mount, volumes) for mount in mounts)


def _resolve(mount: Mount, volumes: Mapping[str, str]) -> BoundMount:
    root = volumes.get(mount.volume)
    if root is None:
        raise EngineError(f"volume {mount.volume!r} is not present on this node")
    try:
        root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise EngineError(f"volume {mount.volume!r} cannot be opened: {error.strerror}") from error
    try:
        descriptor = open_beneath(root_fd, mount.path)
        try:
            source = os.readlink(f"/proc/self/fd/{descriptor}")
        finally:
            os.close(descriptor)
    except PathEscapes as error:
        raise EngineError(f"the folder for {mount.target} cannot be mounted: {error}") from error
    except OSError as error:
        gone = "does not exist" if error.errno == errno.ENOENT else str(error.strerror)
        raise EngineError(f"the folder for {mount.target} cannot be mounted: it {gone}") from error
    finally:
        os.close(root_fd)
    return BoundMount(source, mount.target, mount.read_only)
