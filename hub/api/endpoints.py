"""What an endpoint demands and gives: declared on its method, enforced by the base handler, documented by OpenAPI."""

from __future__ import annotations

import enum
import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from authenticator.principals import Scope
from hub.api.parameters import read

JSON = "application/json"
EVENTS = "text/event-stream"
METHODS = ("get", "post", "put", "patch", "delete")


class Access(enum.StrEnum):
    """Who may call an endpoint."""

    PUBLIC = "public"
    """Everybody; credentials are not even looked at."""
    USER = "user"
    """Somebody known, by key pair, JupyterHub token, Hub cookie, or vouched for by the hub."""
    ADMIN = "admin"
    """A superadmin whose credential carries the scope ``custom:perijove:admin``."""
    HUB = "hub"
    """Whoever has the hub secret."""
    HUB_USER = "hub for a user"
    """Whoever has the hub secret and names a user."""
    OPERATOR = "hub or admin"
    """The hub itself, or a superadmin."""
    AGENT = "agent"
    """An agent with a valid token."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A declared method of a handler."""

    summary: str
    access: Access
    scope: Scope | None
    parameters: type[Any] | None
    status: int
    produces: str
    query_only: bool


Method = Callable[..., Awaitable[None]]


def endpoint(
    summary: str,
    *,
    access: Access = Access.USER,
    scope: Scope | None = None,
    parameters: type[Any] | None = None,
    status: int = 200,
    produces: str = JSON,
    query_only: bool = False,
) -> Callable[[Method], Method]:
    """Declare a handler's method.

    It is called with the path's segments and, if there are ``parameters``, an instance of that shape, after
    the caller was authenticated and the scope checked. ``query_only``: Backend.AI's clients send these
    parameters in the query although the method usually has a body.
    """
    spec = Endpoint(summary, access, scope, parameters, status, produces, query_only)

    def declare(method: Method) -> Method:
        @functools.wraps(method)
        async def run(handler: Any, *path: str) -> None:
            if spec.parameters is None:
                await method(handler, *path)
            else:
                await method(handler, *path, read(spec.parameters, handler.given()))

        run.endpoint = spec  # type: ignore[attr-defined]  # read back by `endpoint_of`
        return run

    return declare


def endpoint_of(handler_class: type[Any], method: str) -> Endpoint | None:
    """The declaration of a method (any case) of a handler class; None when it has none."""
    return getattr(getattr(handler_class, method.lower(), None), "endpoint", None)


def endpoints_of(handler_class: type[Any]) -> dict[str, Endpoint]:
    """All declared methods of a handler class, upper case."""
    found = {method.upper(): endpoint_of(handler_class, method) for method in METHODS}
    return {method: spec for method, spec in found.items() if spec is not None}
