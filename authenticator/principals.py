"""Who acts in a request, and the one function that says whether they may."""

import enum
import uuid
from dataclasses import dataclass

from authenticator.problems import Forbidden


class Role(enum.StrEnum):
    """Roles of a user, in Backend.AI's names."""

    USER = "user"
    ADMIN = "admin"
    SUPERADMIN = "superadmin"


class Via(enum.StrEnum):
    """How the caller proved who they are."""

    KEYPAIR = "keypair"
    HUB_TOKEN = "hub-token"  # noqa: S105 - a name, not a secret
    HUB_COOKIE = "hub-cookie"
    HUB = "hub"
    """The hub itself, acting for the user it names."""


class Scope(enum.StrEnum):
    """JupyterHub custom scopes that tokens may carry; key pairs and the hub carry all of them."""

    SESSIONS = "custom:perijove:sessions"
    SESSIONS_READ = "custom:perijove:sessions:read"
    SESSIONS_EXTEND = "custom:perijove:sessions:extend"
    VFOLDER_READ = "custom:perijove:vfolder:read"
    VFOLDER_WRITE = "custom:perijove:vfolder:write"
    ADMIN = "custom:perijove:admin"


ALL_SCOPES = frozenset(Scope)
IMPLIED: dict[Scope, frozenset[Scope]] = {
    Scope.SESSIONS: frozenset({Scope.SESSIONS_READ, Scope.SESSIONS_EXTEND}),
    Scope.VFOLDER_WRITE: frozenset({Scope.VFOLDER_READ}),
}


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated caller."""

    user_id: uuid.UUID
    username: str
    email: str
    role: Role
    domain: str
    access_key: str
    via: Via
    scopes: frozenset[Scope] = ALL_SCOPES

    @property
    def is_superadmin(self) -> bool:
        """Whether the caller may act on everybody's objects."""
        return self.role is Role.SUPERADMIN


def has_scope(principal: Principal, scope: Scope) -> bool:
    """Whether the caller's credential carries ``scope``, directly or implied by a wider one."""
    return any(scope == held or scope in IMPLIED.get(held, ()) for held in principal.scopes)


def may(principal: Principal, scope: Scope, owner_id: uuid.UUID | None = None) -> bool:
    """Whether ``principal`` may do what ``scope`` names on an object of ``owner_id``.

    ``owner_id`` None means an object without an owner: then only the scope counts, and
    ``Scope.ADMIN`` demands the superadmin role besides.
    """
    if not has_scope(principal, scope):
        return False
    if scope is Scope.ADMIN:
        return principal.is_superadmin
    if owner_id is None or owner_id == principal.user_id:
        return True
    return principal.is_superadmin and has_scope(principal, Scope.ADMIN)


def require(principal: Principal, scope: Scope, owner_id: uuid.UUID | None = None) -> None:
    """Raise ``Forbidden`` unless ``may``."""
    if not may(principal, scope, owner_id):
        raise Forbidden(f"{principal.username} may not do this: it needs the scope {scope}")
