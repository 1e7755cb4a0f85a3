"""A volume of plain directories on this host (or a network file system mounted at one path on all nodes)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from fsspec import AbstractFileSystem
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

from vfolder.confinement import PathEscapes, make_directories, open_beneath
from vfolder.volumes.base import Capability, Usage, Volume, VolumeError


class LocalVolume(Volume):
    """Folders as directories under ``root``.

    Directories above a folder belong to the manager and let others only pass through, so no user can
    swap a folder for a link. A folder itself belongs to ``owner`` (uid, gid): the identity that
    sessions run under. Without the right to change owners (not root) it stays the manager's own.
    """

    capabilities = frozenset({Capability.MOUNT, Capability.USAGE})

    def __init__(self, name: str, root: str | Path, owner: tuple[int, int] | None = None) -> None:
        self.name = name
        self.root = Path(root)
        self.owner = owner
        self.root.mkdir(parents=True, exist_ok=True, mode=0o711)

    def create_folder(self, path: str) -> None:
        """Make the folder, 0700, owned by ``owner``."""
        try:
            with _Root(self.root) as root_fd:
                folder_fd = make_directories(root_fd, path)
                try:
                    os.fchmod(folder_fd, 0o700)
                    if self.owner is not None and os.geteuid() == 0:
                        os.fchown(folder_fd, *self.owner)
                finally:
                    os.close(folder_fd)
        except (OSError, PathEscapes) as error:
            raise VolumeError(f"volume {self.name}: cannot create the folder: {error}") from error

    def delete_folder(self, path: str) -> None:
        """Remove the folder; links in it are removed, never followed."""
        parent, _, name = path.rpartition("/")
        try:
            with _Root(self.root) as root_fd:
                parent_fd = open_beneath(root_fd, parent)
                try:
                    shutil.rmtree(name, dir_fd=parent_fd)
                finally:
                    os.close(parent_fd)
        except FileNotFoundError:
            return
        except (OSError, PathEscapes) as error:
            raise VolumeError(f"volume {self.name}: cannot delete the folder: {error}") from error

    def usage(self, path: str) -> Usage:
        """Allocated bytes and number of files; hard links count once, other file systems not at all."""
        try:
            with _Root(self.root) as root_fd:
                folder_fd = open_beneath(root_fd, path)
                try:
                    return _measure(folder_fd)
                finally:
                    os.close(folder_fd)
        except (OSError, PathEscapes) as error:
            raise VolumeError(f"volume {self.name}: cannot measure the folder: {error}") from error

    def file_system(self) -> AbstractFileSystem:
        """fsspec's view. It follows links: a convenience for the manager, not a boundary for users."""
        return DirFileSystem(path=str(self.root), fs=LocalFileSystem())


class _Root:
    """The volume's root as a descriptor for the length of a ``with``."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._descriptor = -1

    def __enter__(self) -> int:
        self._descriptor = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return self._descriptor

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


def _measure(folder_fd: int) -> Usage:
    used, files = 0, 0
    device = os.fstat(folder_fd).st_dev
    counted: set[int] = set()
    for _, directories, names, directory_fd in os.fwalk(".", dir_fd=folder_fd):
        for name in [*directories, *names]:
            try:
                facts = os.lstat(name, dir_fd=directory_fd)
            except FileNotFoundError:
                continue  # removed while we looked
            if facts.st_dev != device or facts.st_ino in counted:
                continue
            if facts.st_nlink > 1:
                counted.add(facts.st_ino)
            used += facts.st_blocks * 512
            files += name in names
    return Usage(used, files)
