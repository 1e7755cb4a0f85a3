"""Who sees what; lists, names, waiting, events, shutdown."""

import asyncio
from dataclasses import replace

import pytest

from authenticator.principals import Role, Scope, Via
from authenticator.problems import (
    BadRequest,
    FolderOperationFailed,
    Forbidden,
    InvalidParameters,
    NotFound,
    SessionAlreadyExists,
)
from spawner.sessions.events import LAGGED, Event
from spawner.sessions.queries import only_one
from spawner.sessions.states import Status
from tests.harness.agent import SlowAgent
from tests.harness.plane import FINISHED, REQUEST, Rig, hub_launch, until


async def test_strangers_see_nothing_and_superadmins_everything(plane: Rig) -> None:
    await plane.agent()
    ada, eve = await plane.user(), await plane.user("eve")
    admin = await plane.user("root", Role.SUPERADMIN)
    detail = await plane.run(ada, name="ada-lab")
    service, ref = plane.plane.sessions, str(detail.session.id)
    for call in (
        service.get(eve, ref),
        service.get(eve, "ada-lab"),
        service.history(eve, ref),
        service.logs(eve, ref),
        service.rename(eve, ref, "mine-now", REQUEST),
        service.destroy(eve, ref, forced=True, request_id=REQUEST),
        service.get(ada, "no-such"),
    ):
        with pytest.raises(NotFound) as refused:
            await call
        assert refused.value.body()["title"] == "No such session."
    assert await service.list(eve) == []
    with pytest.raises(Forbidden):
        await service.list(eve, all_owners=True)
    found = (await service.list(admin, all_owners=True))[0]
    assert (found.owner, found.main.agent_id) == ("ada", "node-1")
    assert (await service.list(ada))[0].main.agent_id is None
    assert await service.count(admin, all_owners=True) == 1
    assert await service.count(admin) == 0
    reader = replace(ada, scopes=frozenset({Scope.SESSIONS_READ}))
    assert (await service.get(reader, ref)).owner == "ada"
    with pytest.raises(Forbidden):
        await service.destroy(reader, ref, forced=False, request_id=REQUEST)
    await service.destroy(admin, ref, forced=False, request_id=REQUEST)
    ended = await plane.wait(detail, *FINISHED)
    assert ended.session.status_info == "ended by an administrator"


async def test_lists_are_filtered_paged_and_newest_first(plane: Rig) -> None:
    ada = await plane.user()
    await plane.agent()
    names = [f"s-{number:04d}" for number in range(5)]
    for name in names:
        await plane.create(ada, name=name, cpu="100")
    service = plane.plane.sessions
    assert [d.session.name for d in await service.list(ada)] == names[::-1]
    page = await service.list(ada, limit=2, offset=1)
    assert [d.session.name for d in page] == ["s-0003", "s-0002"]
    assert await service.list(ada, statuses={Status.RUNNING}) == []
    assert len(await service.list(ada, statuses={Status.PENDING})) == 5
    with pytest.raises(InvalidParameters):
        await service.list(ada, limit=0)
    first = (await service.list(ada, limit=1))[0]
    for prefix in ("s-0004", str(first.session.id)[:13], first.session.id.hex[:9]):
        assert [d.session.name for d in await service.match(ada, prefix)] == ["s-0004"]
    assert len(await service.match(ada, "s-")) == 5
    assert await service.match(ada, "%") == []
    await plane.plane.scheduler.run_once()


def test_one_match_of_many() -> None:
    with pytest.raises(NotFound):
        only_one([], "x")


async def test_rename(plane: Rig) -> None:
    agent = await plane.agent()
    ada = await plane.user()
    service = plane.plane.sessions
    detail = await plane.run(ada, name="before")
    await plane.run(ada, name="other")
    with pytest.raises(InvalidParameters):
        await service.rename(ada, "before", "?", REQUEST)
    with pytest.raises(SessionAlreadyExists):
        await service.rename(ada, "before", "other", REQUEST)
    await service.rename(ada, "before", "after", REQUEST)
    assert (await service.get(ada, "after")).session.id == detail.session.id

    async def told() -> set[str]:
        assert agent.wanted is not None
        return {spec.session_name for spec in agent.wanted.kernels}

    await until(told, lambda names: names == {"after", "other"})
    assert len(agent.starts) == 2
    waiting = await plane.create(ada, cpu="100")
    with pytest.raises(BadRequest, match="is PENDING"):
        await service.rename(ada, waiting.session.name, "too-early", REQUEST)


async def test_waiting_ends_with_its_time(plane: Rig) -> None:
    await plane.agent()
    ada = await plane.user()
    detail = await plane.create(ada, cpu="100")
    service = plane.plane.sessions
    found = await service.wait(detail.session.id, frozenset({Status.RUNNING}), 0.01)
    assert found.status is Status.PENDING
    with pytest.raises(NotFound):
        await service.wait(ada.user_id, FINISHED, 0.01)


async def test_events_reach_their_owner_only(plane: Rig) -> None:
    await plane.agent(SlowAgent())
    ada, eve = await plane.user(), await plane.user("eve")
    service = plane.plane.sessions
    mine = service.events(ada, "ada-lab", "session")
    hers = service.events(eve)
    getting = asyncio.ensure_future(anext(mine))
    nothing = asyncio.ensure_future(anext(hers))
    await _subscribed(plane, 2)
    await plane.create(ada, name="noise-1")
    detail = await plane.create(ada, name="ada-lab")
    event = await asyncio.wait_for(getting, 5)
    assert (event.name, event.session_id) == ("session_enqueued", detail.session.id)
    assert event.data() == {
        "reason": "",
        "sessionName": "ada-lab",
        "ownerAccessKey": ada.access_key,
        "sessionId": str(detail.session.id),
        "exitCode": None,
    }
    assert not nothing.done()
    nothing.cancel()
    await asyncio.gather(nothing, return_exceptions=True)
    await mine.aclose()
    await hers.aclose()


async def test_a_reader_that_does_not_keep_up_is_dropped_with_a_word(plane: Rig) -> None:
    ada = await plane.user()
    bus = plane.plane.bus
    slow = bus.subscribe(size=2)
    event = Event("session_started", ada.user_id, "x", ada.user_id, "k", "default")
    for _ in range(5):
        bus.publish(event)
    assert [each.name async for each in slow] == ["session_started", "session_started", LAGGED]
    assert len(bus) == 0


async def test_the_hub_keeps_the_names_of_its_servers(plane: Rig) -> None:
    await plane.agent()
    ada = await plane.user()
    hub = replace(ada, via=Via.HUB)
    made = await plane.create(hub, name="ada-lab-0123456789", hub=hub_launch())
    await plane.wait(made)
    with pytest.raises(BadRequest, match="server of JupyterHub"):
        await plane.plane.sessions.rename(ada, made.session.name, "another", REQUEST)


async def test_folders_of_live_sessions_stay(plane: Rig) -> None:
    await plane.agent()
    ada = await plane.user()
    await plane.folders.create(ada, "data-1")
    detail = await plane.run(ada, mounts=["data-1"])
    with pytest.raises(FolderOperationFailed, match="mounted"):
        await plane.folders.delete(ada, "data-1")
    await plane.destroy(ada, detail)
    await plane.wait(detail, *FINISHED)
    await plane.folders.delete(ada, "data-1")


async def test_everything_ends_when_the_deployment_stops(plane: Rig) -> None:
    await plane.agent()
    ada = await plane.user()
    running = await plane.run(ada)
    await plane.create(ada, cpu="100")
    assert await plane.plane.sessions.end_all(REQUEST) <= 1
    await plane.wait(running, *FINISHED)
    assert await plane.plane.sessions.end_all(REQUEST) == 0


async def test_logs_have_bounds(plane: Rig) -> None:
    ada = await plane.user()
    with pytest.raises(InvalidParameters):
        await plane.plane.sessions.logs(ada, "x", tail=0)


async def _subscribed(plane: Rig, count: int) -> None:
    async def readers() -> int:
        return len(plane.plane.bus)

    await until(readers, lambda found: found >= count)
