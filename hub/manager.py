"""The manager process: database, use cases and control plane behind one HTTP server."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
import os
import signal
import ssl
from collections.abc import Mapping
from typing import Any

from prometheus_client import generate_latest
from sqlalchemy.ext.asyncio import AsyncSession
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from traitlets import Dict, Float, Integer, List, TraitError, Unicode, default, validate
from traitlets.config import Configurable

from authenticator.identity import IdentityService
from authenticator.keypairs import KeyPairService
from hub.api.application import application
from hub.api.authentication import (
    APPS,
    CACHE_SECONDS,
    Authentication,
    cookie_secret,
    hub_login,
)
from hub.api.handler import MAX_BODY
from hub.api.services import Services
from hub.config.deployment import Deployment, apps_token
from hub.first_start import now
from spawner.addresses import address
from spawner.monitors.registry import Monitors, of_loop
from spawner.sessions.callbacks import CallbackRules
from spawner.sessions.control import ControlPlane, ControlSettings
from spawner.sessions.plugins import load_policies
from spawner.sessions.tokens import find
from store import schema
from store.database import Store
from vfolder.folders import FolderService
from vfolder.volumes.local import LocalVolume

log = logging.getLogger(__name__)


class ManagerError(Exception):
    """The manager cannot begin; one sentence for the operator."""


class ManagerConfig(Configurable):
    """Settings of a manager. Secrets come from the environment: PERIJOVE_HUB_SECRET (hub to manager),
    PERIJOVE_SERVICE_TOKEN (manager to hub) and PERIJOVE_AGENT_TOKEN (the deployment's own agent)."""

    bind = List(
        Unicode(),
        help="""Addresses to listen on, each HOST:PORT. Default: the deployment's own address. Sessions
        and agents of other nodes must be able to reach one of them.""",
    ).tag(config=True)
    tls_bind = List(
        Unicode(),
        help="""Addresses to listen on with TLS, each HOST:PORT, for agents of other nodes and clients. They need
        `tls_certificate`.""",
    ).tag(config=True)
    tls_certificate = Unicode(help="The manager's certificate, with its chain.").tag(config=True)
    tls_key = Unicode(help="Its private key. Default: in that same file.").tag(config=True)
    tls_client_ca = Unicode(
        help="""Certificate authorities of the agents. When given, an agent of another node must dial one of
        `tls_bind` and show a certificate that has its id among its names."""
    ).tag(config=True)
    hub_api_url = Unicode(
        help="REST API of the hub, for checking its tokens. Default: the deployment's hub."
    ).tag(config=True)
    hub_cache_max_age = Integer(
        CACHE_SECONDS,
        min=1,
        help="""Seconds for which the manager believes what the hub said of a token or a browser's log-in: that long a
        token may still work that was revoked. Other services of JupyterHub believe it for 300
        (`HubAuth.cache_max_age`).""",
    ).tag(config=True)
    hub_prefix = Unicode(help="Path of the hub as browsers see it. Default: the deployment's.").tag(
        config=True
    )
    service_prefix = Unicode(
        help="Path of the manager behind the hub's proxy. Default: the deployment's."
    ).tag(config=True)
    apps_prefix = Unicode(
        help="Path of sessions' apps behind the hub's proxy. Default: the deployment's."
    ).tag(config=True)
    volumes = Dict(
        help="""Volumes that hold folders: name to path, the default one first. Default: `local` in the
        state folder."""
    ).tag(config=True)
    folder_owner: Any = List(
        help="""User and group id that own folders: those that sessions run under. Default: 1000 and
        1000 when the manager is root (whose sessions run in containers), else nobody else."""
    ).tag(config=True)
    announcement = Unicode(help="A text that clients show to everybody.").tag(config=True)
    tick = Float(
        30.0, min=0.1, help="Seconds between looks at everything, should a hint get lost."
    ).tag(config=True)
    heartbeat_interval = Float(
        10.0, min=0.1, help="Seconds between signs of life of an agent."
    ).tag(config=True)
    agent_timeout = Float(
        40.0, min=1, help="Seconds without a sign of life after which an agent counts as lost."
    ).tag(config=True)
    history_days = Float(
        90.0,
        min=0,
        help="""Days after the end of a session for which the attempts to schedule it and the messages to its
        owner are kept, and for which it is known what happened to agents. Transitions of sessions stay.""",
    ).tag(config=True)

    callback_allow = List(
        Unicode(),
        help="""Where what happens to a session may be posted (`callback_url` of a request): networks such as
        10.1.0.0/16, addresses, and host names, which are trusted whatever address they have. Default: nowhere.""",
    ).tag(config=True)

    @validate("callback_allow")
    def _valid_callback_allow(self, proposal: dict[str, Any]) -> list[str]:
        try:
            CallbackRules.read(proposal["value"])
        except ValueError as error:
            raise TraitError(f"callback_allow: {error}") from error
        return list(proposal["value"])

    @default("volumes")
    def _default_volumes(self) -> dict[str, str]:
        return {"local": str(Deployment(parent=self.parent).volume)}

    def tls(self) -> ssl.SSLContext:
        """The certificate that is shown, and how those of agents are checked. Raises ``ManagerError``."""
        if not self.tls_certificate:
            raise ManagerError("tls_bind is set, but there is no tls_certificate")
        try:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(self.tls_certificate, self.tls_key or None)
            if self.tls_client_ca:
                context.load_verify_locations(cafile=self.tls_client_ca)
                context.verify_mode = ssl.CERT_OPTIONAL  # browsers and clients have none
        except OSError as error:  # ssl.SSLError is one
            files = ", ".join(
                each for each in (self.tls_certificate, self.tls_key, self.tls_client_ca) if each
            )
            raise ManagerError(f"certificates {files}: {error.strerror or error}") from error
        return context

    @validate("bind", "tls_bind")
    def _valid_bind(self, proposal: dict[str, Any]) -> list[str]:
        for text in proposal["value"]:
            address(text)
        return list(proposal["value"])


class Manager:
    """One manager; ``run`` serves until SIGTERM or SIGINT."""

    def __init__(
        self, config: ManagerConfig, deployment: Deployment, environ: Mapping[str, str] = os.environ
    ) -> None:
        self._config, self._deployment = config, deployment
        self._monitors = Monitors(parent=config)
        self._addresses = deployment.addresses()
        self._secrets = {
            name: environ.get(name, "")
            for name in ("PERIJOVE_HUB_SECRET", "PERIJOVE_SERVICE_TOKEN", "PERIJOVE_AGENT_TOKEN")
        }
        for name in ("PERIJOVE_HUB_SECRET", "PERIJOVE_SERVICE_TOKEN"):
            if not self._secrets[name]:
                raise ManagerError(f"the environment variable {name} is missing")
        self.ports: list[int] = []
        """Ports that are listened on, once ``start`` returned."""

    async def run(self) -> None:
        """Serve until a signal. Raises ``ManagerError``, ``SchemaMismatch``, ``StoreError``."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        async with contextlib.AsyncExitStack() as stack:
            await self.start(stack)
            log.info("the manager listens on ports %s", self.ports)
            await stop.wait()
            log.info("the manager stops; sessions go on")

    async def start(self, stack: contextlib.AsyncExitStack) -> None:
        """Begin to serve; ``stack`` ends everything in reverse order."""
        url = self._deployment.db_url
        await asyncio.to_thread(schema.check, url)
        store = Store(url)
        await store.open()
        stack.push_async_callback(store.close)
        identity = IdentityService(store, now)
        await identity.bootstrap()
        folders = FolderService(store, self._volumes(), now)
        control = ControlPlane(store, folders, now, self._control_settings(), load_policies())
        folders.in_use = control.sessions.mounted
        await folders.resume()
        await control.start()
        stack.push_async_callback(control.stop)

        async def metrics() -> bytes:
            return await control.render_metrics() + generate_latest()

        await stack.enter_async_context(self._monitors.start("manager", of_loop(metrics)))
        keypairs = KeyPairService(store, now)
        await self._serve(stack, self._services(store, identity, keypairs, folders, control))

    async def _serve(self, stack: contextlib.AsyncExitStack, services: Services) -> None:
        """Listen; on the way out, stop listening before anything else is closed."""
        hub_secret = self._secrets["PERIJOVE_HUB_SECRET"]

        async def agent_known(token: str) -> bool:
            async def work(db: AsyncSession) -> bool:
                return await find(db, token, now=now()) is not None

            return await services.store.read(work)

        authentication = Authentication(
            services.identity,
            services.keypairs,
            now,
            hub=hub_login(
                self._config.hub_api_url or self._addresses.hub_api_url,
                services.hub_prefix,
                services.prefix,
                self._secrets["PERIJOVE_SERVICE_TOKEN"],
                cache_max_age=self._config.hub_cache_max_age,
            ),
            hub_secret=hub_secret,
            agent_known=agent_known,
        )
        apps_login = hub_login(
            self._config.hub_api_url or self._addresses.hub_api_url,
            services.hub_prefix,
            services.control.apps.path,
            apps_token(self._secrets["PERIJOVE_SERVICE_TOKEN"]),
            APPS,
            cache_max_age=self._config.hub_cache_max_age,
        )
        app = application(services, authentication, apps_login, cookie_secret(hub_secret))
        stack.push_async_callback(app.settings["app_doors"].close)
        server = HTTPServer(
            app, xheaders=True, max_body_size=2 * MAX_BODY, idle_connection_timeout=600
        )
        own = f"{self._addresses.host}:{self._addresses.manager_port}"
        self._listen(stack, server, self._config.bind or [own])
        if self._config.tls_bind:
            secure = HTTPServer(
                app,
                ssl_options=self._config.tls(),
                max_body_size=2 * MAX_BODY,
                idle_connection_timeout=600,
            )
            self._listen(stack, secure, self._config.tls_bind)

    def _listen(self, stack: contextlib.AsyncExitStack, server: HTTPServer, on: list[str]) -> None:
        for text in on:
            host, port = address(text)
            try:
                sockets = bind_sockets(port, host or None)
            except OSError as error:
                raise ManagerError(f"cannot listen on {text}: {error.strerror}") from error
            server.add_sockets(sockets)
            self.ports += [each.getsockname()[1] for each in sockets]
        stack.push_async_callback(server.close_all_connections)
        stack.callback(server.stop)

    def _volumes(self) -> list[LocalVolume]:
        owner = tuple(self._config.folder_owner) or ((1000, 1000) if os.geteuid() == 0 else None)
        if owner is not None and (len(owner) != 2 or not all(isinstance(i, int) for i in owner)):
            raise ManagerError(f"folder_owner is {list(owner)!r}: give a user id and a group id")
        return [LocalVolume(name, path, owner) for name, path in self._config.volumes.items()]

    def _control_settings(self) -> ControlSettings:
        return ControlSettings(
            tick=self._config.tick,
            heartbeat_interval=self._config.heartbeat_interval,
            agent_timeout=self._config.agent_timeout,
            history=dt.timedelta(days=self._config.history_days),
            agent_token=self._secrets["PERIJOVE_AGENT_TOKEN"] or None,
            apps_path=self._config.apps_prefix or self._addresses.apps_prefix,
            callbacks=CallbackRules.read(self._config.callback_allow),
        )

    def _services(
        self,
        store: Store,
        identity: IdentityService,
        keypairs: KeyPairService,
        folders: FolderService,
        control: ControlPlane,
    ) -> Services:
        return Services(
            store=store,
            identity=identity,
            keypairs=keypairs,
            folders=folders,
            control=control,
            now=now,
            prefix=self._config.service_prefix or self._addresses.service_prefix,
            hub_prefix=self._config.hub_prefix or f"{self._addresses.base_url}hub/",
            announcement=self._config.announcement,
            agents_show_certificates=bool(self._config.tls_client_ca),
        )
