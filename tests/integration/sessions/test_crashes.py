"""The manager is thrown away at named points; the next one goes on from rows alone, on either database."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
import pytest_asyncio

from spawner.sessions.failpoints import NAMES, armed
from spawner.sessions.states import Status
from store.database import Store
from tests.harness.agent import FakeAgent, SlowAgent
from tests.harness.plane import FINISHED, Rig, rig, until

pytestmark = pytest.mark.integration
STARTING = sorted(NAMES - {"destroy-committed"})


@pytest_asyncio.fixture
async def plane(database_url: str, tmp_path: Path) -> AsyncIterator[Rig]:
    """A control plane on each kind of database."""
    store = Store(database_url)
    async with rig(store, tmp_path) as made:
        yield made
    await store.close()


@pytest.mark.parametrize("point", STARTING)
async def test_a_start_survives_a_crash_anywhere(plane: Rig, point: str) -> None:
    agent = await plane.agent()
    ada = await plane.user()
    with armed(point) as reached:
        asking = asyncio.create_task(plane.create(ada, name="survivor"))
        await asyncio.wait_for(reached.wait(), 10)
        await plane.crash()
        asking.cancel()
        with suppress(asyncio.CancelledError):
            await asking
    await plane.restart()
    await plane.validate()
    detail = await plane.plane.sessions.get(ada, "survivor")
    assert (await plane.wait(detail)).status is Status.RUNNING
    assert agent.starts == [(str(detail.main.id), 1)]
    await plane.validate()


@pytest.mark.parametrize("point", ["destroy-committed", "push-sent", "report-received"])
async def test_an_end_survives_a_crash_anywhere(plane: Rig, point: str) -> None:
    agent = await plane.agent()
    ada = await plane.user()
    detail = await plane.run(ada)
    with armed(point) as reached:
        asking = asyncio.create_task(plane.destroy(ada, detail))
        await asyncio.wait_for(reached.wait(), 10)
        await plane.crash()
        asking.cancel()
        with suppress(asyncio.CancelledError):
            await asking
    await plane.restart()
    assert (await plane.wait(detail, *FINISHED)).status is Status.TERMINATED
    assert agent.kernels == {}
    assert len(agent.starts) == 1


async def test_a_running_session_is_adopted(plane: Rig) -> None:
    agent = await plane.agent()
    ada = await plane.user()
    detail = await plane.run(ada)
    started = (await plane.kernel(detail)).started_at
    await plane.crash()
    await plane.restart()
    found = await plane.plane.sessions.get(ada, detail.session.name)
    assert found.status is Status.RUNNING
    assert (await plane.kernel(detail)).started_at == started
    assert len(agent.starts) == 1


async def test_what_came_up_or_ended_meanwhile_is_learned_from_the_whole_report(plane: Rig) -> None:
    agent = await plane.agent(SlowAgent())
    ada = await plane.user()
    rising = await plane.create(ada)
    falling = await plane.create(ada)
    for detail in (rising, falling):
        await plane.wait(detail, Status.PREPARING)

    async def both() -> int:
        return len(agent.kernels)

    await until(both, lambda count: count == 2)
    agent.finish()
    await plane.wait(falling)
    await plane.wait(rising)
    await plane.crash()
    gone = next(k for k in agent.kernels.values() if k.spec.kernel_id == str(falling.main.id))
    del agent.kernels[gone.run]
    await plane.restart()
    ended = await plane.wait(falling, *FINISHED)
    assert "removed by somebody else" in ended.session.status_info
    assert (await plane.plane.sessions.get(ada, rising.session.name)).status is Status.RUNNING


async def test_an_agent_that_lost_its_memory_before_the_start_starts_once_more(plane: Rig) -> None:
    agent = await plane.agent(SlowAgent())
    ada = await plane.user()
    detail = await plane.create(ada)
    await plane.wait(detail, Status.PREPARING)

    async def told() -> int:
        return len(agent.kernels)

    await until(told, lambda count: count == 1)
    await agent.disconnect()
    plane.agents.remove(agent)
    fresh = FakeAgent(agent.agent_id)
    await plane.agent(fresh)
    assert (await plane.wait(detail)).status is Status.RUNNING
    assert fresh.starts == [(str(detail.main.id), 1)]
