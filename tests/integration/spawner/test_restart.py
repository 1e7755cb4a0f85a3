"""A hub that dies while a session of its waits, starts or ends loses nothing and leaves nothing behind.

The three cases are those in which JupyterHub with an ordinary queueing spawner orphans the job (A), kills it
after ``http_timeout`` (B), or keeps it but can neither show nor stop it (C).
"""

import asyncio
import json

import pytest

from tests.integration.spawner.contract_manager import ContractManager
from tests.integration.spawner.hub_process import HubProcess, browser, until

pytestmark = pytest.mark.integration


async def queued_then_killed(hub: HubProcess, manager: ContractManager) -> None:
    """Alice's start waits in the queue; the hub is killed and started again."""
    assert (await hub.api("POST", "/users/alice"))[0] == 201
    status, _ = await hub.api("POST", "/users/alice/server", {"user_options": {}})
    assert status == 202
    assert any(session.user == "alice" for session in manager.live())
    await hub.kill_hub()
    await hub.start_hub()


async def test_a_queued_start_survives_without_saved_state(
    hub: HubProcess, manager: ContractManager
) -> None:
    await queued_then_killed(hub, manager)
    assert (await hub.server("alice"))["pending"] == "spawn"
    session = manager.sessions[0]
    assert session.target == "RUNNING"

    manager.run(session)
    await until(lambda: hub.ready("alice"), "the server is ready")
    assert [s.id for s in manager.sessions] == [session.id]
    async with browser(hub, "alice") as page:
        status, url, text = await page.get("/user/alice/")
        assert (status, text[:12]) == (200, "session page"), url


async def test_every_queued_start_gets_its_route_when_it_runs(
    hub: HubProcess, manager: ContractManager
) -> None:
    assert (await hub.api("POST", "/users/bob"))[0] == 201
    assert (await hub.api("POST", "/users/bob/server"))[0] == 202
    await queued_then_killed(hub, manager)
    bob, alice = manager.sessions
    manager.run(bob)
    await until(lambda: hub.ready("bob"), "bob's server is ready while alice's still waits")
    assert (await hub.server("alice"))["pending"] == "spawn"
    async with browser(hub, "bob") as page:
        status, url, text = await page.get("/user/bob/")
        assert (status, text[:12]) == (200, "session page"), url
    manager.run(alice)
    await until(lambda: hub.ready("alice"), "alice's server is ready")


async def test_b_queued_start_outlives_http_timeout(
    hub: HubProcess, manager: ContractManager
) -> None:
    hub.configure("c.Spawner.http_timeout = 1")
    await queued_then_killed(hub, manager)
    clock = asyncio.get_running_loop().time
    began = clock()
    await until(lambda: clock() - began > 2.5, "longer than http_timeout")
    assert manager.sessions[0].target == "RUNNING"
    assert (await hub.server("alice"))["pending"] == "spawn"


async def test_c_resumed_start_shows_progress_from_the_beginning(
    hub: HubProcess, manager: ContractManager
) -> None:
    await queued_then_killed(hub, manager)
    status, _ = await hub.api("POST", "/users/alice/server")
    assert status == 202, "a second start joins the first"
    url = f"{hub.api_url}/users/alice/server/progress"
    seen = []
    async with hub.http.get(url) as response:
        assert response.status == 200
        async for line in response.content:
            if not line.startswith(b"data:"):
                continue
            event = json.loads(line[5:])
            seen.append(event["message"])
            if "Second in line" in event["message"]:
                manager.run(manager.sessions[0])
            if event.get("ready") or event.get("failed"):
                break
    assert seen[1] == "Second in line: waiting for 2 CPUs"
    assert seen[2:4] == ["Preparing the folder", "Creating the container"]
    assert seen[-1].startswith("Server ready")


async def test_c_resumed_start_can_be_cancelled_and_started_again(
    hub: HubProcess, manager: ContractManager
) -> None:
    await queued_then_killed(hub, manager)
    status, answer = await hub.api("DELETE", "/users/alice/server")
    assert status in (202, 204), answer
    await until(lambda: not manager.live(), "the session is cancelled")
    assert manager.sessions[0].status == "CANCELLED"
    await until(lambda: _stopped(hub, "alice"), "the hub knows")

    manager.run_at_once = True
    status, answer = await hub.api("POST", "/users/alice/server")
    assert status == 201, answer
    await until(lambda: hub.ready("alice"), "the new server is ready")
    assert len(manager.sessions) == 2


async def test_stop_after_a_restart_revokes_the_servers_token(
    hub: HubProcess, manager: ContractManager
) -> None:
    manager.run_at_once = True
    assert (await hub.api("POST", "/users/alice"))[0] == 201
    assert (await hub.api("POST", "/users/alice/server"))[0] == 201
    token = manager.sessions[0].body["config"]["environ"]["JUPYTERHUB_API_TOKEN"]
    await hub.kill_hub()
    await hub.start_hub()
    await until(lambda: hub.ready("alice"), "the server is ready again")
    assert await _token_is_valid(hub, token)
    status, answer = await hub.api("DELETE", "/users/alice/server")
    assert status in (202, 204), answer
    await until(lambda: _stopped(hub, "alice"), "stopped")
    assert not await _token_is_valid(hub, token)


async def _token_is_valid(hub: HubProcess, token: str) -> bool:
    headers = {"Authorization": f"token {token}"}
    async with hub.http.get(f"{hub.api_url}/user", headers=headers) as response:
        return response.status == 200


async def _stopped(hub: HubProcess, user: str) -> bool:
    server = await hub.server(user)
    return not server or bool(server.get("stopped"))


async def test_session_that_fails_while_resumed_is_told_and_cleaned_up(
    hub: HubProcess, manager: ContractManager
) -> None:
    await queued_then_killed(hub, manager)
    async with browser(hub, "alice") as page:
        manager.fail(manager.sessions[0], "the image is broken", "no module named jupyterlab")
        await until(lambda: _stopped(hub, "alice"), "the hub knows")
        _, _, text = await page.get("/hub/spawn-pending/alice")
        assert "the image is broken" in text
        assert "no module named jupyterlab" in text
    manager.run_at_once = True
    status, answer = await hub.api("POST", "/users/alice/server")
    assert status == 201, answer


async def test_session_that_ended_while_the_hub_was_away_is_cleaned_up(
    hub: HubProcess, manager: ContractManager
) -> None:
    assert (await hub.api("POST", "/users/alice"))[0] == 201
    assert (await hub.api("POST", "/users/alice/server"))[0] == 202
    await hub.kill_hub()
    manager.fail(manager.sessions[0], "gone")
    await hub.start_hub()
    await until(lambda: _stopped(hub, "alice"), "the hub knows")


async def test_running_server_survives_hub_and_manager_away_at_once(
    hub: HubProcess, manager: ContractManager
) -> None:
    manager.run_at_once = True
    assert (await hub.api("POST", "/users/alice"))[0] == 201
    assert (await hub.api("POST", "/users/alice/server"))[0] == 201
    await hub.kill_hub()
    await manager.pause()
    await hub.start_hub()
    assert (await hub.server("alice")).get("pending"), "unknown is not dead"
    await manager.start()
    await until(lambda: hub.ready("alice"), "the server is ready again")
    assert manager.sessions[0].target == "RUNNING"
    assert len(manager.sessions) == 1
    assert "had invalid url" not in hub.log


async def test_start_ends_a_session_left_from_before(
    hub: HubProcess, manager: ContractManager
) -> None:
    manager.run_at_once = True
    (await hub.api("POST", "/users/alice"))
    assert (await hub.api("POST", "/users/alice/server"))[0] == 201
    await hub.kill_hub()
    (hub.folder / "hub.sqlite").unlink()
    await hub.start_hub()
    (await hub.api("POST", "/users/alice"))
    status, answer = await hub.api("POST", "/users/alice/server")
    assert status == 201, answer
    old, new = manager.sessions
    assert (old.status, new.status) == ("TERMINATED", "RUNNING")
