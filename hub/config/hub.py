"""What JupyterHub must be told to be the front of a Perijove deployment."""

from __future__ import annotations

import atexit
import os
from typing import Any

from prometheus_client import generate_latest
from traitlets.config.loader import Config, PyFileConfigLoader

from hub.config.deployment import Addresses, Deployment, DeploymentError, apps_token
from hub.web import extra_handlers, template_paths
from spawner.monitors.registry import Monitors

CUSTOM_SCOPES = {
    "custom:perijove:sessions": {
        "description": "Create, change and end sessions",
        "subscopes": ["custom:perijove:sessions:read", "custom:perijove:sessions:extend"],
    },
    "custom:perijove:sessions:extend": {
        "description": "Keep sessions from ending, as far as the owner's policy allows"
    },
    "custom:perijove:sessions:read": {"description": "See sessions, their logs and their progress"},
    "custom:perijove:vfolder:write": {
        "description": "Create and delete storage folders",
        "subscopes": ["custom:perijove:vfolder:read"],
    },
    "custom:perijove:vfolder:read": {"description": "See storage folders"},
    "custom:perijove:admin": {
        "description": "Use the owner's administrator rights in Perijove, if they have any"
    },
}
USER_SCOPES = [
    "access:services!service=perijove",
    "access:services!service=perijove-apps",
    "custom:perijove:sessions!user",
    "custom:perijove:vfolder:write!user",
    "custom:perijove:admin",
]
"""Added to every user's role. ``admin`` grants nothing by itself: the manager asks for the role too."""
SERVICE_SCOPES = [scope for scope in USER_SCOPES if scope.startswith("custom:")]
APPS_SCOPES = ["custom:perijove:sessions!user"]
"""Without ``admin``: what runs in an app's page is its owner's, and administrators are nobody's guests there."""

ASKED_TO_END = "Received signal"
"""What JupyterHub logs as critical when it is ended in good order."""


def configure(c: Any, config: Config) -> None:
    """Fill JupyterHub's configuration ``c`` for the deployment that ``config`` describes.

    Secrets come from the environment; those missing there from the deployment's ``secrets.json``.
    """
    deployment = Deployment(config=config)
    addresses = deployment.addresses()
    try:
        for name, value in deployment.secrets().environ().items():
            os.environ.setdefault(name, value)
    except DeploymentError:
        if "PERIJOVE_SERVICE_TOKEN" not in os.environ:
            raise
    os.environ.setdefault("PERIJOVE_MANAGER_URL", addresses.manager_url)
    _places(c, deployment, addresses)
    _identity(c, addresses)
    c.JupyterHub.authenticator_class = "perijove"
    c.JupyterHub.spawner_class = "perijove"
    c.JupyterHub.allow_named_servers = True
    c.JupyterHub.named_server_limit_per_user = 8
    # A queued session is a pending spawn: the scheduler decides how many start, and when.
    c.JupyterHub.concurrent_spawn_limit = 0
    c.Spawner.consecutive_failure_limit = 0
    # Sessions outlive the hub; `perijove up` ends them on Ctrl-C through the manager.
    c.JupyterHub.cleanup_servers = False
    c.JupyterHub.cleanup_proxy = False
    c.JupyterHub.init_spawners_timeout = 1
    c.JupyterHub.upgrade_db = True
    monitors = Monitors(config=config).start("hub", generate_latest)
    atexit.register(monitors.close)
    if monitors.handler is not None:  # JupyterHub's own log does not reach the root logger's
        monitors.handler.addFilter(lambda record: not str(record.msg).startswith(ASKED_TO_END))
        c.JupyterHub.extra_log_handlers = [monitors.handler]


def _places(c: Any, deployment: Deployment, addresses: Addresses) -> None:
    """Addresses, files and pages."""
    c.JupyterHub.bind_url = f"http://{addresses.ip}:{addresses.port}{addresses.base_url}"
    c.JupyterHub.base_url = addresses.base_url
    c.JupyterHub.hub_bind_url = addresses.hub_url
    c.JupyterHub.hub_connect_url = addresses.hub_url
    c.JupyterHub.db_url = f"sqlite:///{deployment.state / 'jupyterhub.sqlite'}"
    c.JupyterHub.cookie_secret_file = str(
        deployment.state / "cookie_secret"
    )  # the environment wins
    c.ConfigurableHTTPProxy.should_start = False
    c.ConfigurableHTTPProxy.api_url = addresses.proxy_api_url
    c.JupyterHub.template_paths = template_paths()
    c.JupyterHub.extra_handlers = extra_handlers()
    c.JupyterHub.template_vars = {"perijove_url": addresses.service_prefix}


def _identity(c: Any, addresses: Addresses) -> None:
    """Scopes, roles and the manager as a service."""
    c.JupyterHub.custom_scopes = CUSTOM_SCOPES
    c.JupyterHub.extra_user_scopes = USER_SCOPES
    # `up` asks the hub to restore the routes of a proxy that was started again.
    c.JupyterHub.load_roles = [
        {"name": "perijove-routes", "scopes": ["proxy"], "services": ["perijove"]}
    ]
    c.JupyterHub.services = [
        {
            "name": "perijove",
            "url": addresses.manager_url,
            "api_token": os.environ["PERIJOVE_SERVICE_TOKEN"],
            "oauth_no_confirm": True,
            "oauth_client_allowed_scopes": SERVICE_SCOPES,
            "display": True,
        },
        {
            "name": "perijove-apps",
            "url": addresses.manager_url,
            "api_token": apps_token(os.environ["PERIJOVE_SERVICE_TOKEN"]),
            "oauth_no_confirm": True,
            "oauth_client_allowed_scopes": APPS_SCOPES,
            "display": False,
        },
    ]


def operator_config() -> tuple[str | None, Config]:
    """Path and content of the operator's ``perijove_config.py`` (``PERIJOVE_CONFIG``), if there is one."""
    path = os.environ.get("PERIJOVE_CONFIG")
    if not path:
        return None, Config()
    return path, PyFileConfigLoader(path, path=None).load_config()
