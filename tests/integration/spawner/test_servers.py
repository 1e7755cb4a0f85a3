"""Servers of a real hub as sessions of a manager: form, API, named servers, refusals, ends."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.integration.spawner.conftest import contract_manager, running_hub
from tests.integration.spawner.contract_manager import QUEUED, ContractManager
from tests.integration.spawner.hub_process import HubProcess, browser, until

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The hub's folder."""
    return tmp_path_factory.mktemp("hub")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def one_manager() -> AsyncIterator[ContractManager]:
    """One manager for all tests here."""
    async with contract_manager() as manager:
        yield manager


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hub(one_manager: ContractManager, where: Path) -> AsyncIterator[HubProcess]:
    """One hub for all tests here; each uses users of its own."""
    async with running_hub(where, one_manager) as hub:
        yield hub


@pytest.fixture
def manager(one_manager: ContractManager) -> ContractManager:
    """The manager, as if it were new."""
    one_manager.sessions.clear()
    one_manager.run_at_once, one_manager.refuse = False, None
    return one_manager


@pytest_asyncio.fixture(loop_scope="module")
async def user(hub: HubProcess) -> str:
    """A new user of the hub."""
    name = f"user{next(_numbers)}"
    assert (await hub.api("POST", f"/users/{name}"))[0] == 201
    return name


_numbers = itertools.count(1)


async def test_form_to_running_server(hub: HubProcess, manager: ContractManager, user: str) -> None:
    manager.run_at_once = True
    async with browser(hub, user) as page:
        status, _, text = await page.get("/hub/spawn")
        assert status == 200
        for word in ("Small", "Fits now", "Would wait", "Too big", "Waits for 1 more CPU."):
            assert word in text
        assert "&lt;b&gt;ML" in text, "labels are escaped"
        assert "<b>ML" not in text
        form = {"preset": "custom", "cpu": "2", "mem_gib": "3", "image": "perijove/ml:1"}
        status, url, text = await page.post("/hub/spawn", form)
        assert status == 200
        assert url.endswith(f"/user/{user}/")
    body = manager.sessions[0].body
    assert body["image"] == "perijove/ml:1"
    assert body["config"]["resources"] == {"cpu": "2", "mem": str(3 * 1024**3)}
    environ = body["config"]["environ"]
    where = "http://{bind_host}:{bind_port}"
    assert environ["JUPYTERHUB_SERVICE_URL"] == f"{where}/base/user/{user}/"
    assert environ["JUPYTERHUB_ROOT_DIR"] == "{home}"
    assert (environ["CPU_LIMIT"], environ["MEM_LIMIT"]) == ("2", str(3 * 1024**3))
    assert body["perijove"]["command"] == ["jupyterhub-singleuser"]


async def test_what_can_never_fit_is_refused_in_the_form_with_what_was_entered(
    hub: HubProcess, manager: ContractManager, user: str
) -> None:
    async with browser(hub, user) as page:
        form = {"preset": "custom", "cpu": "99", "mem_gib": "7", "image": "perijove/ml:1"}
        status, _, text = await page.post(f"/hub/spawn/{user}/second", form)
        assert status == 400
        assert "No node has 99 CPUs; the largest has 8." in text
        assert 'id="error-cpu"' in text
        assert 'name="cpu"' in text
        assert 'value="99"' in text
        assert 'value="7"' in text
        form = {
            "preset": "custom",
            "cpu": "<script>alert(1)</script>",
            "mem_gib": "-1",
            "evil": "1",
        }
        status, _, text = await page.post("/hub/spawn", form)
        assert status == 400
        assert "<script>alert" not in text
        assert 'id="error-cpu"' in text
        assert 'id="error-mem_gib"' in text
    assert not manager.sessions


async def test_last_choice_is_preselected(
    hub: HubProcess, manager: ContractManager, user: str
) -> None:
    manager.run_at_once = True
    async with browser(hub, user) as page:
        await page.post("/hub/spawn", {"preset": "custom", "cpu": "3", "mem_gib": "5.5"})
        await until(lambda: hub.ready(user), "ready")
        await hub.api("DELETE", f"/users/{user}/server")
        await until(lambda: not manager.live(), "ended")
        _, _, text = await page.get("/hub/spawn")
        assert 'name="cpu"' in text
        assert 'value="3"' in text
        assert 'value="5.5"' in text


HOSTILE: list[tuple[dict[str, Any], str]] = [
    ({"image": ["a"]}, "image"),
    ({"image": "../../etc/passwd"}, "image"),
    ({"slots": {"cpu": "NaN"}}, "slots.cpu"),
    ({"slots": {"cpu": -1}}, "slots.cpu"),
    ({"slots": {"cpu": 1e300}}, "slots.cpu"),
    ({"slots": {"mem": {"a": {"b": "c"}}}}, "slots.mem"),
    ({"slots": [1, 2]}, "slots"),
    ({"slots": {"x" * 5000: "1"}}, "slots"),
    ({"preset": "no such"}, "preset"),
    ({"preset": "nosuch"}, "preset"),
    ({"mounts": ["../other"]}, "mounts"),
    ({"environ": {"LD_PRELOAD": "x"}}, "environ"),
    ({str(n): n for n in range(3000)}, "user_options"),
    ({"image": "evil/image:latest"}, "image"),
]


async def test_hostile_options_are_refused_by_name(
    hub: HubProcess, manager: ContractManager, user: str
) -> None:
    for options, named in HOSTILE:
        status, answer = await hub.api("POST", f"/users/{user}/server", {"user_options": options})
        assert status == 400, answer
        assert named in answer["message"]
        assert len(answer["message"]) < 2000
    assert not manager.sessions
    manager.run_at_once = True
    status, answer = await hub.api("POST", f"/users/{user}/server", {"user_options": {}})
    assert status == 201, answer


async def test_named_servers_and_odd_names_live_side_by_side(
    hub: HubProcess, manager: ContractManager
) -> None:
    manager.run_at_once = True
    users = ["a.b", "a-b", "a_b", "ab@example.org", "ünï"]
    for user in users:
        assert (await hub.api("POST", f"/users/{user}"))[0] == 201
        for path in ("server", "servers/lab", "servers/second"):
            status, answer = await hub.api("POST", f"/users/{user}/{path}")
            assert status == 201, answer
    assert len({session.name for session in manager.sessions}) == 3 * len(users)
    assert {session.user for session in manager.sessions} == set(users)
    status, answer = await hub.api("DELETE", "/users/a.b/servers/second")
    assert status in (202, 204), answer
    await until(lambda: len(manager.live()) == 3 * len(users) - 1, "one ended")
    assert await hub.ready("a.b")
    assert await hub.ready("a-b", "second")


async def test_queued_start_is_followed_and_cancelled(
    hub: HubProcess, manager: ContractManager, user: str
) -> None:
    assert (await hub.api("POST", f"/users/{user}/server"))[0] == 202
    listeners = [asyncio.ensure_future(_events(hub, user)) for _ in range(2)]
    async with browser(hub, user) as page:
        status, _, text = await page.get(f"/hub/spawn-pending/{user}")
        assert status == 200
        assert "perijove-cancel" in text
    await until(lambda: manager.live(), "submitted")
    status, answer = await hub.api("DELETE", f"/users/{user}/server")
    assert status in (202, 204), answer
    assert manager.sessions[0].status == "CANCELLED"
    for listener in listeners:
        messages = await asyncio.wait_for(listener, 10)
        assert QUEUED in messages
        assert messages[-1].startswith("Spawn cancelled")


async def _events(hub: HubProcess, user: str) -> list[str]:
    messages = []
    async with hub.http.get(f"{hub.api_url}/users/{user}/server/progress") as response:
        async for line in response.content:
            if line.startswith(b"data:"):
                messages.append(json.loads(line[5:])["message"])
    return messages


async def test_failed_start_says_why_with_the_log_and_without_traceback(
    hub: HubProcess, manager: ContractManager, user: str
) -> None:
    async with browser(hub, user) as page:
        assert (await hub.api("POST", f"/users/{user}/server"))[0] == 202
        manager.fail(manager.sessions[0], "killed: out of memory", "line 1\n<b>line 2</b>", 137)
        messages = await _events(hub, user)
        assert "killed: out of memory (exit code 137)" in messages[-1]
        status, _, text = await page.get(f"/hub/spawn-pending/{user}")
        assert status == 500
        assert "&lt;b&gt;line 2" in text
        assert "<b>line 2" not in text


@pytest.mark.parametrize(
    ("status", "slug", "sentence"),
    [
        (412, "quota-exceeded", "You have reached your limit of 2 sessions"),
        (403, "generic-forbidden", "This group is not open to you"),
    ],
)
async def test_refusals_reach_the_user_as_sentences(
    hub: HubProcess, manager: ContractManager, user: str, status: int, slug: str, sentence: str
) -> None:
    problem = {"type": f"https://api.backend.ai/probs/{slug}", "title": "T", "msg": sentence}
    manager.refuse = (status, problem)
    got, answer = await hub.api("POST", f"/users/{user}/server")
    assert (got, answer["message"]) == (status, sentence)
    async with browser(hub, user) as page:
        got, _, text = await page.post("/hub/spawn", {"preset": "Small"})
        assert got == status
        assert sentence in text


async def test_end_of_a_session_is_noticed_and_an_absent_manager_is_not_death(
    hub: HubProcess, manager: ContractManager, user: str
) -> None:
    manager.run_at_once = True
    assert (await hub.api("POST", f"/users/{user}/server"))[0] == 201
    await manager.pause()
    await until(lambda: f"Nothing new about {user}" in hub.log, "a poll found no manager")
    assert await hub.ready(user)
    await manager.start()
    manager.fail(manager.sessions[0], "killed", code=137)
    await until(
        lambda: f"User {user} server stopped, with exit code: 137" in hub.log, "it was noticed"
    )


async def test_start_waits_for_a_manager_that_is_away(
    hub: HubProcess, manager: ContractManager, user: str
) -> None:
    manager.run_at_once = True
    await manager.pause()
    assert (await hub.api("POST", f"/users/{user}/server"))[0] == 202
    await manager.start()
    await until(lambda: hub.ready(user), "started after all")
    assert len(manager.sessions) == 1


async def test_form_without_a_manager_starts_what_was_chosen_before(
    hub: HubProcess, manager: ContractManager, user: str
) -> None:
    manager.run_at_once = True
    async with browser(hub, user) as page:
        await page.post("/hub/spawn", {"preset": "custom", "cpu": "3", "mem_gib": "1"})
        await until(lambda: hub.ready(user), "ready")
        await hub.api("DELETE", f"/users/{user}/server")
        await until(lambda: not manager.live(), "ended")
        await manager.pause()
        _, _, text = await page.get("/hub/spawn")
        assert "what you chose the last time" in text
        status, url, _ = await page.post("/hub/spawn", {"again": "1"})
        assert (status, "/spawn-pending/" in url) == (200, True)
        await manager.start()
        await until(lambda: hub.ready(user), "started after all")
    assert manager.sessions[-1].body["config"]["resources"]["cpu"] == "3"


async def test_check_answers_only_for_oneself_and_only_with_xsrf_token(
    hub: HubProcess, manager: ContractManager, user: str
) -> None:
    (await hub.api("POST", "/users/bob"))
    async with browser(hub, user) as page:
        await page.get("/hub/spawn")
        url = f"{hub.url}/hub/perijove/check/{user}"
        token = {"X-XSRFToken": page.xsrf}
        form = {"preset": "custom", "cpu": "6", "mem_gib": "1"}
        async with page.http.post(url, json=form, headers=token) as response:
            assert response.status == 200
            assert (await response.json())["verdict"] == "wait"
        async with page.http.post(url, json=form | {"cpu": "x"}, headers=token) as response:
            answer = await response.json()
            assert answer["verdict"] == "never"
            assert set(answer["errors"]) == {"cpu"}
        async with page.http.post(url, json=form) as response:
            assert response.status == 403
        async with page.http.post(url, json=[1], headers=token) as response:
            assert response.status == 400
        other = url.replace(f"/{user}", "/bob")
        async with page.http.post(other, json=form, headers=token) as response:
            assert response.status in (403, 404)
    async with (
        aiohttp.ClientSession() as nobody,
        nobody.post(f"{hub.url}/hub/perijove/check/{user}", json={}) as response,
    ):
        assert response.status == 403
