"""Version discovery, who-am-I, announcements, health: the first things a client asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from authenticator.principals import Role, Via
from authenticator.problems import AuthFailed, BadRequest
from hub.api.endpoints import Access, endpoint
from hub.api.handler import ApiHandler
from hub.api.parameters import param
from hub.api.services import API_VERSION, BACKENDAI_RELEASE


@dataclass(frozen=True, slots=True)
class Echo:
    """Parameters of ``/auth/test``."""

    echo: str = param("Text that is given back.")


@dataclass(frozen=True, slots=True)
class Login:
    """Parameters of ``POST /auth/authorize``."""

    username: str = param("User name or e-mail address.", max_length=254)
    password: str = param("Password.", max_length=1024)
    type: str = param("Kind of credential.", default="keypair", choices=("keypair", "jwt"))
    domain: str = param("Domain of the user.", default="default", max_length=64)


class Announcement(ApiHandler):
    """What administrators want everybody to read."""

    paths = ("/manager/announcement",)

    @endpoint("The announcement of the day", access=Access.PUBLIC)
    async def get(self) -> None:
        """Text and whether there is one."""
        text = self.services.announcement
        self.answer({"enabled": bool(text), "message": text})


class Status(ApiHandler):
    """Whether the manager serves."""

    paths = ("/manager/status",)

    @endpoint("State of the manager", access=Access.PUBLIC)
    async def get(self) -> None:
        """State and number of live sessions."""
        active = await self.services.active_sessions()
        self.answer({"status": "running", "nodes": [], "active_sessions": active})


class Health(ApiHandler):
    """For supervisors and load balancers."""

    paths = ("/health",)

    @endpoint("Whether the manager and its database answer", access=Access.PUBLIC)
    async def get(self) -> None:
        """Asks the database."""
        await self.services.active_sessions()
        self.answer({"status": "ok", "schedules": self.services.control.leads.is_set()})


class AuthTest(ApiHandler):
    """Whether credentials work."""

    paths = ("/auth", "/auth/test")

    @endpoint("Test the credentials", parameters=Echo)
    async def get(self, given: Echo) -> None:
        """Echo a text."""
        self.answer({"authorized": "yes", "echo": given.echo})

    @endpoint("Test the credentials", parameters=Echo)
    async def post(self, given: Echo) -> None:
        """Echo a text."""
        self.answer({"authorized": "yes", "echo": given.echo})


class AuthRole(ApiHandler):
    """What the caller is."""

    paths = ("/auth/role",)

    @endpoint("Roles of the caller")
    async def get(self) -> None:
        """Global, domain and project role."""
        role = self.principal.role
        self.answer(
            {
                "global_role": "superadmin" if role is Role.SUPERADMIN else "user",
                "domain_role": role.value,
                "group_role": "user" if role is Role.USER else "admin",
            }
        )


class Authorize(ApiHandler):
    """From password to key pair."""

    paths = ("/auth/authorize",)

    @endpoint("Exchange a password for the key pair", access=Access.PUBLIC, parameters=Login)
    async def post(self, given: Login) -> None:
        """The caller's key pair."""
        if given.type != "keypair":
            raise BadRequest("Unsupported authorization type: use keypair")
        services = self.services
        remote = self.request.remote_ip or ""
        user = await services.identity.log_in(given.username, given.password, remote)
        if user.domain != given.domain or user.main_access_key is None:
            raise AuthFailed("User credential mismatch.")
        owner, secret = await services.identity.principal_by_access_key(user.main_access_key)
        data = {
            "access_key": owner.access_key,
            "secret_key": secret,
            "role": owner.role.value,
            "status": user.status,
        }
        self.answer({"data": data})


class Hello(ApiHandler):
    """The root: the version for programs (the page for people is ``hub.api.pages``)."""

    paths = ("/version",)

    @endpoint("Version of the API", access=Access.PUBLIC)
    async def get(self) -> None:
        """Version of the wire protocol and of the Backend.AI release it is from."""
        self.answer(hello())


def hello() -> dict[str, Any]:
    """The answer that clients negotiate with."""
    return {"version": API_VERSION, "manager": BACKENDAI_RELEASE}


class Me(ApiHandler):
    """The caller as the manager knows them."""

    paths = ("/me",)

    @endpoint("Who the caller is")
    async def get(self) -> None:
        """Name, role, domain, key and scopes."""
        me = self.principal
        self.answer(
            {
                "username": me.username,
                "email": me.email,
                "role": me.role.value,
                "domain": me.domain,
                "access_key": me.access_key,
                "via": me.via.value,
                "scopes": sorted(me.scopes),
                "is_hub": me.via is Via.HUB,
            }
        )


HANDLERS = (Announcement, Status, Health, AuthTest, AuthRole, Authorize, Hello, Me)
