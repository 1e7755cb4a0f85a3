"""What the hub and the supervisor ask: log-in, the spawn form, servers, shutdown, metrics."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass

import prometheus_client

from authenticator.principals import Role
from hub.api import views
from hub.api.endpoints import Access, endpoint
from hub.api.handler import ApiHandler
from hub.api.parameters import param

SHUTDOWN_WITHIN = 20.0
"""Seconds in which sessions should have ended."""


@dataclass(frozen=True, slots=True)
class HubLogin:
    """Parameters of ``POST /internal/login``."""

    username: str = param("User name.")
    password: str = param("Password.")
    remote: str = param("Address of the browser.", default="", max_length=100)


@dataclass(frozen=True, slots=True)
class Check:
    """Parameters of ``POST /internal/check``."""

    image: str | None = param("Image.", default=None, max_length=255)
    resource_group: str | None = param("Resource group.", default=None, max_length=64)
    slots: dict[str, object] = param("Amounts by slot.", factory=dict)
    shmem: object = param("Shared memory.", default=None)


@dataclass(frozen=True, slots=True)
class OfHub:
    """Which hub's servers."""

    hub: str = param("Id of the hub.", max_length=64)


class InternalLogin(ApiHandler):
    """Passwords are checked here and nowhere else."""

    paths = ("/internal/login",)

    @endpoint("Check a password for the hub", access=Access.HUB, parameters=HubLogin)
    async def post(self, given: HubLogin) -> None:
        """Who it is."""
        identity = self.services.identity
        user = await identity.log_in(given.username, given.password, given.remote)
        self.answer(_user(user.username, user.email, user.full_name, user.role, user.status))


class InternalUser(ApiHandler):
    """Whether somebody may still come in."""

    paths = ("/internal/users/{username}",)

    @endpoint("Describe a user for the hub", access=Access.HUB)
    async def get(self, username: str) -> None:
        """Name, address, rights and whether the account is active."""
        user = await self.services.identity.user_by_name(username)
        self.answer(_user(user.username, user.email, user.full_name, user.role, user.status))


class SpawnOptions(ApiHandler):
    """The spawn form's content."""

    paths = ("/internal/spawn-options",)

    @endpoint("What the spawn form shows a user", access=Access.HUB_USER)
    async def get(self) -> None:
        """Presets with verdicts, groups, images."""
        self.answer(await self.services.control.offers.spawn_options(self.principal))


class SpawnCheck(ApiHandler):
    """The spawn form's verdict."""

    paths = ("/internal/check",)

    @endpoint(
        "Whether a request would fit now, later or never", access=Access.HUB_USER, parameters=Check
    )
    async def post(self, given: Check) -> None:
        """Nothing is reserved."""
        check = await self.services.control.offers.dry_run(
            self.principal,
            image=given.image,
            resource_group=given.resource_group,
            slots=given.slots,
            shmem=given.shmem,
        )
        self.answer(check)


class Servers(ApiHandler):
    """All live ones of a hub, in one answer."""

    paths = ("/internal/servers",)

    @endpoint("Live sessions that a hub started", access=Access.HUB, parameters=OfHub)
    async def get(self, given: OfHub) -> None:
        """For the Spawner's polls."""
        found = await self.services.control.sessions.servers(given.hub)
        self.answer({"servers": [views.server(each) for each in found]})


class Server(ApiHandler):
    """One of them, also after its end."""

    paths = ("/internal/servers/{name}",)

    @endpoint(
        "The newest session of a name, also when it ended", access=Access.HUB_USER, parameters=OfHub
    )
    async def get(self, name: str, given: OfHub) -> None:
        """With address or exit code."""
        found = await self.services.control.sessions.server(given.hub, self.principal, name)
        self.answer(views.server(found))


class Shutdown(ApiHandler):
    """Ctrl-C."""

    paths = ("/internal/shutdown",)

    @endpoint("End all sessions", access=Access.HUB)
    async def post(self) -> None:
        """Answers when none is left, or after a while with how many there are."""
        sessions = self.services.control.sessions
        loop = asyncio.get_running_loop()
        deadline = loop.time() + SHUTDOWN_WITHIN
        with sessions.bus.subscribe(lambda event: event.name.startswith("session_")) as changes:
            left = await sessions.end_all(self.request_id)
            while left and loop.time() < deadline:
                with suppress(TimeoutError):  # look again all the same
                    await changes.get(min(2.0, deadline - loop.time()))
                left = await sessions.end_all(self.request_id)
        self.answer({"remaining": left})


class Metrics(ApiHandler):
    """For Prometheus."""

    paths = ("/metrics",)

    @endpoint("Metrics of the manager", access=Access.OPERATOR, produces="text/plain")
    async def get(self) -> None:
        """The engine's metrics and the process's own."""
        engine = await self.services.control.render_metrics()
        self.set_header("Content-Type", prometheus_client.CONTENT_TYPE_LATEST)
        self.finish(engine + prometheus_client.generate_latest())


def _user(username: str, email: str, full_name: str, role: str, status: str) -> dict[str, object]:
    return {
        "username": username,
        "email": email,
        "full_name": full_name,
        "is_admin": role == Role.SUPERADMIN,
        "status": status,
    }


HANDLERS = (
    InternalLogin,
    InternalUser,
    SpawnOptions,
    SpawnCheck,
    Servers,
    Server,
    Shutdown,
    Metrics,
)
