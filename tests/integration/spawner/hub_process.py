"""A real JupyterHub and configurable-http-proxy, as processes that a test may kill."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
from yarl import URL

from tests.harness.ports import free_port

API_TOKEN = "test-api-token"
PASSWORD = "a password for tests"

EXPECTED_TRACEBACKS = (
    "Failed to spawn single-user server with form",
    "Exception applying user_options",
)
CONFIG = """
import os
from hub.web import extra_handlers, template_paths
c = get_config()
c.JupyterHub.bind_url = os.environ["TEST_PUBLIC_URL"]
c.JupyterHub.base_url = "/base/"
c.JupyterHub.hub_bind_url = os.environ["TEST_HUB_URL"]
c.JupyterHub.db_url = "sqlite:///hub.sqlite"
c.JupyterHub.cookie_secret_file = "cookie_secret"
c.JupyterHub.spawner_class = "perijove"
c.JupyterHub.authenticator_class = "shared-password"
c.Authenticator.allow_all = True
c.SharedPasswordAuthenticator.user_password = os.environ["TEST_PASSWORD"]
c.JupyterHub.allow_named_servers = True
c.JupyterHub.concurrent_spawn_limit = 0
c.JupyterHub.cleanup_servers = False
c.JupyterHub.init_spawners_timeout = 1
c.JupyterHub.tornado_settings = {"slow_spawn_timeout": 2}
c.ConfigurableHTTPProxy.should_start = False
c.ConfigurableHTTPProxy.api_url = os.environ["TEST_PROXY_API_URL"]
c.JupyterHub.template_paths = template_paths()
c.JupyterHub.extra_handlers = extra_handlers()
c.JupyterHub.custom_scopes = {
    "custom:perijove:sessions:read": {"description": "See sessions"},
    "custom:perijove:sessions:extend": {"description": "Extend sessions"},
}
c.JupyterHub.extra_user_scopes = [
    "custom:perijove:sessions:read!user", "custom:perijove:sessions:extend!user"
]
c.JupyterHub.services = [{"name": "test", "api_token": os.environ["TEST_API_TOKEN"]}]
c.JupyterHub.load_roles = [{"name": "test", "services": ["test"],
    "scopes": ["admin:users", "admin:servers", "tokens", "proxy", "access:servers"]}]
c.PerijoveSpawner.poll_cache_seconds = 0.2
c.Spawner.poll_interval = 1
c.Spawner.http_timeout = 20
"""


async def until(condition: Callable[[], Any], what: str, timeout: float = 90) -> Any:
    """Wait until ``condition()`` (may be async) is true and return it; fail with ``what``."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        await asyncio.sleep(0.05)


class HubProcess:
    """The proxy (which stays) and the hub (which may be killed and started again)."""

    def __init__(self, folder: Path, manager_url: str, secret: str, extra: str = "") -> None:
        self.folder = folder
        proxy, api, hub = free_port(), free_port(), free_port()
        self.url = f"http://127.0.0.1:{proxy}/base"
        self.api_url = f"http://127.0.0.1:{hub}/base/hub/api"
        self.environ = {
            **os.environ,
            "TEST_PUBLIC_URL": f"http://127.0.0.1:{proxy}",
            "TEST_HUB_URL": f"http://127.0.0.1:{hub}",
            "TEST_PROXY_API_URL": f"http://127.0.0.1:{api}",
            "TEST_PASSWORD": PASSWORD,
            "TEST_API_TOKEN": API_TOKEN,
            "CONFIGPROXY_AUTH_TOKEN": "proxy-token",
            "PERIJOVE_MANAGER_URL": manager_url,
            "PERIJOVE_HUB_SECRET": secret,
            "PYTHONUNBUFFERED": "1",
            "PYTHONWARNINGS": "default",
        }
        (folder / "config.py").write_text(CONFIG + extra)
        self._proxy_ports = (proxy, api)
        self.proxy: asyncio.subprocess.Process | None = None
        self.hub: asyncio.subprocess.Process | None = None
        self.http = aiohttp.ClientSession(headers={"Authorization": f"token {API_TOKEN}"})

    @property
    def log(self) -> str:
        """All that the hub wrote so far."""
        return (self.folder / "hub.log").read_text(errors="replace")

    @property
    def unexpected(self) -> str:
        """The log without the tracebacks that JupyterHub writes for forms that were refused."""
        lines: list[str] = []
        skipping = False
        for line in self.log.splitlines():
            if line.startswith("["):
                skipping = any(known in line for known in EXPECTED_TRACEBACKS)
            if not skipping:
                lines.append(line)
        return "\n".join(lines)

    def configure(self, lines: str) -> None:
        """Add to the configuration of the hub's next start."""
        with (self.folder / "config.py").open("a") as file:
            file.write(f"\n{lines}\n")

    async def start_proxy(self) -> None:
        """Start configurable-http-proxy."""
        port, api = self._proxy_ports
        hub = self.environ["TEST_HUB_URL"]
        with (self.folder / "proxy.log").open("ab") as log:
            self.proxy = await asyncio.create_subprocess_exec(
                "configurable-http-proxy",
                *("--ip", "127.0.0.1", "--port", str(port)),
                *("--api-ip", "127.0.0.1", "--api-port", str(api), "--error-target", hub),
                env=self.environ,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def start_hub(self) -> None:
        """Start the hub and wait until it answers."""
        with (self.folder / "hub.log").open("ab") as log:
            self.hub = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "jupyterhub", "-f", "config.py"),
                cwd=self.folder,
                env=self.environ,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        await until(self._answers, "the hub answers")

    async def _answers(self) -> bool:
        assert self.hub is not None
        assert self.hub.returncode is None, self.log[-4000:]
        with contextlib.suppress(aiohttp.ClientError):
            async with self.http.get(f"{self.api_url}/") as response:
                return response.status == 200
        return False

    async def kill_hub(self) -> None:
        """``kill -9``."""
        assert self.hub is not None
        self.hub.send_signal(signal.SIGKILL)
        await self.hub.wait()

    async def close(self) -> None:
        """End both."""
        await self.http.close()
        for process in (self.hub, self.proxy):
            if process is not None and process.returncode is None:
                process.terminate()
                try:
                    await asyncio.wait_for(process.wait(), 10)
                except TimeoutError:
                    process.kill()
                    await process.wait()

    async def api(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and JSON (or text) of a call of the hub's REST API as an administrator."""
        async with self.http.request(method, self.api_url + path, json=body) as response:
            text = await response.text()
            if text and response.content_type == "application/json":
                return response.status, await response.json()
            return response.status, text

    async def server(self, user: str, name: str = "") -> dict[str, Any]:
        """The hub's model of a server; empty when it is not active."""
        status, model = await self.api("GET", f"/users/{user}?include_stopped_servers")
        assert status == 200, model
        return dict(model["servers"].get(name) or {})

    async def ready(self, user: str, name: str = "") -> bool:
        """Whether the hub says that the server is ready."""
        return bool((await self.server(user, name)).get("ready"))


class Browser:
    """A logged-in user without JavaScript."""

    def __init__(self, hub: HubProcess, http: aiohttp.ClientSession) -> None:
        self.hub = hub
        self.http = http

    async def get(self, path: str) -> tuple[int, str, str]:
        """Status, final URL and text of a page of the hub."""
        async with self.http.get(self.hub.url + path) as response:
            return response.status, str(response.url), await response.text()

    async def post(self, path: str, data: dict[str, str]) -> tuple[int, str, str]:
        """Post a form, with the XSRF token of this browser's cookie."""
        url = f"{self.hub.url}{path}?_xsrf={self.xsrf}"
        async with self.http.post(url, data=data) as response:
            return response.status, str(response.url), await response.text()

    @property
    def xsrf(self) -> str:
        """The XSRF token for pages of the hub."""
        cookies = self.http.cookie_jar.filter_cookies(URL(self.hub.url + "/hub/"))
        return cookies["_xsrf"].value


@contextlib.asynccontextmanager
async def browser(hub: HubProcess, user: str) -> AsyncIterator[Browser]:
    """A browser in which ``user`` is logged in."""
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(cookie_jar=jar) as http:
        page = Browser(hub, http)
        await page.get("/hub/login")
        status, url, text = await page.post("/hub/login", {"username": user, "password": PASSWORD})
        assert status == 200, text
        assert "/login" not in url, text
        yield page
