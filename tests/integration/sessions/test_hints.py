"""Managers and commands on one PostgreSQL database wake each other; slow ticks are too slow to be the cause."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from authenticator.principals import Role
from spawner.scheduler.policies import BUILT_IN
from spawner.sessions import ledger
from spawner.sessions.administration import Administration
from spawner.sessions.control import ControlPlane, ControlSettings
from spawner.sessions.events import EventBus
from spawner.sessions.states import Status
from spawner.sessions.transitions import Change, Journal
from store import schema
from store.database import Store
from store.hints import APPLICATION, MAX_HINT
from tests.harness.plane import PATIENCE, REQUEST, Clock, Rig, request, rig, until

pytestmark = [pytest.mark.integration, pytest.mark.postgres]

SLOW = ControlSettings(tick=600.0, sync_interval=600.0)


@pytest.fixture
async def leader(postgres_url: str, tmp_path: Path) -> AsyncIterator[Rig]:
    """The manager that schedules, with the agents."""
    await asyncio.to_thread(schema.upgrade, postgres_url)
    store = Store(postgres_url)
    async with rig(store, tmp_path, SLOW) as made:
        assert made.plane.hints is not None
        await asyncio.wait_for(made.plane.hints.listening.wait(), PATIENCE)
        yield made
    await store.close()


@pytest.fixture
async def store(leader: Rig, postgres_url: str) -> AsyncIterator[Store]:
    """The connections of another process."""
    opened = Store(postgres_url)
    await opened.open()
    yield opened
    await opened.close()


async def test_what_one_manager_takes_another_starts_and_ends(leader: Rig, store: Store) -> None:
    agent = await leader.agent()
    ada = await leader.user()
    other = ControlPlane(store, leader.folders, leader.clock, SLOW)
    await other.start()
    try:
        assert not other.leads.is_set()
        made = await other.sessions.create(ada, ada, request(), REQUEST)
        running = await leader.wait(made.detail)
        assert running.status is Status.RUNNING
        await other.sessions.destroy(ada, str(running.session.id), forced=False, request_id=REQUEST)
        await leader.wait(running, Status.TERMINATED)
        assert not agent.kernels
    finally:
        await other.stop()


async def test_a_command_wakes_the_manager(leader: Rig, store: Store) -> None:
    await leader.agent()
    ada, root = await leader.user(), await leader.user("root", Role.SUPERADMIN)
    await leader.policy(max_concurrent_sessions=0)
    waiting = await leader.create(ada)

    async def told() -> str:
        return (await leader.plane.sessions.get(ada, str(waiting.session.id))).session.status_info

    await until(told, lambda said: said != "waiting for the scheduler")
    journal = Journal(store, EventBus(), leader.clock)

    async def repair() -> ledger.Repair:
        return await journal.write(REQUEST, lambda change: ledger.repair(change.db, change.now))

    command = Administration(journal, BUILT_IN, repair)
    (policy,) = await command.list(root, "keypair-policies")
    unlimited = {"max_concurrent_sessions": None}
    await command.update(root, "keypair-policies", policy["name"], unlimited, REQUEST)
    assert (await leader.wait(waiting)).status is Status.RUNNING


async def test_a_listener_that_lost_its_connection_listens_again(leader: Rig, store: Store) -> None:
    await leader.agent()
    ada, hints = await leader.user(), leader.plane.hints
    assert hints is not None
    kill = text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = :name"
    )
    assert await store.write(lambda db: db.scalar(kill, {"name": APPLICATION})) is True

    async def listening() -> bool:
        return hints.listening.is_set()

    await until(listening, lambda yes: not yes)
    await until(listening, bool)
    other = ControlPlane(store, leader.folders, leader.clock, SLOW)
    made = await other.sessions.create(ada, ada, request(), REQUEST)
    assert (await leader.wait(made.detail)).status is Status.RUNNING


def test_hints_name_agents_as_far_as_they_fit(postgres_url: str) -> None:
    journal = Journal(Store(postgres_url), EventBus(), Clock())

    def told(agents: int) -> dict[str, object]:
        change = Change(AsyncSession(), journal.now(), REQUEST)
        change.agents = {f"node-{number}" for number in range(agents)}
        payload = journal._hint(change)
        assert len(payload) <= MAX_HINT
        return dict(json.loads(payload))

    assert (told(2)["agents"], told(2)["all"]) == (["node-0", "node-1"], False)
    assert (told(5000)["agents"], told(5000)["all"]) == ([], True)
