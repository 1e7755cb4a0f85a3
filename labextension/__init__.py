"""What runs in the user's JupyterLab: the TypeScript extension beside this file and its server half."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jupyter_server.serverapp import ServerApp

NAME = "perijove-lab"
PREBUILT = Path(__file__).parent / "prebuilt"
"""What the build makes of the TypeScript; not there in a checkout that was never built."""


def _jupyter_labextension_paths() -> list[dict[str, str]]:
    return [{"src": PREBUILT.name, "dest": NAME}]


def _jupyter_server_extension_points() -> list[dict[str, Any]]:
    return [{"module": "labextension"}]


def _load_jupyter_server_extension(server: ServerApp) -> None:
    """Add the routes. Called once by the Jupyter server."""
    from labextension.handlers import add_routes

    add_routes(server.web_app)
