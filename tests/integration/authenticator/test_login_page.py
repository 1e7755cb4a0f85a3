"""What a person sees on the log-in page of a real JupyterHub, with a stand-in for the manager."""

import asyncio
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from authenticator.authenticator import AWAY
from authenticator.problems import WRONG_CREDENTIALS, AuthFailed, RateLimited
from tests.harness.ports import free_port
from tests.unit.authenticator.test_authenticator import ADA, SECRET, Manager

pytestmark = pytest.mark.integration

CONFIG = """
import os
c.JupyterHub.authenticator_class = "perijove"
c.JupyterHub.spawner_class = "simple"
c.JupyterHub.bind_url = os.environ["BIND_URL"]
c.JupyterHub.hub_port = int(os.environ["HUB_PORT"])
c.ConfigurableHTTPProxy.api_url = os.environ["PROXY_API"]
c.ConfigurableHTTPProxy.command = [os.environ["PROXY_COMMAND"]]
c.JupyterHub.db_url = "sqlite:///hub.sqlite"
c.PerijoveAuthenticator.auth_refresh_age = 1
c.PerijoveAuthenticator.request_timeout = 3
"""


@dataclass
class Hub:
    url: str
    manager: Manager
    log: Path

    async def log_in(self, client: aiohttp.ClientSession, username: str) -> tuple[int, str]:
        """Fill in the form; the status and what the page says is wrong (or where it leads)."""
        async with client.get(f"{self.url}/hub/login") as page:
            assert page.status == 200
            xsrf = re.search(r'name="_xsrf"\s+value="([^"]+)"', await page.text())
        assert xsrf is not None
        form = {"_xsrf": xsrf[1], "username": username, "password": "pw"}
        async with client.post(f"{self.url}/hub/login", data=form, allow_redirects=False) as page:
            if page.status == 302:
                return 302, page.headers["Location"]
            said = re.search(r'class="[^"]*login_error[^"]*"[^>]*>(.*?)<', await page.text(), re.S)
            assert said is not None, "the page shows no error"
            return page.status, said[1].strip()


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[Hub]:
    proxy = shutil.which("configurable-http-proxy")
    assert proxy is not None, (
        "configurable-http-proxy is not installed: npm install -g configurable-http-proxy"
    )
    (tmp_path / "config.py").write_text(CONFIG)
    manager = Manager()
    public, api, port = free_port(), free_port(), free_port()
    environment = os.environ | {
        "BIND_URL": f"http://127.0.0.1:{public}",
        "PROXY_API": f"http://127.0.0.1:{api}",
        "HUB_PORT": str(port),
        "PROXY_COMMAND": proxy,
        "PERIJOVE_MANAGER_URL": manager.url,
        "PERIJOVE_HUB_SECRET": SECRET,
    }
    log = tmp_path / "hub.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "jupyterhub", "-f", "config.py"),
            cwd=tmp_path,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    started = Hub(f"http://127.0.0.1:{public}", manager, log)
    try:
        await _wait_until_served(started)
        yield started
    finally:
        process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.wait(), 30)
        manager.server.stop()
        await manager.server.close_all_connections()


async def _wait_until_served(hub: Hub) -> None:
    deadline = time.monotonic() + 60
    async with aiohttp.ClientSession() as client:
        while True:
            try:
                async with client.get(f"{hub.url}/hub/health") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            assert time.monotonic() < deadline, hub.log.read_text()
            await asyncio.sleep(0.1)


def browser() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True))


async def test_every_refusal_has_its_sentence_and_a_disabled_user_is_out(hub: Hub) -> None:
    manager = hub.manager
    async with browser() as client:
        manager.answer = AuthFailed(WRONG_CREDENTIALS)
        assert await hub.log_in(client, "ada") == (403, "Invalid username or password")
        assert await hub.log_in(client, "x" * 5000) == (403, "Invalid username or password")
        manager.answer = RateLimited("Too many failed log-ins: try again in 8 seconds.", 8)
        status, said = await hub.log_in(client, "ada")
        assert (status, said) == (429, "Too many failed log-ins: try again in 8 seconds.")
        manager.answer = ADA | {"status": "active"}
        status, where = await hub.log_in(client, "Ada")
        assert status == 302
        assert where.startswith("/hub/")
        assert await is_logged_in(client, hub)
        manager.answer = ADA | {"status": "inactive"}
        await _wait_until_logged_out(client, hub)
        manager.server.stop()
        await manager.server.close_all_connections()
        assert not await is_logged_in(client, hub)  # out stays out while nobody can be asked
    async with browser() as client:
        assert await hub.log_in(client, "ada") == (503, AWAY)
    assert "x" * 40 not in hub.log.read_text()
    assert SECRET not in hub.log.read_text()


async def is_logged_in(client: aiohttp.ClientSession, hub: Hub) -> bool:
    async with client.get(f"{hub.url}/hub/home", allow_redirects=False) as page:
        assert page.status in (200, 302)
        return page.status == 200


async def _wait_until_logged_out(client: aiohttp.ClientSession, hub: Hub) -> None:
    deadline = time.monotonic() + 20
    while await is_logged_in(client, hub):
        assert time.monotonic() < deadline, "the disabled user is still logged in"
        await asyncio.sleep(0.1)
