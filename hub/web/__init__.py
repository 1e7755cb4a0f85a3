"""The hub's pages: templates over JupyterHub's own, their style and scripts, and two small handlers.

``jupyterhub_config`` needs two lines::

    c.JupyterHub.template_paths = template_paths()
    c.JupyterHub.extra_handlers = extra_handlers()
"""

from pathlib import Path
from typing import Any

from hub.web.handlers import CheckHandler, StaticHandler

HERE = Path(__file__).parent
TEMPLATES = HERE / "templates"
STATIC = HERE / "static"


def template_paths() -> list[str]:
    """For ``JupyterHub.template_paths``."""
    return [str(TEMPLATES)]


def extra_handlers() -> list[tuple[Any, ...]]:
    """For ``JupyterHub.extra_handlers``; the hub serves them below its own prefix."""
    return [
        (r"/perijove/check/([^/]+)", CheckHandler),
        (r"/perijove/static/(.*)", StaticHandler, {"path": str(STATIC)}),
    ]
