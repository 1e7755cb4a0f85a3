"""Pages for people: the sessions, behind the same address that programs ask for the version, and a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
from jupyterhub.services.auth import HubOAuthCallbackHandler
from tornado.web import HTTPError

from authenticator.principals import Scope
from authenticator.problems import AuthFailed
from hub.api.authentication import Authentication, Caller
from hub.api.discovery import hello
from hub.api.endpoints import Access, endpoint
from hub.api.handler import ApiHandler

TEMPLATES = Path(__file__).parent.parent / "web" / "templates"
POLICY = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'"
TERMINAL_POLICY = f"{POLICY}; style-src 'self' 'unsafe-inline'"
"""xterm.js writes style elements for its colours and the width of its characters."""

_environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
)


class Page(ApiHandler):
    """A page that browsers reach behind the hub's proxy."""

    @property
    def asked_by_browser(self) -> bool:
        """Whether a person waits for a page, not a program for an answer."""
        behind_proxy = self.request.path.startswith(self.services.prefix.rstrip("/"))
        return behind_proxy and "text/html" in self.request.headers.get("Accept", "")

    def to_log_in(self) -> None:
        """Send the browser to the hub, which sends it back here."""
        self.redirect(str(self.get_login_url()))  # type: ignore[no-untyped-call]  # JupyterHub's

    def show(self, template: str, policy: str, **facts: Any) -> None:
        """Finish with the page that the template makes of ``facts`` and of what all pages are told."""
        page = render(
            template,
            username=self.principal.username,
            prefix=self.services.prefix,
            hub_prefix=self.services.hub_prefix,
            xsrf_token=_text(self.xsrf_token),
            **facts,
        )
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.set_header("Content-Security-Policy", policy)
        self.finish(page)


class Root(Page):
    """Version for programs, sessions for people."""

    paths = ("/", "")

    @endpoint("Version of the API; for browsers the page of sessions", access=Access.PUBLIC)
    async def get(self) -> None:
        """Programs get JSON without proving anything; browsers are sent to the hub to log in."""
        if not self.asked_by_browser:
            self.answer(hello())
            return
        authentication: Authentication = self.settings["authentication"]
        principal = await authentication.by_cookie(self)
        if principal is None:
            self.to_log_in()
            return
        self.caller = Caller(principal)
        self.show("sessions.html", POLICY, is_admin=self.principal.is_superadmin)


class TerminalPage(Page):
    """A terminal in the browser; its shell is the WebSocket ``/stream/session/{session}/pty``."""

    paths = ("/session/{session}/terminal",)

    async def prepare(self) -> None:
        """As everywhere, but a browser is sent to log in."""
        try:
            await super().prepare()
        except AuthFailed:
            if not self.asked_by_browser:
                raise
            self.to_log_in()

    @endpoint("Page with a terminal", scope=Scope.SESSIONS, produces="text/html")
    async def get(self, session: str) -> None:
        """For whoever may open the session's apps; the shell is started by the page."""
        found = (await self.services.control.sessions.get(self.principal, session)).session
        self.show("terminal.html", TERMINAL_POLICY, session_id=str(found.id), name=found.name)


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


def render(template: str, **facts: Any) -> str:
    """The page that a template makes of ``facts``."""
    return _environment.get_template(template).render(**facts)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


HANDLERS = (Root, TerminalPage)
