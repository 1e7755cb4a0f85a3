"""Who calls: one place for all credentials. Handlers say what they demand, this module finds out who it is.

Credentials: a Backend.AI signature, a JupyterHub token, the Hub's cookie (OAuth), the hub secret with the name of
a user, and an agent's token. An ``Authorization`` header is never supplemented by a cookie.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from jupyterhub.services.auth import HubOAuth
from tornado.httputil import HTTPServerRequest
from tornado.web import HTTPError, RequestHandler

from authenticator.identity import IdentityService
from authenticator.keypairs import KeyPairService
from authenticator.principals import Principal, Scope, Via, require
from authenticator.problems import (
    AuthFailed,
    BadRequest,
    Forbidden,
    InvalidAuthParameters,
    Unavailable,
)
from authenticator.ratelimit import Allowance, RequestRates
from authenticator.signing import (
    VERSION_HEADERS,
    SignedRequest,
    check_date,
    is_signed,
    parse_authorization,
    verify,
)
from hub.api.endpoints import Access

CACHE_SECONDS = 30
"""How long a rate limit is believed, and if nothing else is set an answer of the hub about a token."""
MARK_USED_SECONDS = 300
OLDEST_VERSION = (4, 20190615)
UNAUTHORIZED = "Unauthorized access"
MAX_REMEMBERED = 10_000
APPS = "perijove-apps"
"""The service of the hub behind which browsers find apps."""
_TOKEN = re.compile(r"(?:token|bearer)\s+(\S+)\s*", re.IGNORECASE)
_VERSION = re.compile(r"v(\d{1,3})\.(\d{8})", re.ASCII)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls. ``principal`` is None for the hub in its own name and for agents."""

    principal: Principal | None
    token: str = ""
    """An agent's token."""
    allowance: Allowance | None = None


NOBODY = Caller(None)


class HubLogin(HubOAuth):
    """The manager as an OAuth client of the hub. Tokens in URLs are never taken: URLs end up in logs."""

    def _get_token_url(self, handler: RequestHandler) -> str:
        return ""


class AppsLogin(HubLogin):
    """The apps' OAuth client. Its path is shared with apps: no page of ours there needs a token of our own."""

    def set_cookie(self, handler: RequestHandler, access_token: str) -> None:
        """The cookie alone, without the token against forged requests that would come beside it."""
        secure = handler.request.protocol == "https"
        handler.set_secure_cookie(
            self.cookie_name,
            access_token,
            path=self.cookie_path,
            httponly=True,
            secure=secure,
            samesite="Lax",
        )


def hub_login(
    api_url: str,
    hub_prefix: str,
    prefix: str,
    api_token: str,
    name: str = "perijove",
    *,
    cache_max_age: int = CACHE_SECONDS,
) -> HubLogin:
    """An OAuth client for a service of the hub whose REST API is at ``api_url``.

    ``hub_prefix`` and ``prefix`` are the paths of hub and service as browsers see them, with slashes around.
    ``cache_max_age``: seconds for which the hub's answers are believed, more than 0 (which would mean for ever).
    """
    kind = AppsLogin if name == APPS else HubLogin
    return kind(
        api_url=api_url,
        api_token=api_token,
        hub_prefix=hub_prefix,
        base_url=prefix,
        oauth_client_id=f"service-{name}",
        access_scopes={f"access:services!service={name}"},
        cache_max_age=cache_max_age,
    )


class Authentication:
    """Finds out who calls and whether that is who an endpoint demands."""

    def __init__(
        self,
        identity: IdentityService,
        keypairs: KeyPairService,
        now: Callable[[], dt.datetime],
        *,
        hub: HubOAuth,
        hub_secret: str,
        agent_known: Callable[[str], Awaitable[bool]],
    ) -> None:
        self.hub = hub
        self._identity, self._keypairs, self._now = identity, keypairs, now
        self._hub_secret = hub_secret.encode()
        self._agent_known = agent_known
        self._rates = RequestRates()
        self._limits: dict[str, tuple[float, int]] = {}
        self._marked: dict[str, float] = {}

    async def authenticate(
        self, handler: RequestHandler, access: Access, scope: Scope | None
    ) -> Caller:
        """The caller of a request.

        Raises ``AuthFailed`` when nobody is known, ``Forbidden`` when somebody is who may not do this,
        ``InvalidAuthParameters`` for headers that cannot be read, ``RateLimited``, ``Unavailable``.
        """
        if access is Access.PUBLIC:
            return NOBODY
        caller = await self._caller(handler, access)
        check_version(handler.request)
        if caller.principal is None:
            return caller
        if access in (Access.ADMIN, Access.OPERATOR):
            require(caller.principal, Scope.ADMIN)
        if scope is not None:
            require(caller.principal, scope)
        return await self._count(caller)

    async def _caller(self, handler: RequestHandler, access: Access) -> Caller:
        header = handler.request.headers.get("Authorization", "").strip()
        if access is Access.AGENT:
            token = bearer(header)
            if token is None or not await self._agent_known(token):
                raise AuthFailed(UNAUTHORIZED)
            return Caller(None, token)
        token = None if is_signed(header) else bearer(header)
        if token is not None and hmac.compare_digest(token.encode(), self._hub_secret):
            return await self._hub(handler.request, access)
        if access in (Access.HUB, Access.HUB_USER):
            raise AuthFailed(UNAUTHORIZED)
        if is_signed(header):
            return Caller(await self._signed(handler.request))
        if token is not None:
            return Caller(await self._of_hub(handler, Via.HUB_TOKEN))
        if header:
            raise InvalidAuthParameters(
                "The Authorization header has an unknown scheme: use BackendAI, token or Bearer"
            )
        if handler.get_cookie(self.hub.cookie_name) is None:
            raise AuthFailed(UNAUTHORIZED)
        return Caller(await self._of_hub(handler, Via.HUB_COOKIE))

    async def _hub(self, request: HTTPServerRequest, access: Access) -> Caller:
        """The hub, for the user it names."""
        name = request.headers.get("X-Perijove-User")
        if name is None:
            if access in (Access.HUB, Access.OPERATOR):
                return NOBODY
            raise InvalidAuthParameters("The hub must name the user it acts for in X-Perijove-User")
        try:
            username = unquote(name, errors="strict")
        except UnicodeDecodeError:
            raise InvalidAuthParameters("X-Perijove-User is not percent-encoded UTF-8") from None
        return Caller(await self._identity.principal_by_username(username, Via.HUB, create=True))

    async def _signed(self, request: HTTPServerRequest) -> Principal:
        """The owner of the key that signed this request."""
        signed = SignedRequest.from_headers(
            request.method or "", request.uri or "", dict(request.headers.get_all())
        )
        check_date(signed, self._now())
        access_key = parse_authorization(signed.authorization).access_key
        principal, secret = await self._identity.principal_by_access_key(access_key)
        verify(signed, secret, self._now())
        await self._mark_used(access_key)
        return principal

    async def _of_hub(self, handler: RequestHandler, via: Via) -> Principal:
        """The user that the hub knows by a token or by the cookie (whose XSRF rules are checked as well)."""
        model = await self._asked(handler)
        if model is None:
            raise AuthFailed(UNAUTHORIZED)
        return await self._known(model, via)

    async def by_cookie(self, handler: RequestHandler) -> Principal | None:
        """Whose cookie a browser that goes to a page has. Raises ``Forbidden``, ``Unavailable``."""
        model = await self._asked(handler)
        return None if model is None else await self._known(model, Via.HUB_COOKIE)

    async def _asked(self, handler: RequestHandler) -> Mapping[str, Any] | None:
        try:
            model: Mapping[str, Any] | None = await self.hub.get_user(handler, sync=False)
        except HTTPError as error:
            log.warning("the hub could not be asked about a credential: %s", error.log_message)
            raise Unavailable("The hub does not answer now; try again.") from error
        return model

    async def _known(self, model: Mapping[str, Any], via: Via) -> Principal:
        if model.get("kind") != "user":
            raise Forbidden("this token belongs to a service of the hub, not to a user")
        name, held = str(model["name"]), model.get("scopes", ())
        if via is Via.HUB_COOKIE and not self.hub.check_scopes(self.hub.access_scopes, model):
            raise Forbidden(f"{name} may not use this service")
        scopes = perijove_scopes(held, name)
        return await self._identity.principal_by_username(name, via, scopes, create=True)

    async def _count(self, caller: Caller) -> Caller:
        """Count the request against the rate limit of its key; the hub's own requests are not limited."""
        principal = caller.principal
        if principal is None or principal.via is Via.HUB:
            return caller
        now = self._now()
        known = self._limits.get(principal.access_key)
        if known is None or now.timestamp() - known[0] > CACHE_SECONDS:
            limit = await self._keypairs.rate_limit(principal.access_key)
            known = _remember(self._limits, principal.access_key, (now.timestamp(), limit))
        allowance = self._rates.count(principal.access_key, known[1], now)
        return Caller(principal, caller.token, allowance)

    async def _mark_used(self, access_key: str) -> None:
        at = self._now().timestamp()
        if at - self._marked.get(access_key, 0.0) > MARK_USED_SECONDS:
            _remember(self._marked, access_key, at)
            await self._keypairs.mark_used(access_key)


def _remember(memory: dict[str, Any], key: str, value: Any) -> Any:
    """Keep a value, forgetting everything when there is too much to keep."""
    if len(memory) >= MAX_REMEMBERED:
        memory.clear()
    memory[key] = value
    return value


def bearer(header: str) -> str | None:
    """The token of ``token T`` or ``Bearer T``."""
    found = _TOKEN.fullmatch(header)
    return found[1] if found else None


def perijove_scopes(held: Iterable[str], username: str) -> frozenset[Scope]:
    """Our scopes among those of a JupyterHub token: without filter, or filtered to the user themself."""
    names: Mapping[str, Scope] = {scope.value: scope for scope in Scope}
    found: set[Scope] = set()
    for text in held:
        name, _, filtered = str(text).partition("!")
        if name in names and filtered in ("", "user", f"user={username}"):
            found.add(names[name])
    return frozenset(found)


def check_version(request: HTTPServerRequest) -> None:
    """Raise ``BadRequest`` for an API version that is malformed or older than any client we serve."""
    version = next((request.headers[n] for n in VERSION_HEADERS if n in request.headers), None)
    if version is None:
        return
    found = _VERSION.fullmatch(version.strip())
    if found is None or (int(found[1]), int(found[2])) < OLDEST_VERSION:
        major, date = OLDEST_VERSION
        raise BadRequest(f"Unsupported API version. Use v{major}.{date} or newer.")


def cookie_secret(hub_secret: str) -> bytes:
    """The key that signs our cookies, the same in every manager of a deployment."""
    return hmac.digest(hub_secret.encode(), b"perijove manager cookies", hashlib.sha256)
