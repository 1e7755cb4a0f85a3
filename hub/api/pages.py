"""The page for people behind the same address that programs ask for the version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
from jupyterhub.services.auth import HubOAuthCallbackHandler
from tornado.web import HTTPError

from hub.api.authentication import Authentication, Caller
from hub.api.discovery import hello
from hub.api.endpoints import Access, endpoint
from hub.api.handler import ApiHandler

TEMPLATES = Path(__file__).parent.parent / "web" / "templates"
POLICY = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'"

_environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
)


class Root(ApiHandler):
    """Version for programs, sessions for people."""

    paths = ("/", "")

    @endpoint("Version of the API; for browsers the page of sessions", access=Access.PUBLIC)
    async def get(self) -> None:
        """Programs get JSON without proving anything; browsers are sent to the hub to log in."""
        behind_proxy = self.request.path.startswith(self.services.prefix.rstrip("/"))
        if not (behind_proxy and "text/html" in self.request.headers.get("Accept", "")):
            self.answer(hello())
            return
        authentication: Authentication = self.settings["authentication"]
        model = await authentication.hub.get_user(self, sync=False)
        if model is None:
            self.redirect(str(self.get_login_url()))  # type: ignore[no-untyped-call]  # JupyterHub's
            return
        self.caller = Caller(await authentication.known_by_cookie(model))
        self._render()

    def _render(self) -> None:
        services, me = self.services, self.principal
        page = _environment.get_template("sessions.html").render(
            username=me.username,
            is_admin=me.is_superadmin,
            prefix=services.prefix,
            hub_prefix=services.hub_prefix,
            xsrf_token=_text(self.xsrf_token),
        )
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.set_header("Content-Security-Policy", POLICY)
        self.finish(page)


class OAuthCallback(HubOAuthCallbackHandler):
    """Where the hub sends browsers back to after log-in."""

    def initialize(self) -> None:
        """As our OAuth client."""
        authentication: Authentication = self.settings["authentication"]
        self.hub_auth = authentication.hub

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """A sentence instead of a traceback."""
        error = kwargs.get("exc_info", (None, None))[1]
        reason = error.log_message if isinstance(error, HTTPError) else None
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(f"The log-in did not work ({reason or status_code}). Go back and try again.\n")


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


HANDLERS = (Root,)
