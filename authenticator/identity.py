"""Users and how they are recognised: log-in, key pairs, names vouched for by the hub.

``set_password``, ``set_status``, ``set_role`` and ``create_user`` act for an operator of the deployment; an API
route that offers them demands ``Scope.ADMIN`` first.
"""

import datetime as dt
import logging
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import ColumnElement, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from authenticator import passwords
from authenticator.passwords import Passwords
from authenticator.principals import ALL_SCOPES, Principal, Role, Scope, Via
from authenticator.problems import (
    WRONG_CREDENTIALS,
    AuthFailed,
    InvalidParameters,
    NotFound,
    RateLimited,
)
from authenticator.ratelimit import LoginThrottle
from authenticator.tables import (
    DomainRow,
    KeyPairPolicyRow,
    KeyPairRow,
    MembershipRow,
    ProjectPolicyRow,
    ProjectRow,
    UserPolicyRow,
    UserRow,
)
from store.database import Store
from store.making import make_missing

DEFAULT = "default"
"""Name of the domain, the project and the policies that bootstrap makes."""
MAX_USERNAME = 64
MAX_EMAIL = 254
STATUSES = ("active", "inactive", "before-verification")

_USERNAME = re.compile(r"[a-z0-9](?:[a-z0-9._@+-]{0,62}[a-z0-9_-])?")
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NewUser:
    """A user that was just made, with the secrets that are shown once."""

    user: UserRow
    password: str | None
    """The generated password; None when one was given or log-in happens elsewhere."""
    access_key: str
    secret_key: str


def username_error(username: str) -> str | None:
    """Why a name cannot be a new local user's, as a sentence with the name; None when it can."""
    if len(username) > MAX_USERNAME:
        return f"{username[:16]!r}... has {len(username)} characters, at most {MAX_USERNAME} are allowed"
    if not _USERNAME.fullmatch(username):
        return (
            f"{username!r} must begin with a small letter or digit and consist of small letters, "
            "digits, '.', '_', '-', '@' and '+' (JupyterHub writes all names small)"
        )
    return None


def foreign_username_error(username: str) -> str | None:
    """Why a name that another authenticator vouches for cannot be kept; laxer than for local users."""
    if not username or len(username) > MAX_USERNAME:
        return f"it has {len(username)} characters, 1 to {MAX_USERNAME} are allowed"
    if username != username.strip() or "/" in username or set(username) == {"."}:
        return f"{username!r} has spaces around it, a '/', or dots only"
    if not username.isprintable():
        return f"{username!r} contains a character that cannot be printed"
    return None


class IdentityService:
    """Domains, projects, users and key pairs of this deployment."""

    def __init__(
        self,
        store: Store,
        now: Callable[[], dt.datetime],
        hasher: Passwords | None = None,
    ) -> None:
        self._store = store
        self._now = now
        self._passwords = hasher or Passwords()
        self._by_name = LoginThrottle(free=5)
        self._by_address = LoginThrottle(free=30)

    async def bootstrap(self) -> None:
        """Make the default domain, project and policies where they are missing; change nothing else."""

        async def work(session: AsyncSession) -> None:
            now = self._now()
            if await session.get(DomainRow, DEFAULT) is None:
                session.add(DomainRow(name=DEFAULT, description="Everybody", created_at=now))
                await session.flush()
            if await _project(session, DEFAULT, DEFAULT) is None:
                session.add(
                    ProjectRow(
                        id=uuid.uuid4(),
                        domain=DEFAULT,
                        name=DEFAULT,
                        description="Everybody's project",
                        created_at=now,
                    )
                )
            if await session.get(KeyPairPolicyRow, DEFAULT) is None:
                session.add(
                    KeyPairPolicyRow(
                        name=DEFAULT,
                        total_resource_slots=None,
                        max_concurrent_sessions=30,
                        max_pending_sessions=100,
                        created_at=now,
                    )
                )
            if await session.get(UserPolicyRow, DEFAULT) is None:
                session.add(
                    UserPolicyRow(
                        name=DEFAULT,
                        max_vfolder_count=50,
                        max_customized_image_count=3,
                        created_at=now,
                    )
                )
            if await session.get(ProjectPolicyRow, DEFAULT) is None:
                session.add(ProjectPolicyRow(name=DEFAULT, created_at=now))

        await make_missing(self._store, work)

    async def create_user(
        self,
        username: str,
        *,
        password: str | None = None,
        with_password: bool = True,
        email: str | None = None,
        full_name: str = "",
        role: Role = Role.USER,
        domain: str = DEFAULT,
        project: str = DEFAULT,
    ) -> NewUser:
        """A new active user with a main key pair, in ``project``.

        Without ``password`` one is generated, or none kept when not ``with_password`` (log-in elsewhere).
        Raises ``InvalidParameters`` with every wrong field at once; then nothing was made.
        """
        address = email if email is not None else f"{username}@localhost"
        errors = {"username": username_error(username), "email": email_error(address)}
        if password is not None:
            errors["password"] = passwords.password_error(password, username)
        _refuse(errors)
        generated = passwords.generate_password() if password is None and with_password else None
        chosen = password or generated
        user = UserRow(
            id=uuid.uuid4(),
            username=username,
            email=address,
            full_name=full_name,
            password_hash=None if chosen is None else await self._passwords.hash(chosen),
            password_changed_at=None if chosen is None else self._now(),
            domain=domain,
            role=role.value,
            status="active",
        )
        pair = await self._insert(user, project)
        return NewUser(user, generated, pair.access_key, pair.secret_key)

    async def log_in(self, username: str, password: str, remote: str) -> UserRow:
        """The active user with this name and password.

        Raises ``AuthFailed``, the same for an unknown user, a wrong password and a disabled user (and after
        the same work), or ``RateLimited`` after repeated failures under this name or from this address.
        """
        now = self._now()
        name = username.strip().lower()[: MAX_USERNAME + 1]
        keys = ((self._by_name, name), (self._by_address, remote[:64]))
        wait = max(throttle.wait(key, now) for throttle, key in keys).total_seconds()
        if wait > 0:
            raise RateLimited(
                f"Too many failed log-ins: try again in {round(wait + 0.5)} seconds.", wait
            )
        for throttle, key in keys:
            throttle.attempt(key, now)
        user = await self._find(UserRow.username == name)
        right = await self._passwords.matches(user.password_hash if user else None, password)
        if user is None or user.password_hash is None or not right or user.status != "active":
            log.info("log-in refused for %r from %s", name[:32], remote[:64])
            raise AuthFailed(WRONG_CREDENTIALS)
        self._by_name.succeeded(name)
        self._by_address.refund(remote[:64])
        if self._passwords.is_outdated(user.password_hash):
            await self._rehash(user, password)
        return user

    async def principal_by_access_key(self, access_key: str) -> tuple[Principal, str]:
        """The owner of an access key, and the secret key that checks the signature.

        Only the active main key pair of an active user counts; raises ``AuthFailed`` otherwise.
        """

        async def work(session: AsyncSession) -> tuple[UserRow, KeyPairRow] | None:
            query = (
                select(UserRow, KeyPairRow)
                .join(KeyPairRow, UserRow.main_access_key == KeyPairRow.access_key)
                .where(
                    KeyPairRow.access_key == access_key,
                    KeyPairRow.user_id == UserRow.id,
                    KeyPairRow.is_active,
                    UserRow.status == "active",
                )
            )
            found = (await session.execute(query)).one_or_none()
            return None if found is None else (found[0], found[1])

        found = await self._store.read(work)
        if found is None:
            raise AuthFailed("Access key not found")
        user, pair = found
        return _principal(user, Via.KEYPAIR, ALL_SCOPES), pair.secret_key

    async def principal_by_username(
        self,
        username: str,
        via: Via,
        scopes: frozenset[Scope] = ALL_SCOPES,
        *,
        create: bool = False,
    ) -> Principal:
        """The active user of this name, for whom somebody we trust vouches.

        ``create`` makes an unknown user (no password, default project and policy): the hub may use
        another authenticator. Raises ``AuthFailed`` for unknown and disabled users.
        """
        user = await self._find(UserRow.username == username)
        if user is None and create:
            user = await self._provision(username)
        if user is None or user.status != "active":
            raise AuthFailed(f"User {username[:MAX_USERNAME]!r} is unknown or disabled")
        return _principal(user, via, scopes)

    async def user_by_name(self, username: str) -> UserRow:
        """The user of this name, whatever their status; raises ``NotFound``."""
        user = await self._find(UserRow.username == username)
        if user is None:
            raise NotFound("user", f"there is no user {username[:MAX_USERNAME]!r}")
        return user

    async def list_users(self) -> list[UserRow]:
        """All users, by name."""

        async def work(session: AsyncSession) -> list[UserRow]:
            return list((await session.scalars(select(UserRow).order_by(UserRow.username))).all())

        return await self._store.read(work)

    async def set_password(self, username: str, password: str | None = None) -> str | None:
        """Give a user a new password; without one it is generated and returned.

        Raises ``NotFound`` or ``InvalidParameters``.
        """
        if password is not None:
            _refuse({"password": passwords.password_error(password, username)})
        chosen = password if password is not None else passwords.generate_password()
        await self.user_by_name(username)
        hashed = await self._passwords.hash(chosen)

        def change(user: UserRow) -> None:
            user.password_hash, user.password_changed_at = hashed, self._now()

        await self._change(username, change)
        self._by_name.succeeded(username)
        return chosen if password is None else None

    async def set_status(self, username: str, status: str) -> UserRow:
        """Enable (``active``) or disable (``inactive``) a user. Raises ``NotFound``, ``InvalidParameters``."""
        if status not in STATUSES:
            raise InvalidParameters({"status": f"{status!r} is none of {', '.join(STATUSES)}"})

        def change(user: UserRow) -> None:
            user.status = status

        return await self._change(username, change)

    async def set_role(self, username: str, role: Role) -> UserRow:
        """Make a user an administrator, or no more. Raises ``NotFound``."""

        async def work(session: AsyncSession) -> UserRow:
            user = await _user(session, username)
            user.role = role.value
            query = select(KeyPairRow).where(KeyPairRow.user_id == user.id)
            for pair in await session.scalars(query):
                pair.is_admin = role is not Role.USER
            return user

        return await self._store.write(work)

    async def _find(self, condition: ColumnElement[bool]) -> UserRow | None:
        async def work(session: AsyncSession) -> UserRow | None:
            return (await session.scalars(select(UserRow).where(condition))).one_or_none()

        return await self._store.read(work)

    async def _change(self, username: str, change: Callable[[UserRow], None]) -> UserRow:
        async def work(session: AsyncSession) -> UserRow:
            user = await _user(session, username)
            change(user)
            return user

        return await self._store.write(work)

    async def _insert(self, user: UserRow, project: str) -> KeyPairRow:
        """Write a user, the main key pair and the membership in one go."""
        user.created_at = self._now()
        pair = new_key_pair(user, self._now())
        user.main_access_key = pair.access_key

        async def work(session: AsyncSession) -> None:
            place = await _project(session, user.domain, project)
            taken = {
                "username": await _taken(session, UserRow.username, user.username),
                "email": await _taken(session, UserRow.email, user.email),
                "project": None
                if place is not None
                else f"there is no project {project!r} in the domain {user.domain!r}",
            }
            _refuse(taken)
            assert place is not None  # noqa: S101 - _refuse raised otherwise
            session.add(user)
            await session.flush()
            session.add(pair)
            session.add(MembershipRow(user_id=user.id, project_id=place.id))

        try:
            await self._store.write(work)
        except IntegrityError as error:  # another manager made the same user at the same moment
            raise InvalidParameters({"username": f"{user.username!r} is taken"}) from error
        return pair

    async def _provision(self, username: str) -> UserRow | None:
        """Make a user for whom the hub vouches, or find the one that another request made meanwhile."""
        reason = foreign_username_error(username)
        if reason is not None:
            raise InvalidParameters({"username": reason})
        identity = uuid.uuid4()
        address = username if email_error(username) is None else f"{username}@localhost"
        if await self._find(UserRow.email == address) is not None:
            address = f"{identity}@localhost"
        user = UserRow(
            id=identity,
            username=username,
            email=address,
            domain=DEFAULT,
            role=Role.USER.value,
            status="active",
        )
        try:
            await self._insert(user, DEFAULT)
        except InvalidParameters as error:
            if "username" not in error.fields and "email" not in error.fields:
                raise
            return await self._find(UserRow.username == username)
        log.info("user %r made for the hub", username)
        return user

    async def _rehash(self, user: UserRow, password: str) -> None:
        """Replace a hash of old parameters, unless the password was changed meanwhile."""
        old, new = user.password_hash, await self._passwords.hash(password)

        def change(row: UserRow) -> None:
            if row.password_hash == old:
                row.password_hash = new

        await self._change(user.username, change)


def new_key_pair(user: UserRow, now: dt.datetime, policy: str = DEFAULT) -> KeyPairRow:
    """A fresh active key pair for ``user``, not yet stored."""
    return KeyPairRow(
        access_key=passwords.generate_access_key(),
        secret_key=passwords.generate_secret_key(),
        user_id=user.id,
        policy=policy,
        is_active=True,
        is_admin=user.role != Role.USER,
        created_at=now,
    )


def _principal(user: UserRow, via: Via, scopes: frozenset[Scope]) -> Principal:
    return Principal(
        user_id=user.id,
        username=user.username,
        email=user.email,
        role=Role(user.role),
        domain=user.domain,
        access_key=user.main_access_key or "",
        via=via,
        scopes=scopes,
    )


async def _user(session: AsyncSession, username: str) -> UserRow:
    found = await session.scalars(select(UserRow).where(UserRow.username == username))
    user = found.one_or_none()
    if user is None:
        raise NotFound("user", f"there is no user {username[:MAX_USERNAME]!r}")
    return user


async def _project(session: AsyncSession, domain: str, name: str) -> ProjectRow | None:
    query = select(ProjectRow).where(ProjectRow.domain == domain, ProjectRow.name == name)
    return (await session.scalars(query)).one_or_none()


async def _taken(
    session: AsyncSession, column: InstrumentedAttribute[str], value: str
) -> str | None:
    found = await session.scalar(select(UserRow.id).where(column == value))
    return None if found is None else f"{value!r} is taken"


def email_error(email: str) -> str | None:
    """Why a text is no address, as a sentence; None when it is one."""
    if len(email) > MAX_EMAIL:
        return f"it has {len(email)} characters, at most {MAX_EMAIL} are allowed"
    if not _EMAIL.fullmatch(email):
        return f"{email!r} is not an address of the form name@host"
    return None


def _refuse(errors: dict[str, str | None]) -> None:
    """Raise ``InvalidParameters`` with the fields that have an error, if any."""
    wrong = {field: reason for field, reason in errors.items() if reason is not None}
    if wrong:
        raise InvalidParameters(wrong)
