"""Use cases of vfolders: create, list, describe, delete, and what a session mounts.

A folder's row comes first, in status ``performing``; its directory follows, then status ``ready``. A
deletion marks ``delete-ongoing`` first. ``resume`` finishes whatever a crash left in between.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import posixpath
import re
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from authenticator.principals import Principal, Scope, may, require
from authenticator.problems import (
    FolderAlreadyExists,
    FolderOperationFailed,
    InvalidParameters,
    NotFound,
    QuotaExceeded,
    Unavailable,
)
from authenticator.tables import UserPolicyRow, UserRow
from store.database import Store
from vfolder.confinement import PathEscapes, components
from vfolder.tables import FolderRow
from vfolder.volumes.base import Capability, Usage, Volume, VolumeError

HOME_TARGET = "/home/work"
HOME_NAME = "home"
USAGE_MODES = ("general", "data", "model")
_NAME = re.compile(r"\.?[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_RESERVED_NAMES = frozenset({HOME_NAME, "work", "config", "_"})
_TARGET_ROOTS = ("/home/work/", "/mnt/", "/data/")
GONE = "delete-complete"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FolderMount:
    """A folder (or a path inside it) as a session mounts it; ``path`` is relative to the volume."""

    folder_id: uuid.UUID
    volume: str
    path: str
    target: str
    read_only: bool


def volume_path(folder: FolderRow) -> str:
    """Where a folder's bytes lie, relative to its volume."""
    digits = folder.id.hex
    return f"{folder.ownership}/{digits[:2]}/{digits[2:4]}/{digits[4:]}"


class FolderService:
    """Folders of users on the configured volumes; the first volume is the default one."""

    def __init__(
        self,
        store: Store,
        volumes: Sequence[Volume],
        now: Callable[[], dt.datetime],
        in_use: Callable[[str, str], Awaitable[bool]] | None = None,
    ) -> None:
        """``in_use(volume, path)`` tells whether a live session mounts a path at or under ``path``."""
        if not volumes:
            raise ValueError("at least one volume is needed")
        self._store = store
        self.volumes = {volume.name: volume for volume in volumes}
        self.default_volume = volumes[0].name
        self._now = now
        self.in_use = in_use

    async def ensure_home(self, principal: Principal) -> FolderRow:
        """The home folder of the user, made at first use."""
        found = await self._store.read(lambda session: self._home(session, principal.user_id))
        if found is not None and found.status == "ready":
            return found
        row = found or self._row(principal, HOME_NAME, self.default_volume, is_home=True)
        if found is None:
            try:
                await self._insert(row, principal, limited=False)
            except FolderAlreadyExists:  # another request made it first
                again = await self._store.read(lambda s: self._home(s, principal.user_id))
                if again is None:
                    raise
                row = again
        return await self._finish_creation(row)

    async def create(
        self,
        principal: Principal,
        name: str,
        *,
        volume: str | None = None,
        usage_mode: str = "general",
        quota_bytes: int | None = None,
        cloneable: bool = False,
    ) -> FolderRow:
        """A new folder of the caller. Raises ``InvalidParameters`` with every wrong field at once."""
        require(principal, Scope.VFOLDER_WRITE)
        chosen = volume or self.default_volume
        errors = self._creation_errors(name, chosen, usage_mode, quota_bytes)
        if errors:
            raise InvalidParameters(errors)
        row = self._row(principal, name, chosen)
        row.usage_mode, row.quota_bytes, row.cloneable = usage_mode, quota_bytes, cloneable
        await self._insert(row, principal, limited=True)
        return await self._finish_creation(row)

    async def list(self, principal: Principal) -> list[FolderRow]:
        """All folders of the caller, by name."""
        require(principal, Scope.VFOLDER_READ)

        async def work(session: AsyncSession) -> list[FolderRow]:
            query = select(FolderRow).where(
                FolderRow.owner_id == principal.user_id, FolderRow.status != GONE
            )
            return list((await session.scalars(query.order_by(FolderRow.name))).all())

        return await self._store.read(work)

    async def find(self, principal: Principal, ref: str) -> FolderRow:
        """The caller's folder by name or id; strangers' folders do not exist for them."""

        async def work(session: AsyncSession) -> FolderRow | None:
            identity = _as_uuid(ref)
            if identity is not None:
                row = await session.get(FolderRow, identity)
                if row is not None and may(principal, Scope.VFOLDER_READ, row.owner_id):
                    return row
            query = select(FolderRow).where(
                FolderRow.owner_id == principal.user_id, FolderRow.name == ref
            )
            return (await session.scalars(query.where(FolderRow.status != GONE))).one_or_none()

        require(principal, Scope.VFOLDER_READ)
        row = await self._store.read(work)
        if row is None or row.status == GONE:
            raise NotFound("virtual folder", f"there is no folder {ref!r}")
        return row

    async def info(self, principal: Principal, ref: str) -> tuple[FolderRow, Usage]:
        """A folder with what it holds now."""
        row = await self.find(principal, ref)
        volume = self.volumes.get(row.volume)
        if volume is None or Capability.USAGE not in volume.capabilities:
            return row, Usage(0, 0)
        try:
            return row, await asyncio.to_thread(volume.usage, volume_path(row))
        except VolumeError as error:
            raise Unavailable(str(error)) from error

    async def delete(self, principal: Principal, ref: str) -> None:
        """Delete a folder and all in it. Homes and folders that a live session mounts are refused."""
        row = await self.find(principal, ref)
        require(principal, Scope.VFOLDER_WRITE, row.owner_id)
        if row.is_home:
            raise FolderOperationFailed("a home folder cannot be deleted")
        # Marked first, looked at second: a session that comes in between finds it marked.
        await self._set_status(row.id, "delete-ongoing")
        if self.in_use is not None and await self.in_use(row.volume, volume_path(row)):
            await self._set_status(row.id, row.status)
            raise FolderOperationFailed(
                f"folder {row.name!r} is mounted in a running session: end the session first"
            )
        await self._finish_deletion(row)

    async def mounts_for(
        self, principal: Principal, names: Sequence[str], mount_map: Mapping[str, str]
    ) -> tuple[FolderMount, ...]:
        """What a session of ``principal`` mounts: the home first, then ``names`` (``folder[/path]``).

        ``mount_map`` gives targets other than ``/home/work/<folder>``. Raises ``InvalidParameters``
        naming each wrong entry.
        """
        home = await self.ensure_home(principal)
        mounts = [FolderMount(home.id, home.volume, volume_path(home), HOME_TARGET, False)]
        errors: dict[str, str] = {}
        for unknown in sorted(set(mount_map) - set(names)):
            errors[f"config.mount_map.{unknown}"] = f"{unknown!r} is not among the mounts"
        for entry in names:
            try:
                mounts.append(await self._mount(principal, entry, mount_map.get(entry)))
            except (NotFound, PathEscapes, ValueError) as error:
                errors[f"config.mounts.{entry[:80]}"] = str(error)
        targets = [mount.target for mount in mounts]
        for target in sorted({t for t in targets if targets.count(t) > 1}):
            errors["config.mounts"] = f"two folders would be mounted at {target}"
        if errors:
            raise InvalidParameters(errors)
        return tuple(mounts)

    @staticmethod
    async def still_there(session: AsyncSession, mounts: Iterable[FolderMount]) -> None:
        """Lock the folders of ``mounts`` until the commit. Raises ``InvalidParameters`` when one is going.

        To be called in the write that makes a session which mounts them.
        """
        for mount in sorted(mounts, key=lambda each: each.folder_id):  # no two lock in turns
            query = select(FolderRow).where(FolderRow.id == mount.folder_id)
            query = query.with_for_update(read=True).execution_options(populate_existing=True)
            row = (await session.scalars(query)).one_or_none()
            if row is None or row.status != "ready":
                gone = "gone" if row is None else row.status
                raise InvalidParameters(
                    {"config.mounts": f"the folder at {mount.target} is {gone}"}
                )

    async def resume(self) -> None:
        """Finish creations and deletions that a crash interrupted."""

        async def work(session: AsyncSession) -> Sequence[FolderRow]:
            unfinished = FolderRow.status.in_(("performing", "delete-ongoing"))
            return (await session.scalars(select(FolderRow).where(unfinished))).all()

        for row in await self._store.read(work):
            try:
                if row.status == "performing":
                    await self._finish_creation(row)
                else:
                    await self._finish_deletion(row)
            except (Unavailable, FolderOperationFailed) as problem:
                log.warning("folder %s stays %s: %s", row.id, row.status, problem)

    async def _mount(self, principal: Principal, entry: str, target: str | None) -> FolderMount:
        name, _, inside = entry.partition("/")
        row = await self.find(principal, name)
        if row.is_home:
            raise ValueError("the home folder is always mounted, at /home/work")
        if row.status != "ready":
            raise ValueError(f"folder {name!r} is {row.status}, not ready")
        path = "/".join((volume_path(row), *components(inside)))
        where = target or f"{HOME_TARGET}/{name}"
        if posixpath.normpath(where) != where or not where.startswith(_TARGET_ROOTS):
            allowed = ", ".join(_TARGET_ROOTS)
            raise ValueError(f"target {where!r}: give an absolute path under one of {allowed}")
        return FolderMount(row.id, row.volume, path, where, row.permission == "ro")

    def _creation_errors(
        self, name: str, volume: str, usage_mode: str, quota_bytes: int | None
    ) -> dict[str, str]:
        errors: dict[str, str] = {}
        if not _NAME.fullmatch(name):
            errors["name"] = (
                f"{name[:80]!r}: 1 to 64 letters, digits, '.', '_' and '-', beginning with a letter,"
                " a digit or one '.'"
            )
        elif name in _RESERVED_NAMES:
            errors["name"] = f"{name!r} is reserved"
        if volume not in self.volumes:
            errors["host"] = f"{volume[:80]!r}: one of {', '.join(sorted(self.volumes))}"
        if usage_mode not in USAGE_MODES:
            errors["usage_mode"] = f"{usage_mode[:80]!r}: one of {', '.join(USAGE_MODES)}"
        if quota_bytes is not None and not 0 <= quota_bytes < 2**63:
            errors["quota"] = f"{quota_bytes}: a number of bytes, 0 or more"
        return errors

    def _row(
        self, principal: Principal, name: str, volume: str, *, is_home: bool = False
    ) -> FolderRow:
        return FolderRow(
            id=uuid.uuid4(),
            name=name,
            volume=volume,
            ownership="user",
            owner_id=principal.user_id,
            usage_mode="general",
            permission="wd",
            is_home=is_home,
            cloneable=False,
            status="performing",
            created_at=self._now(),
        )

    async def _insert(self, row: FolderRow, principal: Principal, *, limited: bool) -> None:
        async def work(session: AsyncSession) -> None:
            if limited:
                await _check_count(session, principal)
            session.add(row)
            await session.flush()

        try:
            await self._store.write(work)
        except IntegrityError as error:
            raise FolderAlreadyExists(
                f"you already have a folder named {row.name!r}", row.name
            ) from error

    async def _finish_creation(self, row: FolderRow) -> FolderRow:
        await self._on_volume(row, "create_folder")
        return await self._set_status(row.id, "ready")

    async def _finish_deletion(self, row: FolderRow) -> None:
        await self._on_volume(row, "delete_folder")
        await self._set_status(row.id, GONE)

    async def _on_volume(self, row: FolderRow, operation: str) -> None:
        volume = self.volumes.get(row.volume)
        if volume is None:
            raise Unavailable(f"volume {row.volume!r} of folder {row.name!r} is not configured")
        try:
            await asyncio.to_thread(getattr(volume, operation), volume_path(row))
        except VolumeError as error:
            raise Unavailable(str(error)) from error

    async def _set_status(self, folder_id: uuid.UUID, status: str) -> FolderRow:
        async def work(session: AsyncSession) -> FolderRow:
            row = await session.get(FolderRow, folder_id, populate_existing=True)
            if row is None:
                raise NotFound("virtual folder", f"folder {folder_id} is gone")
            row.status = status
            return row

        return await self._store.write(work)

    @staticmethod
    async def _home(session: AsyncSession, user_id: uuid.UUID) -> FolderRow | None:
        query = select(FolderRow).where(FolderRow.owner_id == user_id, FolderRow.is_home)
        return (await session.scalars(query.where(FolderRow.status != GONE))).one_or_none()


async def _check_count(session: AsyncSession, principal: Principal) -> None:
    """Raise ``QuotaExceeded`` when the user's policy allows no further folder."""
    query = (
        select(UserPolicyRow.max_vfolder_count)
        .join(UserRow, UserRow.resource_policy == UserPolicyRow.name)
        .where(UserRow.id == principal.user_id)
    )
    limit = await session.scalar(query)
    if limit is None:
        return
    mine = (
        select(func.count())
        .select_from(FolderRow)
        .where(
            FolderRow.owner_id == principal.user_id,
            FolderRow.status != GONE,
            FolderRow.is_home.is_(False),
        )
    )
    held = await session.scalar(mine) or 0
    if held >= limit:
        raise QuotaExceeded(f"you have {held} folders and may have {limit}: delete one first")


def _as_uuid(text: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(text)
    except ValueError:
        return None
