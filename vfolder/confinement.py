"""Opening paths beneath a root that nothing inside it can leave: no ``..``, no absolute path, no link.

String checks cannot do this (a link can be swapped in between check and use), so the kernel does:
``openat2`` with RESOLVE_BENEATH (Linux 5.6), or where it is missing a walk, component by component,
that never follows a link. Source: openat2(2).
"""

import contextlib
import ctypes
import errno
import os
import platform
import stat
from pathlib import PurePosixPath

RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
_OPENAT2 = 437  # the same number on every architecture that has it
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


class PathEscapes(Exception):
    """The path would leave its root, or a link stands in the way."""


def components(path: str) -> tuple[str, ...]:
    """The parts of a relative path. Raises ``PathEscapes`` for absolute paths, ``..`` and NUL."""
    if "\0" in path:
        raise PathEscapes("the path contains a NUL character")
    pure = PurePosixPath(path)
    if pure.is_absolute():
        raise PathEscapes(f"{path!r} is absolute: give a path relative to the folder")
    if ".." in pure.parts:
        raise PathEscapes(f"{path!r} contains '..': give a path inside the folder")
    return pure.parts


def open_beneath(root_fd: int, path: str, flags: int = _DIRECTORY, mode: int = 0) -> int:
    """A file descriptor of ``path`` beneath the directory ``root_fd``, following no link at all.

    Raises ``PathEscapes``, or ``OSError`` (ENOENT, ENOTDIR, EACCES, ...) as ``os.open`` does.
    """
    parts = components(path)
    flags |= os.O_CLOEXEC
    if not parts:
        return os.open(".", flags, dir_fd=root_fd)
    if platform.system() == "Linux":
        descriptor = _openat2(root_fd, "/".join(parts), flags, mode)
        if descriptor is not None:
            return descriptor
    return _walk(root_fd, parts, flags, mode)


def _openat2(root_fd: int, path: str, flags: int, mode: int) -> int | None:
    how = _OpenHow(flags, mode, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS)
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = int(
        libc.syscall(_OPENAT2, root_fd, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how))
    )
    if descriptor >= 0:
        return descriptor
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EPERM):  # old kernel, or a seccomp filter in the way
        return None
    if code in (errno.EXDEV, errno.ELOOP):
        raise PathEscapes(f"{path!r} leaves its folder or passes a link")
    raise OSError(code, os.strerror(code), path)


def _walk(root_fd: int, parts: tuple[str, ...], flags: int, mode: int) -> int:
    current = os.dup(root_fd)
    try:
        for index, part in enumerate(parts):
            last = index == len(parts) - 1
            step = flags if last else _DIRECTORY
            try:
                following = os.open(part, step | os.O_NOFOLLOW, mode, dir_fd=current)
            except OSError as error:
                if error.errno == errno.ELOOP or _is_link(part, current):
                    raise PathEscapes(f"{'/'.join(parts)!r} passes a link") from error
                raise
            os.close(current)
            current = following
        return os.dup(current)
    finally:
        os.close(current)


def _is_link(name: str, directory_fd: int) -> bool:
    try:
        return stat.S_ISLNK(os.lstat(name, dir_fd=directory_fd).st_mode)
    except OSError:
        return False


def make_directories(root_fd: int, path: str, mode: int = 0o711) -> int:
    """Create the directories of ``path`` beneath ``root_fd``; a descriptor of the last one.

    Directories that are there stay as they are. Raises ``PathEscapes`` when a link stands in the way.
    """
    current = os.dup(root_fd)
    try:
        for part in components(path):
            with contextlib.suppress(FileExistsError):  # opening it says whether it is a directory
                os.mkdir(part, mode, dir_fd=current)
            following = open_beneath(current, part)
            os.close(current)
            current = following
        return os.dup(current)
    finally:
        os.close(current)
