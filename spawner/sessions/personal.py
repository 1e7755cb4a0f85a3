"""What a session that starts finds of its owner, project and domain: dotfiles, a bootstrap script, a key for SSH.

It is read when the session is handed to its node, so a session that waited long has the newest.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from authenticator.dotfiles import Dotfile, effective
from authenticator.tables import UserRow
from spawner.agent.entering import DOTFILES
from spawner.agent.protocol import File, KernelSpec
from spawner.sessions import clusters
from spawner.sessions.tables import KernelRow, SessionRow

BOOTSTRAP = "bootstrap"
"""Where a bootstrap script lies among the files of the platform."""
AUTHORIZED_KEYS = "ssh/authorized_keys"
FILES_AT_ONCE = 2 * 1024 * 1024
"""Bytes of the files of all kernels that an agent starts at once: they travel in one frame."""


@dataclass(frozen=True, slots=True)
class Personal:
    """What one user brings into sessions of one project."""

    dotfiles: tuple[Dotfile, ...] = ()
    bootstrap_script: str | None = None
    ssh_public_key: str | None = None


NOTHING = Personal()
Key = tuple[uuid.UUID, uuid.UUID, str]


async def read(db: AsyncSession, session: SessionRow, seen: dict[Key, Personal]) -> Personal:
    """What ``session`` finds; ``seen`` keeps it for others of that user in that project."""
    key = (session.owner_id, session.project_id, session.domain)
    if key not in seen:
        columns = (UserRow.bootstrap_script, UserRow.ssh_public_key)
        row = (await db.execute(select(*columns).where(UserRow.id == session.owner_id))).one()
        seen[key] = Personal(tuple(await effective(db, *key)), row[0], row[1])
    return seen[key]


def bootstrap_of(kernel: KernelRow, personal: Personal) -> str | None:
    """The script that runs first: the session's own, else its owner's."""
    script: str | None = kernel.spec.get("bootstrap") or personal.bootstrap_script
    return script


def files(session: SessionRow, kernel: KernelRow, personal: Personal) -> tuple[File, ...]:
    """All files of the platform in a kernel that starts."""
    found = {file.path: file for file in clusters.files(session, kernel)}
    if personal.ssh_public_key:
        before = found.get(AUTHORIZED_KEYS)
        keys = f"{before.content if before else ''}{personal.ssh_public_key}\n"
        found[AUTHORIZED_KEYS] = File(AUTHORIZED_KEYS, keys)
    script = bootstrap_of(kernel, personal)
    if script:
        found[BOOTSTRAP] = File(BOOTSTRAP, script, 0o700)
    for dotfile in personal.dotfiles:
        path = f"{DOTFILES}{dotfile.path}"
        found[path] = File(path, dotfile.data, int(dotfile.permission, 8))
    return tuple(found.values())


def weight(files: Iterable[File]) -> int:
    """Bytes of files as they travel, roughly."""
    return sum(len(file.path) + len(file.content.encode()) for file in files)


def room(specs: Iterable[KernelSpec]) -> int:
    """Bytes that files of further kernels may have, beside those that start already."""
    return FILES_AT_ONCE - sum(weight(spec.files) for spec in specs)
