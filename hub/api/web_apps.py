"""Which apps of a session a browser can open, and where."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

from hub.api.services import Services
from spawner.sessions.apps import WEB
from spawner.sessions.requests import SessionDetail

JUPYTERLAB = "jupyterlab"
"""As a session's own command it cannot be below a path unless its image lets it be told."""


@dataclass(frozen=True, slots=True)
class Link:
    """An app for its owner."""

    name: str
    url: str


def web_apps(detail: SessionDetail, services: Services) -> list[Link]:
    """The hub's server where it is one, and the other apps below the apps' path."""
    row, spec = detail.session, detail.main.spec
    ports = spec.get("ports") or [{}]
    main, server = ports[0].get("container_port"), row.origin.get("server")
    found: dict[str, Link] = {}
    for app in spec.get("apps", ()):
        name, own = str(app["name"]), app["port"] == main
        if own and server is not None:
            url = _server(services.hub_prefix, detail.owner, server)
        elif app["protocol"] in WEB and (app.get("own") or not (own and name == JUPYTERLAB)):
            url = services.control.apps.base_path(row.id, name)
        else:
            continue
        found.setdefault(name, Link(name, url))
    return list(found.values())


def _server(hub_prefix: str, owner: str, server: str) -> str:
    """Where the hub's proxy has a server."""
    path = f"{hub_prefix.removesuffix('hub/')}user/{quote(owner, safe='@~')}/"
    return f"{path}{quote(server, safe='@~')}/" if server else path
