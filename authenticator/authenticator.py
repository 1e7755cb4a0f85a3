"""The JupyterHub Authenticator: asks the manager who somebody is. It runs in the hub and never sees the database."""

import json
import os
from typing import Any
from urllib.parse import quote

from jupyterhub.auth import Authenticator
from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest, HTTPResponse
from tornado.web import HTTPError, RequestHandler
from traitlets import Float, Unicode, default

from authenticator.problems import PROBLEM_BASE, WRONG_CREDENTIALS

MAX_USERNAME = 64
MAX_PASSWORD = 1024

AWAY = (
    "The Perijove manager cannot be reached, so nobody can log in right now. Try again in a minute."
)
MISCONFIGURED = (
    "Log-in is not set up correctly: the manager refuses this hub. Please tell your administrator."
)


class PerijoveAuthenticator(Authenticator):
    """Logs people in with their Perijove user name and password.

    Every active user of the manager is allowed, unless ``allowed_users`` or ``allow_existing_users`` narrows
    it down. Superadmins of the manager are administrators of the hub, and lose that with their role.
    """

    manager_url = Unicode(
        help="""
        Where the hub reaches the Perijove manager, without a trailing slash.

        Default: the environment variable PERIJOVE_MANAGER_URL, or http://127.0.0.1:8090.
        """,
    ).tag(config=True)

    hub_secret = Unicode(
        help="""
        The secret with which the hub proves itself to the manager.

        Default: the environment variable PERIJOVE_HUB_SECRET, which is the better place for it:
        configuration files tend to be readable by others.
        """,
    ).tag(config=True)

    request_timeout = Float(
        10.0,
        min=0.1,
        help="Seconds to wait for an answer of the manager before the person is told that it is away.",
    ).tag(config=True)

    _refused: set[str]
    """Users of the hub whom the manager refused when it was last asked."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)  # type: ignore[no-untyped-call]  # JupyterHub is untyped
        self._refused = set()

    @default("manager_url")
    def _default_manager_url(self) -> str:
        return os.environ.get("PERIJOVE_MANAGER_URL", "http://127.0.0.1:8090")

    @default("hub_secret")
    def _default_hub_secret(self) -> str:
        return os.environ.get("PERIJOVE_HUB_SECRET", "")

    @default("allow_all")
    def _default_allow_all(self) -> bool:
        """The manager has decided, unless somebody asked for a narrower choice."""
        return not (self.allowed_users or self.allow_existing_users)

    @default("auth_refresh_age")
    def _default_auth_refresh_age(self) -> int:
        """A disabled user is out after a minute."""
        return 60

    @default("auth_refresh_strict")
    def _default_auth_refresh_strict(self) -> bool:
        """Refreshing fails for disabled and unknown users only; those have no business with tokens either."""
        return True

    @default("refresh_pre_spawn")
    def _default_refresh_pre_spawn(self) -> bool:
        """A disabled user starts nothing."""
        return True

    def normalize_username(self, username: str) -> str:
        """Small letters, no spaces around it, then ``username_map``."""
        return str(super().normalize_username(username.strip()))  # type: ignore[no-untyped-call]  # JupyterHub is untyped

    def validate_username(self, username: str) -> bool:
        """JupyterHub's rules, and at most 64 characters."""
        valid = super().validate_username(username)  # type: ignore[no-untyped-call]  # JupyterHub is untyped
        return len(username) <= MAX_USERNAME and bool(valid)

    async def authenticate(
        self, handler: RequestHandler | None, data: dict[str, str]
    ) -> dict[str, Any] | None:
        """Ask the manager. None: wrong name or password; ``HTTPError`` with a sentence: anything else.

        ``data`` are the fields ``username`` and ``password`` of the log-in form.
        """
        username, password = data.get("username", "").strip(), data.get("password", "")
        if not username or not password:
            raise HTTPError(403, "Give a user name and a password.")
        if len(username) > MAX_USERNAME or len(password) > MAX_PASSWORD:
            return None  # nobody is called so; and such names are kept out of the logs from here on
        remote = "" if handler is None else str(handler.request.remote_ip)
        response = await self._ask(
            "POST",
            "/internal/login",
            {"username": username.lower(), "password": password, "remote": remote},
        )
        answer = _object(response)
        if response.code == 200:
            return self._model(answer)
        if response.code == 401 and answer.get("msg") == WRONG_CREDENTIALS:
            return None
        if response.code == 429:
            raise HTTPError(
                429, str(answer.get("msg") or "Too many failed log-ins: try again later.")
            )
        self._report(response, answer)
        raise HTTPError(503, MISCONFIGURED if response.code in (401, 403) else AWAY)

    async def refresh_user(
        self, user: Any, handler: RequestHandler | None = None
    ) -> bool | dict[str, Any]:
        """False for users whom the manager does not know or has disabled; their new facts when they changed.

        While the manager is away everybody stays what they were: in, or out.
        """
        as_before = user.name not in self._refused
        try:
            response = await self._ask("GET", f"/internal/users/{quote(user.name, safe='')}")
        except HTTPError:
            return as_before
        answer = _object(response)
        unknown = response.code == 404 and answer.get("type") == PROBLEM_BASE + "object-not-found"
        if unknown or (response.code == 200 and answer.get("status") != "active"):
            self._refused.add(user.name)
            return False
        if response.code != 200:
            self._report(response, answer)
            return as_before
        self._refused.discard(user.name)
        model = self._model(answer)
        unchanged = (user.admin, user.user_info) == (model["admin"], model["user_info"])
        return True if unchanged else model

    def delete_user(self, user: Any) -> None:
        """Forget the hub's record of a user; the manager keeps its own, with folders and history."""
        super().delete_user(user)  # type: ignore[no-untyped-call]  # JupyterHub is untyped
        self.log.info(
            "User %s was removed from the hub and can still log in; "
            "`perijove user disable %s` ends that",
            user.name,
            user.name,
        )

    def _model(self, answer: dict[str, Any]) -> dict[str, Any]:
        """JupyterHub's authentication model of a manager's answer."""
        username = str(answer["username"])
        return {
            "name": username,
            "admin": bool(answer["is_admin"]) or username in self.admin_users,
            "user_info": {
                "name": answer.get("full_name") or username,
                "display_name": answer.get("full_name") or username,
                "email": answer["email"],
            },
        }

    async def _ask(
        self, method: str, path: str, body: dict[str, str] | None = None
    ) -> HTTPResponse:
        """One request to the manager; raises ``HTTPError`` 503 when no answer comes."""
        if not self.hub_secret:
            self.log.error("PerijoveAuthenticator.hub_secret is not set (PERIJOVE_HUB_SECRET)")
            raise HTTPError(503, MISCONFIGURED)
        request = HTTPRequest(
            self.manager_url.rstrip("/") + path,
            method=method,
            headers={
                "Authorization": f"Bearer {self.hub_secret}",
                "Content-Type": "application/json",
            },
            body=None if body is None else json.dumps(body),
            connect_timeout=self.request_timeout,
            request_timeout=self.request_timeout,
            follow_redirects=False,
        )
        try:
            return await AsyncHTTPClient().fetch(request, raise_error=False)
        except (OSError, HTTPClientError, ValueError) as error:
            self.log.error("The manager at %s does not answer: %s", self.manager_url, error)
            raise HTTPError(503, AWAY) from error

    def _report(self, response: HTTPResponse, answer: dict[str, Any]) -> None:
        """Tell the operator about an answer that should not have come."""
        self.log.error(
            "The manager at %s answered %d to %s: %s",
            self.manager_url,
            response.code,
            response.request.url.partition("?")[0],
            str(answer.get("msg") or answer.get("title") or "no problem body")[:300],
        )


def _object(response: HTTPResponse) -> dict[str, Any]:
    """The JSON object of an answer, empty when it is none."""
    try:
        value = json.loads(response.body or b"{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
