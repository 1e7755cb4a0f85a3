"""Dotfiles: small files that sessions find in their home folder, of the domain, the project or the user.

Where several have one path, the user's counts, then the project's. Users also keep a bootstrap script.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from sqlalchemy import or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from authenticator.principals import Principal, Role, Scope, has_scope, require
from authenticator.problems import BadRequest, Forbidden, InvalidParameters, NotFound
from authenticator.tables import DomainRow, DotfileRow, MembershipRow, ProjectRow, UserRow
from store.database import Store

HOME = "/home/work/"
MAX_COUNT = 100
MAX_BYTES = 64 * 1024
"""Of all paths and contents of one owner together."""
MAX_SCRIPT = 16 * 1024
"""Bytes of a bootstrap script; an agent is told those of all its starting kernels at once."""
MAX_PATH = 1024
PERMISSION = re.compile(r"[4-7][0-7]{2}", re.ASCII)
RESERVED = (".terminfo", ".jupyter", ".ssh", ".local", ".config")
"""Folders that programs need as folders."""
CLOSED = (".ssh/authorized_keys", ".local/state/perijove")
"""The file that says who may come in, and a folder of the platform: nothing is put there or beneath."""
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f]")
_SHOWN = 80


class DotfileExists(BadRequest):
    """The owner has a dotfile of this path."""

    title: ClassVar[str] = "Dotfile already exists."


class DotfileCreationFailed(BadRequest):
    """There is no room for it."""

    title: ClassVar[str] = "Dotfile creation has failed."


@dataclass(frozen=True, slots=True)
class Dotfile:
    """One file: ``path`` beneath the home folder, ``permission`` as three octal digits."""

    path: str
    permission: str
    data: str

    @property
    def size(self) -> int:
        """What it counts towards the limit."""
        return len(self.path.encode()) + len(self.data.encode())


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose dotfiles: the row of ``table`` under ``key``, which ``column`` of a dotfile names."""

    table: Any
    column: str
    key: uuid.UUID | str

    @property
    def condition(self) -> Any:
        """Selects the dotfiles."""
        return getattr(DotfileRow, self.column) == self.key


class DotfileService:
    """Dotfiles and bootstrap scripts. Owners come from ``of_user``, ``of_project``, ``of_domain``: these authorize."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def of_user(self, actor: Principal, user: Principal, *, write: bool) -> Owner:
        """A user's own. Raises ``Forbidden``."""
        require(actor, Scope.SESSIONS if write else Scope.SESSIONS_READ, user.user_id)
        return Owner(UserRow, "user_id", user.user_id)

    def of_domain(self, actor: Principal, domain: str, *, write: bool) -> Owner:
        """A domain's, which its members read and its administrators write. Raises ``Forbidden``."""
        if write:
            _require_admin(actor, domain)
        else:
            require(actor, Scope.SESSIONS_READ)
            if domain != actor.domain and not actor.is_superadmin:
                raise Forbidden(f"you do not belong to the domain {domain[:_SHOWN]!r}")
        return Owner(DomainRow, "domain", domain)

    async def of_project(
        self, actor: Principal, project: str, domain: str | None, *, write: bool
    ) -> Owner:
        """A project's, by id, or by name in ``domain`` (else the caller's). Raises ``NotFound``, ``Forbidden``."""
        require(actor, Scope.SESSIONS_READ)

        async def work(db: AsyncSession) -> tuple[ProjectRow | None, bool]:
            try:
                query = select(ProjectRow).where(ProjectRow.id == uuid.UUID(project))
            except ValueError:
                within = ProjectRow.domain == (domain or actor.domain)
                query = select(ProjectRow).where(ProjectRow.name == project, within)
            row = await db.scalar(query)
            key = (actor.user_id, None if row is None else row.id)
            return row, row is not None and await db.get(MembershipRow, key) is not None

        row, member = await self._store.read(work)
        if row is None or not (member or actor.is_superadmin or _administers(actor, row.domain)):
            told = f"there is no project {project[:_SHOWN]!r} of yours"
            raise NotFound("user group (or project)", told)
        if write:
            _require_admin(actor, row.domain)
        return Owner(ProjectRow, "project_id", row.id)

    async def list(self, owner: Owner) -> list[Dotfile]:
        """All of an owner's, by path. Raises ``NotFound`` for an owner that is not there."""
        return await self._store.read(lambda db: _all(db, owner))

    async def get(self, owner: Owner, path: str) -> Dotfile:
        """One of them. Raises ``NotFound``."""
        wanted = canonical(path)
        return _shown(await self._store.read(lambda db: _one(db, owner, wanted)))

    async def create(self, owner: Owner, given: Dotfile) -> None:
        """A new one. Raises ``InvalidParameters``, ``DotfileExists``, ``DotfileCreationFailed``."""
        new = checked(given)

        async def work(db: AsyncSession) -> None:
            present = await _all(db, owner, lock=True)
            clash = next((each.path for each in present if _nested(each.path, new.path)), None)
            if any(each.path == new.path for each in present):
                raise DotfileExists(f"there is a dotfile {new.path!r} already")
            if clash is not None:
                told = f"{new.path!r}: with {clash!r}, one of them would have to be a folder"
                raise InvalidParameters({"path": told})
            if len(present) >= MAX_COUNT:
                raise DotfileCreationFailed(f"at most {MAX_COUNT} dotfiles are kept")
            _fits([*present, new])
            row = DotfileRow(id=uuid.uuid4(), path=new.path)
            row.permission, row.data = new.permission, new.data
            setattr(row, owner.column, owner.key)
            db.add(row)

        await self._store.write(work)

    async def update(self, owner: Owner, given: Dotfile) -> None:
        """Other data and permission. Raises as ``create``, and ``NotFound``."""
        new = checked(given)

        async def work(db: AsyncSession) -> None:
            present = await _all(db, owner, lock=True)
            row = await _one(db, owner, new.path)
            _fits([*(each for each in present if each.path != new.path), new])
            row.permission, row.data = new.permission, new.data

        await self._store.write(work)

    async def delete(self, owner: Owner, path: str) -> None:
        """Sessions that run keep it. Raises ``NotFound``."""
        wanted = canonical(path)

        async def work(db: AsyncSession) -> None:
            await db.delete(await _one(db, owner, wanted))

        await self._store.write(work)

    async def bootstrap_script(self, actor: Principal) -> str:
        """The caller's script; empty: none."""
        require(actor, Scope.SESSIONS_READ)
        return (await self._store.read(lambda db: _user(db, actor))).bootstrap_script or ""

    async def set_bootstrap_script(self, actor: Principal, script: str) -> None:
        """Another script; empty: none. Raises ``InvalidParameters``."""
        require(actor, Scope.SESSIONS)
        size = len(script.encode())
        if size > MAX_SCRIPT:
            raise InvalidParameters({"script": f"{size} bytes: at most {MAX_SCRIPT}"})

        async def work(db: AsyncSession) -> None:
            (await _user(db, actor)).bootstrap_script = script or None

        await self._store.write(work)


def canonical(path: str) -> str:
    """A path beneath the home folder; ``/home/work/.x`` is ``.x``. Raises ``InvalidParameters``."""
    short = path.removeprefix(HOME)
    parts = short.split("/")
    if (
        {"", ".", ".."} & set(parts)
        or _UNPRINTABLE.search(short)
        or len(short.encode()) > MAX_PATH
        or max(len(part.encode()) for part in parts) > 255
    ):
        told = f"a path beneath {HOME}, without '.', '..' and control characters"
        raise InvalidParameters({"path": f"{path[:_SHOWN]!r}: {told}"})
    return short


def checked(given: Dotfile) -> Dotfile:
    """``given`` with its path in one form. Raises ``InvalidParameters``."""
    path = canonical(given.path)
    if path in RESERVED + CLOSED or any(_nested(each, path) for each in CLOSED):
        reserved = ", ".join(RESERVED + CLOSED)
        told = f"{path!r} is reserved for the platform, as are {reserved}"
        raise InvalidParameters({"path": told})
    if not PERMISSION.fullmatch(given.permission):
        told = "three octal digits that let the owner read it, such as 644"
        raise InvalidParameters({"permission": f"{given.permission[:_SHOWN]!r}: {told}"})
    return Dotfile(path, given.permission, given.data)


async def effective(
    db: AsyncSession, user_id: uuid.UUID, project_id: uuid.UUID, domain: str
) -> list[Dotfile]:
    """What a session of the user in the project finds; a file of the nearer owner hides what it clashes with."""
    owners = {"domain": domain, "project_id": project_id, "user_id": user_id}
    conditions = [getattr(DotfileRow, column) == key for column, key in owners.items()]
    rows = list(await db.scalars(select(DotfileRow).where(or_(*conditions))))
    found: dict[str, Dotfile] = {}
    for column in owners:
        nearer = [_shown(row) for row in rows if getattr(row, column) is not None]
        for old in list(found):
            if any(_nested(old, each.path) for each in nearer):
                del found[old]
        found |= {each.path: each for each in nearer}
    return [found[path] for path in sorted(found)]


def _nested(one: str, other: str) -> bool:
    """Whether one of two paths lies beneath the other."""
    return one.startswith(f"{other}/") or other.startswith(f"{one}/")


def _fits(files: Iterable[Dotfile]) -> None:
    size = sum(each.size for each in files)
    if size > MAX_BYTES:
        raise DotfileCreationFailed(f"{size} bytes in all: at most {MAX_BYTES} are kept")


def _administers(actor: Principal, domain: str) -> bool:
    own = actor.role is Role.ADMIN and actor.domain == domain
    return has_scope(actor, Scope.ADMIN) and (own or actor.is_superadmin)


def _require_admin(actor: Principal, domain: str) -> None:
    if not _administers(actor, domain):
        raise Forbidden(f"only administrators of the domain {domain[:_SHOWN]!r} may do this")


async def _all(db: AsyncSession, owner: Owner, *, lock: bool = False) -> list[Dotfile]:
    if await db.get(owner.table, owner.key, with_for_update=lock) is None:
        word = owner.column.removesuffix("_id")
        raise NotFound(word, f"there is no {word} {str(owner.key)[:_SHOWN]!r}")
    rows = await db.scalars(select(DotfileRow).where(owner.condition).order_by(DotfileRow.path))
    return [_shown(row) for row in rows]


async def _one(db: AsyncSession, owner: Owner, path: str) -> DotfileRow:
    row = await db.scalar(select(DotfileRow).where(owner.condition, DotfileRow.path == path))
    if row is None:
        raise NotFound("dotfile", f"there is no dotfile {path[:_SHOWN]!r}")
    return row


async def _user(db: AsyncSession, actor: Principal) -> UserRow:
    return await db.get_one(UserRow, actor.user_id)


def _shown(row: DotfileRow) -> Dotfile:
    return Dotfile(row.path, row.permission, row.data)
