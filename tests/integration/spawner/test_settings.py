"""Settings and hooks that people know from other Spawners, on one hub that uses them all."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.integration.spawner.conftest import contract_manager
from tests.integration.spawner.contract_manager import ContractManager
from tests.integration.spawner.hub_process import HubProcess, until

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]
SETTINGS = """
def before(spawner):
    with open("hooks", "a") as file:
        file.write(f"before {spawner.user.name} {spawner.name}\\n")
    if spawner.user.name.startswith("refused"):
        raise ValueError("the hook of this site is broken")
    spawner.environment = {**spawner.environment, "FROM_HOOK": spawner.user.name}

async def after(spawner):
    with open("hooks", "a") as file:
        file.write(f"after {spawner.user.name} {spawner.name}\\n")

def authenticated(spawner, auth_state):
    with open("hooks", "a") as file:
        file.write(f"state {spawner.user.name} {auth_state}\\n")

c.PerijoveSpawner.cmd = ["site-server", "--quick"]
c.PerijoveSpawner.args = ["--site.home={home}"]
c.PerijoveSpawner.default_url = "/tree/of/{username}"
c.PerijoveSpawner.notebook_dir = "{home}/work"
c.PerijoveSpawner.environment = {
    "SITE": "ours",
    "NUMBER": 7,
    "COMPUTED": lambda spawner: spawner.user.name.upper(),
    "PERIJOVE_API_URL": "https://elsewhere.example/api",
    "CPU_LIMIT": "many",
}
c.PerijoveSpawner.pre_spawn_hook = before
c.PerijoveSpawner.post_stop_hook = after
c.PerijoveSpawner.auth_state_hook = authenticated
c.PerijoveSpawner.image = "perijove/ml:1"
c.PerijoveSpawner.resource_group = "default"
c.PerijoveSpawner.debug = True
c.PerijoveSpawner.cpu_limit = 4
c.PerijoveSpawner.hub_connect_url = "http://hub.example:8081"
"""
_numbers = itertools.count(1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def one_manager() -> AsyncIterator[ContractManager]:
    async with contract_manager() as manager:
        yield manager


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The hub's folder, in which its hooks write."""
    return tmp_path_factory.mktemp("hub")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hub(one_manager: ContractManager, where: Path) -> AsyncIterator[HubProcess]:
    hub = HubProcess(where, one_manager.url, one_manager.secret, SETTINGS)
    try:
        await hub.start_proxy()
        await hub.start_hub()
        yield hub
    finally:
        await hub.close()


@pytest.fixture
def manager(one_manager: ContractManager) -> ContractManager:
    one_manager.sessions.clear()
    one_manager.run_at_once, one_manager.refuse = True, None
    return one_manager


async def user_of(hub: HubProcess, kind: str = "person") -> str:
    name = f"{kind}{next(_numbers)}"
    assert (await hub.api("POST", f"/users/{name}"))[0] == 201
    return name


async def started(hub: HubProcess, manager: ContractManager, user: str) -> dict[str, Any]:
    """The body with which the server's session was asked for."""
    status, answer = await hub.api("POST", f"/users/{user}/server")
    assert status == 201, answer
    (session,) = manager.live()
    return session.body


def told(where: Path, user: str) -> list[str]:
    """What the hooks wrote about ``user``."""
    lines = (where / "hooks").read_text().splitlines()
    return [line for line in lines if line.split()[1] == user]


async def test_the_command_is_the_sites_own(hub: HubProcess, manager: ContractManager) -> None:
    user = await user_of(hub)
    body = await started(hub, manager, user)
    command = body["perijove"]["command"]
    assert command == ["site-server", "--quick", "--site.home={home}"], (
        "the agent fills in the rest"
    )
    assert body["image"] == "perijove/ml:1"


async def test_the_environment_is_the_sites_own_and_wins(
    hub: HubProcess, manager: ContractManager
) -> None:
    user = await user_of(hub)
    environ = (await started(hub, manager, user))["config"]["environ"]
    assert environ["SITE"] == "ours"
    assert environ["NUMBER"] == "7"
    assert environ["COMPUTED"] == user.upper()
    assert environ["FROM_HOOK"] == user
    assert environ["PERIJOVE_API_URL"] == "https://elsewhere.example/api"
    assert environ["CPU_LIMIT"] == "many"
    assert environ["JUPYTERHUB_API_URL"].startswith("http://hub.example:8081/")
    assert environ["JUPYTERHUB_DEFAULT_URL"] == f"/tree/of/{user}"
    assert environ["JUPYTERHUB_DEBUG"] == "1"
    assert environ["JUPYTERHUB_ROOT_DIR"] == "{home}/work"


async def test_hooks_run_around_the_server(
    hub: HubProcess, manager: ContractManager, where: Path
) -> None:
    user = await user_of(hub)
    await started(hub, manager, user)
    assert told(where, user) == [f"state {user} None", f"before {user} "]
    assert (await hub.api("DELETE", f"/users/{user}/server"))[0] in (202, 204)
    await until(lambda: len(told(where, user)) == 3, "the hook after the end")
    assert told(where, user)[-1] == f"after {user} "
    assert not manager.live(), "the session ended first"


async def test_a_server_that_ends_by_itself_runs_the_hook_too(
    hub: HubProcess, manager: ContractManager, where: Path
) -> None:
    user = await user_of(hub)
    await started(hub, manager, user)
    manager.fail(manager.sessions[0], "killed", code=137)
    await until(lambda: told(where, user)[-1].startswith("after"), "the hook after the end")
    assert not await hub.server(user) or not await hub.ready(user)


async def test_a_hook_that_fails_starts_nothing(
    hub: HubProcess, manager: ContractManager, where: Path
) -> None:
    user = await user_of(hub, "refused")
    status, _ = await hub.api("POST", f"/users/{user}/server")
    assert status == 500
    assert manager.sessions == []
    assert not await hub.ready(user)
    assert "the hook of this site is broken" in hub.log


async def test_limits_of_the_site_hold(hub: HubProcess, manager: ContractManager) -> None:
    user = await user_of(hub)
    options = {"user_options": {"slots": {"cpu": "6", "mem": "1g"}}}
    status, answer = await hub.api("POST", f"/users/{user}/server", options)
    assert status == 400, answer
    assert "4" in answer["message"]
    assert manager.sessions == []
