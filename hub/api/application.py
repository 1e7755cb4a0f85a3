"""All routes, at the manager's own root and behind the hub's proxy alike."""

from __future__ import annotations

import re
from typing import Any

from tornado.web import Application

from hub.api import (
    administration,
    apps,
    connections,
    discovery,
    execution,
    folders,
    images,
    internal,
    measures,
    nodes,
    openapi,
    pages,
    personal,
    resources,
    session_files,
    sessions,
)
from hub.api.app_doors import AppDoors
from hub.api.app_proxy import app_routes
from hub.api.authentication import Authentication, HubLogin
from hub.api.handler import Base, UnknownPathHandler, log_request
from hub.api.pages import OAuthCallback
from hub.api.services import Services
from spawner.agent.protocol import MAX_FRAME_BYTES

HANDLERS: tuple[type[Base], ...] = (
    *pages.HANDLERS,
    *discovery.HANDLERS,
    *sessions.HANDLERS,
    *measures.HANDLERS,
    *apps.HANDLERS,
    *execution.HANDLERS,
    *session_files.HANDLERS,
    *resources.HANDLERS,
    *administration.HANDLERS,
    *folders.HANDLERS,
    *images.HANDLERS,
    *internal.HANDLERS,
    *connections.HANDLERS,
    *nodes.HANDLERS,
    *personal.HANDLERS,
    *openapi.HANDLERS,
)
"""Literal paths come before those with a name in the same place: the first match counts."""


def routes(prefix: str) -> list[tuple[str, Any]]:
    """Tornado's routes for all handlers, at the root and under ``prefix`` (with slashes around)."""
    found: list[tuple[str, Any]] = []
    for handler in HANDLERS:
        for path in handler.paths:
            pattern = re.sub(r"\\\{\w+\\\}", "([^/]+)", re.escape(path))
            if path:
                found.append((pattern, handler))
            found.append((re.escape(prefix.rstrip("/")) + pattern, handler))
    found.append((re.escape(prefix) + "oauth_callback", OAuthCallback))
    return found


def application(
    services: Services,
    authentication: Authentication,
    apps_login: HubLogin,
    cookie_secret: bytes,
) -> Application:
    """The Tornado application of a manager; who ends it closes its setting ``app_doors``."""
    apps = services.control.apps
    return Application(
        [*app_routes(apps.path), *routes(services.prefix)],
        apps_login=apps_login,
        app_doors=AppDoors(services.identity, apps),
        default_handler_class=UnknownPathHandler,
        log_function=log_request,
        services=services,
        authentication=authentication,
        openapi=openapi.document(HANDLERS),
        cookie_secret=cookie_secret,
        websocket_max_message_size=MAX_FRAME_BYTES,
        websocket_ping_interval=20,
        websocket_ping_timeout=15,
    )
