"""Files of the platform for a kernel: one folder for each run; containers have it mounted, read-only."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from spawner.agent.engines.base import BoundMount, EngineError, Identity
from spawner.agent.protocol import File

TARGET = "/home/config"


class ConfigFiles:
    """Folders named by kernel and epoch; only the kernels' user can read what is in them."""

    def __init__(self, root: Path, uid: int, gid: int) -> None:
        self._root, self._uid, self._gid = root, uid, gid

    def write(self, identity: Identity, files: Iterable[File]) -> tuple[BoundMount, ...]:
        """Write the files of a run; the mount of their folder, or nothing. Raises ``EngineError``."""
        folder = self._folder(identity)
        wanted = tuple(files)
        if not wanted:
            return ()
        owner = (self._uid, self._gid) if os.geteuid() == 0 else None
        write_files(folder, wanted, owner)
        return (BoundMount(str(folder), TARGET, True),)

    def remove(self, identity: Identity) -> None:
        """Forget the files of a run."""
        shutil.rmtree(self._folder(identity), ignore_errors=True)

    def sweep(self, present: Iterable[Identity]) -> None:
        """Remove what an agent that was killed left behind; ``present`` are runs that have a container."""
        for folder in self.abandoned(present):
            shutil.rmtree(folder, ignore_errors=True)

    def abandoned(self, present: Iterable[Identity]) -> list[Path]:
        """Folders of runs that are not ``present``."""
        keep = {self._folder(identity).name for identity in present}
        if not self._root.is_dir():
            return []
        return [folder for folder in self._root.iterdir() if folder.name not in keep]

    def _folder(self, identity: Identity) -> Path:
        return self._root / f"{identity.kernel_id}-{identity.epoch}"


def write_files(folder: Path, files: Iterable[File], owner: tuple[int, int] | None) -> None:
    """Write ``files`` beneath ``folder``, for ``owner`` alone. Raises ``EngineError``."""
    _make(folder, owner)
    for file in files:
        path = PurePosixPath(file.path)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise EngineError(f"file {file.path!r}: a path beneath {TARGET} is allowed")
        for parent in reversed(path.parents[:-1]):
            _make(folder / parent, owner)
        _put(folder / path, file, owner)


def _make(folder: Path, owner: tuple[int, int] | None) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if owner is not None:
        os.chown(folder, *owner)


def _put(path: Path, file: File, owner: tuple[int, int] | None) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, file.mode)
    os.fchmod(descriptor, file.mode)  # whatever the agent's umask is
    with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape") as out:
        out.write(file.content)
    if owner is not None:
        os.chown(path, *owner)
