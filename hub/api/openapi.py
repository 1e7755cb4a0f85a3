"""The OpenAPI 3.1 document, made from the handlers' own declarations."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from hub.api.endpoints import Access, Endpoint, endpoint, endpoints_of
from hub.api.handler import ApiHandler, Base
from hub.api.parameters import field_schema, fields_of, schema
from hub.api.services import API_VERSION

_SEGMENT = re.compile(r"\{(\w+)\}")
_PROBLEM = {
    "description": "Refused or failed; `type` names the problem, `msg` is for people.",
    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
}
_SCHEMES: dict[str, Any] = {
    "keypair": {
        "type": "apiKey",
        "in": "header",
        "name": "Authorization",
        "description": "A request signed with a key pair, as Backend.AI's clients do.",
    },
    "hub": {"type": "http", "scheme": "bearer", "description": "A JupyterHub token."},
}


def document(handlers: Iterable[type[Base]]) -> dict[str, Any]:
    """The document for ``handlers``."""
    paths: dict[str, Any] = {}
    for handler in handlers:
        for path in handler.paths:
            if path:
                paths[path] = {
                    method.lower(): _operation(handler, path, method, spec)
                    for method, spec in endpoints_of(handler).items()
                }
    problem = {
        "type": "object",
        "required": ["type", "title"],
        "properties": {
            "type": {"type": "string", "format": "uri"},
            "title": {"type": "string"},
            "msg": {"type": "string"},
            "data": {},
        },
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Perijove session API",
            "version": API_VERSION,
            "description": "Backend.AI's wire shapes, and Perijove's own endpoints.",
        },
        "paths": dict(sorted(paths.items())),
        "components": {"schemas": {"Problem": problem}, "securitySchemes": _SCHEMES},
    }


def _operation(handler: type[Base], path: str, method: str, spec: Endpoint) -> dict[str, Any]:
    names = _SEGMENT.findall(path)
    suffix = "" if path == handler.paths[0] else f"-{handler.paths.index(path) + 1}"
    answer: dict[str, Any] = {
        "operationId": f"{method.lower()}{handler.__name__}{suffix}",
        "summary": spec.summary,
        "x-access": spec.access.value,
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in names
        ],
        "responses": {str(spec.status): _success(spec), "default": _PROBLEM},
        "security": [] if spec.access is Access.PUBLIC else [{"keypair": []}, {"hub": []}],
    }
    if spec.scope is not None:
        answer["x-scope"] = spec.scope.value
    shape: Any = spec.parameters
    if shape is None:
        return answer
    if method in ("GET", "DELETE") or spec.query_only:
        answer["parameters"] += [
            {
                "name": field.names[0],
                "in": "query",
                "required": field.required,
                "schema": field_schema(field),
            }
            for field in fields_of(shape)
        ]
    else:
        content = {"application/json": {"schema": schema(shape)}}
        answer["requestBody"] = {"required": True, "content": content}
    return answer


def _success(spec: Endpoint) -> dict[str, Any]:
    if spec.status == 204:
        return {"description": "Done."}
    if spec.produces == "websocket":
        return {"description": "The connection is upgraded."}
    return {"description": "Done.", "content": {spec.produces: {"schema": {}}}}


class OpenApi(ApiHandler):
    """The document itself."""

    paths = ("/openapi.json",)

    @endpoint("This document", access=Access.PUBLIC)
    async def get(self) -> None:
        """Made when the manager started."""
        self.answer(self.settings["openapi"])


HANDLERS = (OpenApi,)
