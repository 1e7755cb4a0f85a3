"""The interface of a volume. Conformance tests: ``tests/unit/vfolder/volume_conformance.py``."""

from __future__ import annotations

import abc
import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem


class Capability(enum.StrEnum):
    """What a volume can do besides holding files."""

    MOUNT = "mount"
    """Folders can be bind-mounted into sessions on nodes that have the volume."""
    QUOTA = "quota"
    """Byte limits are enforced by the volume itself."""
    USAGE = "usage"
    SNAPSHOT = "snapshot"


@dataclass(frozen=True, slots=True)
class Usage:
    """What a folder holds."""

    used_bytes: int
    files: int


class VolumeError(Exception):
    """The volume cannot do it now; a sentence for the user."""


class Volume(abc.ABC):
    """Holds folders under relative paths such as ``user/ab/cd/...``. Methods block; call them in a thread."""

    name: str
    capabilities: frozenset[Capability]

    @abc.abstractmethod
    def create_folder(self, path: str) -> None:
        """Make the folder (and its parents); harmless when it is there. Raises ``VolumeError``."""

    @abc.abstractmethod
    def delete_folder(self, path: str) -> None:
        """Remove the folder and all in it; harmless when it is gone. Raises ``VolumeError``."""

    @abc.abstractmethod
    def usage(self, path: str) -> Usage:
        """Bytes and files in the folder. Raises ``VolumeError`` when it does not exist."""

    @abc.abstractmethod
    def file_system(self) -> AbstractFileSystem:
        """The fsspec file system whose root is the root of this volume."""
