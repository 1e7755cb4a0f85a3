"""Administrators' use cases: list, make, change and delete domains, projects, policies, groups, presets.

All kinds work alike (``spawner.sessions.records``); a change wakes the scheduler, for it may let
somebody start.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from sqlalchemy import ColumnElement, inspect, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from authenticator.identity import DEFAULT, IdentityService
from authenticator.principals import Principal, Role, Scope, require
from authenticator.problems import BadRequest, InvalidParameters, NotFound
from authenticator.tables import (
    KeyPairPolicyRow,
    KeyPairRow,
    MembershipRow,
    ProjectPolicyRow,
    ProjectRow,
    UserPolicyRow,
    UserRow,
)
from spawner.scheduler.policies import Policies
from spawner.scheduler.slots import human_bytes
from spawner.sessions.groups import OptionsError
from spawner.sessions.ledger import Repair
from spawner.sessions.records import IDENTITY, Kind, kinds
from spawner.sessions.tables import PresetRow, ResourceGroupRow
from spawner.sessions.transitions import Change, Journal

Record = dict[str, Any]

_SOME = 5
"""Holders of a policy that are named."""

log = logging.getLogger(__name__)


class Administration:
    """Records by kind (``domains``, ``projects``, ...). Every method demands ``Scope.ADMIN``."""

    def __init__(
        self,
        journal: Journal,
        policies: Policies,
        repair: Callable[[], Awaitable[Repair]],
    ) -> None:
        self._journal, self._repair = journal, repair
        self._identity = IdentityService(journal.store, journal.now)
        self.kinds = kinds(policies)

    async def list(self, principal: Principal, plural: str) -> list[Record]:
        """All records of a kind, by name."""
        require(principal, Scope.ADMIN)
        kind = self._kind(plural)

        async def work(db: AsyncSession) -> list[Record]:
            rows = await db.scalars(select(kind.row))
            return sorted([await _shown(db, kind, row) for row in rows], key=lambda r: r["name"])

        return await self._journal.store.read(work)

    async def get(self, principal: Principal, plural: str, ref: str) -> Record:
        """One record. Raises ``NotFound``."""
        require(principal, Scope.ADMIN)
        kind = self._kind(plural)

        async def work(db: AsyncSession) -> Record:
            return await _shown(db, kind, await _find(db, kind, ref, lock=False))

        return await self._journal.store.read(work)

    async def create(
        self, principal: Principal, plural: str, given: Mapping[str, Any], request_id: str
    ) -> Record:
        """A new record. Raises ``InvalidParameters`` with all wrong fields."""
        require(principal, Scope.ADMIN)
        kind = self._kind(plural)
        values = _checked(kind, given, new=True)
        if kind.row is UserRow:
            return await self._create_user(principal, given, values, request_id)

        async def work(change: Change) -> Record:
            dated = {"created_at": change.now} if hasattr(kind.row, "created_at") else {}
            named = {"id": uuid.uuid4()} if kind.by_id else {}
            row = kind.row(**values, **dated, **named)
            await _consistent(change.db, row)
            change.db.add(row)
            await change.db.flush()
            change.schedule = True
            return await _shown(change.db, kind, row)

        try:
            made = await self._journal.write(request_id, work)
        except IntegrityError as error:
            raise _clash(kind, values, error) from error
        log.info("%s made the %s %s", principal.username, kind.word, values["name"])
        return made

    async def update(
        self,
        principal: Principal,
        plural: str,
        ref: str,
        given: Mapping[str, Any],
        request_id: str,
    ) -> Record:
        """Change the fields that are given. Raises ``NotFound``, ``InvalidParameters``."""
        require(principal, Scope.ADMIN)
        kind = self._kind(plural)
        values = _checked(kind, given, new=False)

        async def work(change: Change) -> Record:
            row = await _find(change.db, kind, ref)
            if kind.row is UserRow and row.username == principal.username:
                _refuse_own(values)
            if (
                kind.row is ResourceGroupRow
                and row.is_default
                and not values.get("is_default", True)
            ):
                raise InvalidParameters({"is_default": "make another group the default instead"})
            for field, value in values.items():
                if field == "policy":
                    await _give_policy(change.db, row, value)
                    continue
                setattr(row, field, value)
                if field == "role":
                    pairs = update(KeyPairRow).where(KeyPairRow.user_id == row.id)
                    await change.db.execute(pairs.values(is_admin=value != Role.USER))
            await _consistent(change.db, row)
            await change.db.flush()
            change.schedule = True
            return await _shown(change.db, kind, row)

        try:
            changed = await self._journal.write(request_id, work)
        except IntegrityError as error:
            raise _clash(kind, values, error) from error
        fields = ", ".join(given)
        log.info("%s changed %s of the %s %s", principal.username, fields, kind.word, ref[:80])
        return changed

    async def delete(self, principal: Principal, plural: str, ref: str, request_id: str) -> None:
        """Delete a record that nothing uses. Raises ``NotFound``, ``BadRequest``."""
        require(principal, Scope.ADMIN)
        kind = self._kind(plural)

        async def work(change: Change) -> None:
            row = await _find(change.db, kind, ref)
            if kind.row is UserRow and ref == principal.username:
                raise BadRequest("you cannot delete yourself: ask another administrator")
            await _unheld(change.db, kind, row)
            await change.db.delete(row)
            await change.db.flush()
            change.schedule = True

        try:
            await self._journal.write(request_id, work)
        except IntegrityError as error:
            off = "is_active=false" if "is_active" in kind.fields else "status=inactive"
            hint = f" (it can be switched off instead: {off})"
            hint = hint if off.partition("=")[0] in kind.fields else ""
            raise BadRequest(f"the {kind.word} {ref[:80]!r} is in use{hint}") from error
        log.info("%s deleted the %s %s", principal.username, kind.word, ref[:80])

    async def _create_user(
        self, principal: Principal, given: Mapping[str, Any], values: Record, request_id: str
    ) -> Record:
        """A new user, and then the limits that are ``given``; a generated ``password`` is shown this once."""
        limits = {field: value for field, value in given.items() if field not in IDENTITY}

        async def look(db: AsyncSession) -> None:
            if await db.get(KeyPairPolicyRow, values["policy"]) is None:
                raise InvalidParameters({"policy": f"there is no policy {values['policy']!r}"})
            await _has_policy(db, UserRow(resource_policy=values["resource_policy"]))

        await self._journal.store.read(look)
        try:
            made = await self._identity.create_user(
                values["name"],
                password=values["password"],
                with_password="password" not in given or values["password"] is not None,
                email=values["email"],
                full_name=values["full_name"],
                role=Role(values["role"]),
                domain=values["domain"],
                project=values["project"],
            )
        except InvalidParameters as error:
            fields = {"name" if k == "username" else k: told for k, told in error.fields.items()}
            raise InvalidParameters(fields) from error
        log.info("%s made the user %s", principal.username, values["name"])
        record = await self.update(principal, "users", values["name"], limits, request_id)
        return record if made.password is None else {**record, "password": made.password}

    async def set_member(
        self, principal: Principal, project: str, username: str, member: bool, request_id: str
    ) -> Record:
        """Take a user into a project, or out of it; harmless when repeated."""
        require(principal, Scope.ADMIN)
        kind = self.kinds["projects"]

        async def work(change: Change) -> Record:
            row = await _find(change.db, kind, project)
            user = await _find(change.db, self.kinds["users"], username)
            key = {"user_id": user.id, "project_id": row.id}
            known = await change.db.get(MembershipRow, key)
            if member and known is None:
                if user.domain != row.domain:
                    told = f"{username} belongs to the domain {user.domain}, not to {row.domain}"
                    raise InvalidParameters({"user": told})
                change.db.add(MembershipRow(**key))
            elif not member and known is not None:
                await change.db.delete(known)
            await change.db.flush()
            return await _shown(change.db, kind, row)

        return await self._journal.write(request_id, work)

    async def repair(self, principal: Principal) -> Repair:
        """Recompute the ledger from live rows now."""
        require(principal, Scope.ADMIN)
        return await self._repair()

    def _kind(self, plural: str) -> Kind:
        kind = self.kinds.get(plural)
        if kind is None:
            known = ", ".join(self.kinds)
            raise NotFound("kind", f"{plural[:80]!r} is none of {known}")
        return kind


def _checked(kind: Kind, given: Mapping[str, Any], *, new: bool) -> Record:
    """Values of all given fields, and for a new record of the others too."""
    errors: dict[str, str] = {}
    values: Record = {}
    for name, value in given.items():
        field = kind.fields.get(name)
        if field is None:
            errors[name[:80]] = f"unknown: known are {', '.join(kind.fields)}"
        elif field.fixed and not new:
            errors[name] = "it stays as it was made"
        else:
            try:
                values[name] = field.parse(value)
            except OptionsError as error:
                errors |= {f"{name}.{inner}": told for inner, told in error.errors.items()}
            except ValueError as error:
                errors[name] = str(error)
    if new:
        for name, field in kind.fields.items():
            if name in given:
                continue
            if name in ("name", "resource_slots"):
                errors[name] = "it is missing"
            else:
                values[name] = field.default
    if errors:
        raise InvalidParameters(errors)
    return values


async def _find(db: AsyncSession, kind: Kind, ref: str, *, lock: bool = True) -> Any:
    """The row that ``ref`` names: a name; an id or ``DOMAIN/NAME`` for those that have a domain."""
    table: Any = kind.row
    condition: ColumnElement[bool] = (
        table.username == ref if kind.row is UserRow else table.name == ref
    )
    if kind.by_id:
        try:
            condition = table.id == uuid.UUID(ref)
        except ValueError:
            domain, _, short = ref.rpartition("/")
            condition = table.name == short
            if domain:
                condition = condition & (table.domain == domain)
    query = select(table).where(condition)
    found = list(await db.scalars(query.with_for_update() if lock else query))
    if not found:
        raise NotFound(kind.word, f"there is no {kind.word} {ref[:80]!r}")
    if len(found) > 1:
        raise BadRequest(f"several domains have a {kind.word} {ref[:80]!r}: say DOMAIN/NAME")
    return found[0]


async def _shown(db: AsyncSession, kind: Kind, row: Any) -> Record:
    shown: Record = {"name": row.username if kind.row is UserRow else row.name}
    if kind.by_id:
        shown["id"] = str(row.id)
    columns = {column.key for column in inspect(kind.row).columns}
    for name, field in kind.fields.items():
        if name in columns:
            shown[name] = field.show(getattr(row, name))
    if kind.row is UserRow:
        query = select(KeyPairRow.policy).where(KeyPairRow.user_id == row.id, KeyPairRow.is_active)
        shown["policy"] = ", ".join(sorted(set(await db.scalars(query))))
    if kind.row is ProjectRow:
        members = (
            select(UserRow.username)
            .join(MembershipRow, MembershipRow.user_id == UserRow.id)
            .where(MembershipRow.project_id == row.id)
            .order_by(UserRow.username)
        )
        shown["members"] = list(await db.scalars(members))
    return shown


async def _consistent(db: AsyncSession, row: Any) -> None:
    """What one field alone cannot say."""
    if isinstance(row, UserRow | ProjectRow):
        await _has_policy(db, row)
    if isinstance(row, ResourceGroupRow) and row.is_default:
        if not row.is_active:
            told = "the default group cannot be switched off: make another one the default first"
            raise InvalidParameters({"is_active": told})
        await db.execute(
            update(ResourceGroupRow)
            .where(ResourceGroupRow.name != row.name)
            .values(is_default=False)
        )
    if isinstance(row, PresetRow):
        memory = row.resource_slots.get("mem")
        if row.shared_memory is not None and memory and row.shared_memory >= memory:
            told = f"it is part of the memory and must be less than {human_bytes(memory)}"
            raise InvalidParameters({"shared_memory": told})
        if row.resource_group is not None:
            query = select(ResourceGroupRow.name).where(ResourceGroupRow.name == row.resource_group)
            if await db.scalar(query) is None:
                told = f"there is no resource group {row.resource_group!r}"
                raise InvalidParameters({"resource_group": told})


def _refuse_own(values: Mapping[str, Any]) -> None:
    """Keep administrators from locking themselves out."""
    told = "you cannot take this from yourself: ask another administrator"
    wanted = {"role": Role.SUPERADMIN, "status": "active"}
    errors = {field: told for field, kept in wanted.items() if values.get(field, kept) != kept}
    if errors:
        raise InvalidParameters(errors)


async def _has_policy(db: AsyncSession, row: UserRow | ProjectRow) -> None:
    """Refuse a resource policy that is not there; one that is stays until this transaction ends."""
    table: Any = UserPolicyRow if isinstance(row, UserRow) else ProjectPolicyRow
    query = select(table.name).where(table.name == row.resource_policy)
    if await db.scalar(query.with_for_update(read=True) if row in db else query) is None:
        word = "user" if isinstance(row, UserRow) else "project"
        told = f"there is no {word} policy {row.resource_policy!r}"
        raise InvalidParameters({"resource_policy": told})


async def _unheld(db: AsyncSession, kind: Kind, row: Any) -> None:
    """Refuse to delete what somebody has, or what new ones get."""
    held: Any = None
    if kind.holders is not None:
        holders: Any = kind.holders
        held = select(holders.username if holders is UserRow else holders.name)
        held = held.where(holders.resource_policy == row.name)
    elif kind.row is ProjectRow:
        held = select(UserRow.username).join(MembershipRow, MembershipRow.user_id == UserRow.id)
        held = held.where(MembershipRow.project_id == row.id)
    names = [] if held is None else sorted(await db.scalars(held))
    if names:
        some = ", ".join(names[:_SOME]) + (", ..." if len(names) > _SOME else "")
        has = "its members are" if kind.row is ProjectRow else "it is the one of"
        raise BadRequest(f"the {kind.word} {row.name!r} is in use: {has} {some}")
    domain = getattr(row, "domain", DEFAULT)
    if kind.heirs and (domain, row.name) == (DEFAULT, DEFAULT):
        raise BadRequest(f"the {kind.word} {DEFAULT!r} stays: new {kind.heirs} get it")
    if isinstance(row, ResourceGroupRow) and row.is_default:
        raise BadRequest(f"{row.name!r} is the default group: make another one the default first")


async def _give_policy(db: AsyncSession, user: UserRow, policy: str) -> None:
    if await db.get(KeyPairPolicyRow, policy) is None:
        raise InvalidParameters({"policy": f"there is no policy {policy!r}"})
    await db.execute(update(KeyPairRow).where(KeyPairRow.user_id == user.id).values(policy=policy))


def _clash(kind: Kind, values: Mapping[str, Any], error: IntegrityError) -> Exception:
    """Another record has the name, or a record that it names is not there."""
    told = str(error.orig).lower()
    if "foreign key" in told:
        return InvalidParameters({"domain": f"there is no domain {values.get('domain')!r}"})
    if "unique" in told or "duplicate" in told:
        if kind.row is UserRow:
            return InvalidParameters({"email": f"{values.get('email')!r} is taken"})
        return InvalidParameters({"name": f"there is a {kind.word} {values.get('name')!r} already"})
    return error
