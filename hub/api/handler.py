"""The base of all handlers: request id, authentication, bounded bodies, parameters, answers, problems, logs."""

from __future__ import annotations

import asyncio
import http
import logging
import re
import secrets
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, ClassVar, TypeVar
from urllib.parse import parse_qsl, urlsplit

import msgspec
from jupyterhub.services.auth import HubOAuthenticated
from tornado import httputil
from tornado.web import HTTPError, RequestHandler, stream_request_body

from authenticator.principals import Principal, Via
from authenticator.problems import (
    AuthFailed,
    BadRequest,
    Forbidden,
    InvalidParameters,
    MethodNotAllowed,
    Problem,
    RateLimited,
    TooLarge,
    Unavailable,
    UnknownPath,
)
from hub.api.authentication import NOBODY, Authentication, Caller
from hub.api.endpoints import EVENTS, Endpoint, endpoint_of, endpoints_of
from hub.api.services import Services
from store.engine import StoreError

T = TypeVar("T")

MAX_BODY = 1024 * 1024
MAX_DEPTH = 32
AGAIN = "2"
"""Seconds after which somebody who was told that something is unavailable may ask again."""
MAX_QUERY_FIELDS = 200
QUIET = ("/health", "/metrics")
"""Paths that are asked so often that their success is logged at debug level only."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}", re.ASCII)

log = logging.getLogger("hub.api.request")


class ClientGone(Exception):
    """The client closed the connection; nobody waits for an answer."""


class Base(HubOAuthenticated, RequestHandler):
    """Authenticates before anything else happens, and answers every error as a problem."""

    paths: ClassVar[tuple[str, ...]] = ()
    """Templates such as ``/session/{session}``, relative to both roots of the manager."""
    max_body = MAX_BODY
    """Bytes."""
    caller: Caller = NOBODY
    _request_id: str | None = None
    _gone: asyncio.Event | None = None

    @property
    def services(self) -> Services:
        """Use cases."""
        found: Services = self.settings["services"]
        return found

    def initialize(self) -> None:
        """Tell JupyterHub's mixin which OAuth client is ours."""
        authentication: Authentication = self.settings["authentication"]
        self.hub_auth = authentication.hub

    @property
    def principal(self) -> Principal:
        """Who calls; only on endpoints that demand a user."""
        if self.caller.principal is None:
            raise AuthFailed("Unauthorized access")
        return self.caller.principal

    @property
    def request_id(self) -> str:
        """The id under which logs and history know this request."""
        if self._request_id is None:
            given = self.request.headers.get("X-Request-Id", "")
            self._request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        return self._request_id

    def get_current_user(self) -> Principal | None:
        """For tornado and JupyterHub's mixin, which only ask whether somebody is known."""
        return self.caller.principal

    def set_default_headers(self) -> None:
        """Headers of every answer, errors included."""
        self.clear_header("Server")
        self.set_header("X-Request-Id", self.request_id)
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cache-Control", "no-store")
        if self.caller.allowance is not None:
            for name, value in self.caller.allowance.headers().items():
                self.set_header(name, value)

    async def prepare(self) -> None:
        """Authenticate, then authorize; the body has not been read by then."""
        spec = self.declared()
        await self._admit(spec)
        if int(self.request.headers.get("Content-Length") or 0) > self.max_body:
            raise TooLarge(f"at most {self.max_body} bytes are allowed")
        if any("\0" in each for each in self.path_args):
            raise UnknownPath(data=self.request.path)

    async def _admit(self, spec: Endpoint) -> None:
        authentication: Authentication = self.settings["authentication"]
        self.caller = await authentication.authenticate(self, spec.access, spec.scope)
        self.set_default_headers()

    def refuse_other_origins(self) -> None:
        """Raise ``Forbidden`` for what a page of another origin asks."""
        asks = self.request.headers.get("Origin")
        if asks is not None and urlsplit(asks).netloc != self.request.host:
            raise Forbidden(f"pages of {asks[:80]} may not ask this")

    def declared(self) -> Endpoint:
        """The declaration of this request's method. Raises ``MethodNotAllowed``."""
        method = self.request.method or ""
        spec = endpoint_of(type(self), "get" if method == "HEAD" else method)
        if spec is None or (method == "HEAD" and spec.produces == EVENTS):
            raise MethodNotAllowed(data={"allowed": sorted(endpoints_of(type(self)))})
        return spec

    def on_connection_close(self) -> None:
        """Let ``unless_gone`` know."""
        super().on_connection_close()
        self.gone.set()

    @property
    def gone(self) -> asyncio.Event:
        """Set when the client closed the connection."""
        if self._gone is None:
            self._gone = asyncio.Event()
        return self._gone

    async def unless_gone(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work``; it is cancelled, and ``ClientGone`` raised, when the client leaves."""
        task, gone = asyncio.ensure_future(work), asyncio.ensure_future(self.gone.wait())
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise ClientGone
        finally:
            gone.cancel()
            if not task.done():
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    def log_exception(
        self,
        typ: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Our own faults with their traceback; refusals are in the request's line already."""
        if value is None or isinstance(value, ClientGone) or problem_of(value).status < 500:
            return
        known = isinstance(value, Problem | StoreError)
        details = None if known or typ is None else (typ, value, tb)
        log.error("id=%s %s: %s", self.request_id, type(value).__name__, value, exc_info=details)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Answer a problem, whatever went wrong."""
        kind, error = kwargs.get("exc_info", (None, None))[:2]
        if error is None:
            error = HTTPError(status_code)
        elif kind is ClientGone:
            self.finish()
            return
        problem = problem_of(error, self.request.path)
        self.set_status(problem.status, _reason(problem.status))
        self.set_header("Content-Type", "application/problem+json")
        if isinstance(problem, AuthFailed):
            self.set_header("WWW-Authenticate", "BackendAI, Bearer")
        if isinstance(problem, MethodNotAllowed) and problem.data:
            self.set_header("Allow", ", ".join(problem.data["allowed"]))
        if isinstance(problem, RateLimited) and problem.retry_after is not None:
            self.set_header("Retry-After", str(int(problem.retry_after) + 1))
        if isinstance(problem, Unavailable):
            self.set_header("Retry-After", AGAIN)
        if isinstance(problem, TooLarge):
            self.set_header("Connection", "close")
        self.finish(msgspec.json.encode(problem.body()))


@stream_request_body
class ApiHandler(Base):
    """A handler whose body is read after the caller is known, up to ``max_body``."""

    def initialize(self) -> None:
        """An empty body so far."""
        super().initialize()
        self._chunks: list[bytes] = []
        self._length = 0

    def data_received(self, chunk: bytes) -> None:
        """Keep what is within bounds; ``given`` refuses the rest."""
        self._length += len(chunk)
        if self._length <= self.max_body:
            self._chunks.append(chunk)
        else:
            self._chunks.clear()

    def given(self) -> dict[str, object]:
        """The parameters: from the body, on any method, if there is one; else from the query.

        Raises ``InvalidParameters`` or ``TooLarge``.
        """
        body, query = self.body(), self._query()
        if self.declared().query_only or not body.strip():
            return query
        return _object(body)

    def body(self) -> bytes:
        """All of it. Raises ``TooLarge``."""
        if self._length > self.max_body:
            raise TooLarge(f"at most {self.max_body} bytes are allowed")
        return b"".join(self._chunks)

    def _query(self) -> dict[str, object]:
        """The query; a name that occurs several times gives a list."""
        try:
            pairs = parse_qsl(
                self.request.query,
                keep_blank_values=True,
                errors="strict",
                max_num_fields=MAX_QUERY_FIELDS,
            )
        except ValueError:  # of which UnicodeDecodeError is one
            raise InvalidParameters({"query": "it cannot be read"}, "Malformed query") from None
        values: dict[str, list[str]] = {}
        for name, value in pairs:
            values.setdefault(name, []).append(value)
        given = {name: many[0] if len(many) == 1 else many for name, many in values.items()}
        _check_tree(given)
        return dict(given)

    async def head(self, *path: str) -> None:
        """As GET; tornado leaves the body out."""
        await getattr(self, "get")(*path)  # noqa: B009 - only handlers with `get` come here

    def answer(self, value: Any, status: int | None = None) -> None:
        """Finish with ``value`` as JSON, with the declared status."""
        self.set_status(status if status is not None else self.declared().status)
        self.set_header("Content-Type", "application/json")
        self.finish(msgspec.json.encode(value))

    def answer_nothing(self) -> None:
        """Finish with the declared status and no body."""
        self.set_status(self.declared().status)
        self.clear_header("Content-Type")
        self.finish()

    async def acting_for(self, owner_access_key: str | None) -> Principal:
        """The caller, or the owner of another access key if the caller may act for everybody."""
        me = self.principal
        if owner_access_key is None or owner_access_key == me.access_key:
            return me
        return await self.services.owner(me, owner_access_key)


class UnknownPathHandler(Base):
    """Everything that no route has."""

    async def prepare(self) -> None:
        """There is nothing here for anybody."""
        raise UnknownPath(data=self.request.path)


def _object(body: bytes) -> dict[str, object]:
    """The JSON object of a body. Raises ``InvalidParameters``."""
    try:
        value = msgspec.json.decode(body)
        _check_tree(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidParameters({"body": str(error)[:200]}, "Malformed body") from None
    if not isinstance(value, dict):
        raise InvalidParameters({"body": "give a JSON object"}, "Malformed body")
    return value


def _check_tree(value: object, depth: int = 0) -> None:
    """Refuse what no database or reader could take: NUL characters, and depths that end stacks."""
    if depth > MAX_DEPTH:
        raise InvalidParameters({"body": f"at most {MAX_DEPTH} levels deep"}, "Malformed body")
    if isinstance(value, str):
        if "\0" in value:
            raise InvalidParameters({"body": "text contains a NUL character"}, "Malformed body")
    elif isinstance(value, Mapping):
        for key, each in value.items():
            _check_tree(key, depth + 1)
            _check_tree(each, depth + 1)
    elif isinstance(value, list):
        for each in value:
            _check_tree(each, depth + 1)


class _HttpProblem(Problem):
    """A refusal of tornado's or JupyterHub's that has no slug of its own."""

    slug = "generic-error"

    def __init__(self, status: int) -> None:
        super().__init__()
        self.status = status  # type: ignore[misc]  # a status for each, not for the class

    @property
    def problem_title(self) -> str:
        """The standard phrase of the status."""
        return _reason(self.status)


def problem_of(error: BaseException, path: str = "") -> Problem:
    """The problem to answer for any exception; nothing of an unexpected one is told."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, StoreError):
        return Unavailable("The database cannot be used now; try again.")
    if isinstance(error, HTTPError) and error.status_code < 500:
        kinds: dict[int, Problem] = {
            400: BadRequest(error.log_message or None),
            403: Forbidden(),
            404: UnknownPath(data=path),
            405: MethodNotAllowed(),
        }
        return kinds.get(error.status_code) or _HttpProblem(error.status_code)
    return Problem()


def _reason(status: int) -> str:
    """The standard phrase: problems' titles may hold what a status line must not."""
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


def log_request(handler: RequestHandler) -> None:
    """One line for each request: no query, no headers, no bodies."""
    request: httputil.HTTPServerRequest = handler.request
    status = handler.get_status()
    level = logging.ERROR if status >= 500 else logging.INFO
    caller: Caller = getattr(handler, "caller", NOBODY)
    path = request.path[:300]
    if status < 400 and path.endswith(QUIET):
        level = logging.DEBUG
    who = "-"
    if caller.principal is not None:
        who = repr(caller.principal.username)
        level = logging.DEBUG if _is_poll(caller.principal, request, status) else level
    log.log(
        level,
        "id=%s method=%s path=%s status=%d ms=%.1f user=%s via=%s",
        getattr(handler, "request_id", "-"),
        request.method,
        path,
        status,
        1000 * request.request_time(),
        who,
        caller.principal.via if caller.principal else "-",
    )


def _is_poll(principal: Principal, request: httputil.HTTPServerRequest, status: int) -> bool:
    """The hub asks all the time; only what changes something or fails is news."""
    return principal.via is Via.HUB and request.method == "GET" and status < 400
