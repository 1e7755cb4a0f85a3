"""Who a container's user is: an image's ``passwd`` and ``group`` with an entry for the ids that containers run under.

Without one, ``ssh``, ``sshd`` and much else refuse to work. Images that have the right entries are left as they are;
for the others both files are mounted over the image's own, which cannot be changed on a read-only root.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import tarfile
from collections.abc import Iterable, Sequence
from typing import Any

from docker.errors import NotFound

from spawner.agent.engines.base import BoundMount
from spawner.agent.engines.config_files import TARGET
from spawner.agent.engines.docker.calls import Calls
from spawner.agent.engines.docker.manifest import HOME, LABEL, USER
from spawner.agent.protocol import File

PATHS = {"passwd": "/etc/passwd", "group": "/etc/group"}
MAX_BYTES = 1024 * 1024
_UID, _HOME, _SHELL = 2, 5, 6
_GID = 2
_LINE = 7
Known = tuple[str | None, str | None]
"""Both files of an image; None for one that is no plain file."""


class Accounts:
    """Reads the files of each image once."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._known: dict[str, Known] = {}
        self._lock = asyncio.Lock()
        self._label = f"{LABEL}.look="

    async def sweep(self, home: str) -> None:
        """Remove what an agent of this ``home`` left behind that was killed while it looked."""
        self._label = f"{LABEL}.look={home}"
        for each in await self.looking():
            await self._calls.run(_remove, self._calls.client.api, each)

    async def looking(self) -> tuple[str, ...]:
        """Ids of containers of which only files are read."""
        api = self._calls.client.api
        found = await self._calls.run(api.containers, all=True, filters={"label": self._label})
        return tuple(str(each["Id"]) for each in found)

    async def files(
        self, image: str, uid: int, gid: int, groups: Iterable[str]
    ) -> tuple[File, ...]:
        """The files that containers of ``image`` need instead of its own, with names for ``groups`` too."""
        passwd, group = await self._of(image)
        wanted = {
            "passwd": None if passwd is None else with_user(passwd, uid, gid),
            "group": None if group is None else with_groups(group, gid, groups),
        }
        return tuple(File(name, text, 0o644) for name, text in wanted.items() if text is not None)

    async def _of(self, image: str) -> Known:
        client = self._calls.client
        image_id = str((await self._calls.run(client.api.inspect_image, image))["Id"])
        async with self._lock:
            if image_id not in self._known:
                self._known[image_id] = await self._calls.run(
                    _read, client.api, image_id, self._label
                )
            return self._known[image_id]


def mounts(written: Sequence[BoundMount], files: Iterable[File]) -> tuple[BoundMount, ...]:
    """Mounts over the image's own of those of ``files`` that stand for them."""
    folder = next((mount.source for mount in written if mount.target == TARGET), None)
    return tuple(
        BoundMount(f"{folder}/{file.path}", PATHS[file.path], True)
        for file in files
        if file.path in PATHS
    )


def with_user(passwd: str, uid: int, gid: int) -> str | None:
    """``passwd`` in which ``uid`` is the session's user; None if it is so already."""
    lines = passwd.splitlines()
    fields = [line.split(":") for line in lines]
    mine = next((each for each in fields if each[_UID : _UID + 1] == [str(uid)]), None)
    if mine is not None and mine[0] == USER and mine[_HOME : _HOME + 1] == [HOME]:
        return None
    root = next((each for each in fields if each[0] == "root" and len(each) == _LINE), None)
    shell = root[_SHELL] if root is not None and root[_SHELL] else "/bin/sh"
    ours = f"{USER}:x:{uid}:{gid}:{USER}:{HOME}:{shell}"
    others = (
        line
        for line, each in zip(lines, fields, strict=True)
        if each[0] != USER and each[_UID : _UID + 1] != [str(uid)]
    )
    return "\n".join((ours, *others, ""))


def with_groups(group: str, gid: int, more: Iterable[str]) -> str | None:
    """``group`` with names for ``gid`` and all of ``more``; None if it has them already."""
    lines = group.splitlines()
    known = {field for line in lines for field in line.split(":")[_GID : _GID + 1]}
    added = [f"g{each}:x:{each}:{USER}" for each in more if each not in known | {str(gid)}]
    if str(gid) not in known:
        added.insert(0, f"{USER}:x:{gid}:")
        lines = [line for line in lines if line.split(":")[0] != USER]
    return "\n".join((*lines, *added, "")) if added else None


def _remove(api: Any, container: str) -> None:
    with contextlib.suppress(NotFound):
        api.remove_container(container, force=True, v=True)


def _read(api: Any, image_id: str, label: str) -> Known:
    """Both files, out of a container that is never started."""
    labels = dict([label.split("=", 1)])
    container = api.create_container(image_id, ["true"], labels=labels)["Id"]
    try:
        return _file(api, container, PATHS["passwd"]), _file(api, container, PATHS["group"])
    finally:
        _remove(api, container)


def _file(api: Any, container: str, path: str) -> str | None:
    try:
        stream, _ = api.get_archive(container, path)
    except NotFound:
        return ""
    data = b"".join(stream)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        member = archive.next()
        if member is None or not member.isfile() or member.size > MAX_BYTES:
            return None
        content = archive.extractfile(member)
        return "" if content is None else content.read().decode("utf-8", "surrogateescape")
