"""Every route: nobody gets in without a credential, and the document says exactly what is served."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from openapi_spec_validator import validate

from authenticator.keypairs import NewKeyPair
from hub.api.application import HANDLERS, routes
from hub.api.endpoints import METHODS, Access, Endpoint, endpoints_of
from hub.api.handler import Base
from hub.api.reference import table
from tests.unit.api.server import Api

PUBLIC = {
    "/": "clients look up the version before they sign anything; browsers are sent to log in",
    "/manager/announcement": "shown before log-in",
    "/manager/status": "asked by clients that have no key yet",
    "/health": "asked by load balancers",
    "/auth/authorize": "is where a password is exchanged for a key",
    "/version": "as /",
    "/folders/_/allowed_types": "constants",
    "/folders/_/allowed-types": "constants",
    "/config/vfolder-types": "constants",
    "/config/resource-slots": "names of slots only",
    "/config/resource-slots/details": "names and units of slots only",
    "/openapi.json": "the document of the API",
}
"""Paths that answer everybody, and why that is right."""


def served() -> list[tuple[type[Base], str, str, Endpoint]]:
    return [
        (handler, path, method, spec)
        for handler in HANDLERS
        for path in handler.paths
        if path
        for method, spec in endpoints_of(handler).items()
    ]


def filled(path: str) -> str:
    return re.sub(r"\{\w+\}", "something", path)


ALL = [
    pytest.param(path, method, spec, id=f"{method} {path}") for _, path, method, spec in served()
]


@pytest.mark.parametrize(("path", "method", "spec"), ALL)
async def test_nobody_comes_in_without_a_credential(
    api: Api, path: str, method: str, spec: Endpoint
) -> None:
    for prefix in ("", "/services/perijove"):
        answer = await api.send(method, prefix + filled(path), raw=b"{garbage")
        if path in PUBLIC:
            assert spec.access is Access.PUBLIC
            assert answer.status != 401
        else:
            assert answer.status == 401
            assert answer.problem == "auth-failed"
            assert "WWW-Authenticate" in answer.headers


def test_each_method_is_declared() -> None:
    for handler in HANDLERS:
        written = {name.upper() for name in METHODS if name in vars(handler)}
        assert written == set(endpoints_of(handler)), handler
        assert handler.__doc__


def test_every_path_is_routed_twice_and_nothing_else_is() -> None:
    paths = [path for handler in HANDLERS for path in handler.paths]
    assert len(paths) == len(set(paths))
    found = [pattern for pattern, _ in routes("/services/perijove/")]
    assert len(found) == len(set(found)) == 2 * len(paths) - 1 + 1  # "" has no root; the callback


@pytest.mark.parametrize(("path", "method", "spec"), ALL)
async def test_ordinary_users_do_not_administrate(
    api: Api, ada: NewKeyPair, path: str, method: str, spec: Endpoint
) -> None:
    if spec.access in (Access.ADMIN, Access.OPERATOR):
        answer = await api.signed(ada, method, filled(path))
        assert (answer.status, answer.problem) == (403, "generic-forbidden")
    elif spec.access in (Access.HUB, Access.HUB_USER, Access.AGENT):
        answer = await api.signed(ada, method, filled(path))
        assert (answer.status, answer.problem) == (401, "auth-failed")


async def test_methods_and_paths_that_are_not_served(api: Api, ada: NewKeyPair) -> None:
    answer = await api.signed(ada, "PUT", "/session")
    assert (answer.status, answer.problem) == (405, "method-not-allowed")
    assert answer.headers["Allow"] == "POST"
    answer = await api.signed(ada, "GET", "/sesion")
    assert (answer.status, answer.problem) == (404, "url-not-found")


async def test_the_document_is_valid_and_tells_what_is_served(api: Api) -> None:
    answer = await api.send("GET", "/openapi.json")
    assert answer.status == 200
    validate(answer.body)
    told = {(path, name) for path, methods in answer.body["paths"].items() for name in methods}
    assert told == {(path, method.lower()) for _, path, method, _ in served()}
    for methods in answer.body["paths"].values():
        for operation in methods.values():
            assert operation["summary"]
            assert (operation["security"] == []) == (operation["x-access"] == "public")


def test_the_page_about_the_api_has_exactly_these_routes() -> None:
    page = (Path(__file__).parents[3] / "docs/api.md").read_text()
    assert page.endswith("\n\n" + table()), "run scripts/docs"
