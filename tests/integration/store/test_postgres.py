"""The store on a real PostgreSQL server, also while that server dies."""

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from store import schema
from store.database import Store, StoreUnavailable
from store.engine import parse_url
from store.leadership import LeadershipLost, PostgresLeadership
from tests.declared_tables import declared_tables
from tests.integration.postgres_server import PostgresServer

pytestmark = [pytest.mark.integration, pytest.mark.postgres]

SHAPE = """
SELECT 'column', c.relname || '.' || a.attname,
       format_type(a.atttypid, a.atttypmod) || CASE WHEN a.attnotnull THEN ' not null' ELSE '' END
       || coalesce(' default ' || pg_get_expr(d.adbin, d.adrelid), '')
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND a.attnum > 0
      AND NOT a.attisdropped
UNION ALL SELECT 'constraint', conname, pg_get_constraintdef(oid) FROM pg_constraint
WHERE connamespace = 'public'::regnamespace
UNION ALL SELECT 'index', indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'
ORDER BY 1, 2
"""


@pytest.fixture
async def store(postgres_url: str) -> AsyncIterator[Store]:
    opened = Store(postgres_url)
    await opened.open()

    async def make_table(session: AsyncSession) -> None:
        await session.execute(text("CREATE TABLE notes (name TEXT PRIMARY KEY)"))

    await opened.write(make_table)
    yield opened
    await opened.close()


async def add(store: Store, name: str) -> None:
    async def work(session: AsyncSession) -> None:
        await session.execute(text("INSERT INTO notes VALUES (:name)"), {"name": name})

    await store.write(work)


async def names(store: Store) -> list[str]:
    async def work(session: AsyncSession) -> list[str]:
        return list((await session.scalars(text("SELECT name FROM notes ORDER BY name"))).all())

    return await store.read(work)


def shape(server: PostgresServer, url: str) -> list[str]:
    lines = server.sql(SHAPE, url.rpartition("/")[2]).splitlines()
    return [line for line in lines if "alembic_version" not in line]


def test_migrations_make_exactly_the_tables_that_the_rooms_declare(
    postgres_server: PostgresServer,
) -> None:
    migrated, declared = postgres_server.new_database(), postgres_server.new_database()
    done = schema.upgrade(migrated)
    assert (done.before, done.after) == (None, schema.head_revision())
    assert not schema.upgrade(migrated).changed
    schema.check(migrated)

    async def create() -> None:
        engine = create_async_engine(parse_url(declared))
        async with engine.begin() as connection:
            await connection.run_sync(declared_tables().create_all)
        await engine.dispose()

    asyncio.run(create())
    made = shape(postgres_server, migrated)
    assert made == shape(postgres_server, declared)
    assert any(re.search(r"uq_sessions_owner_name.*WHERE", line) for line in made)
    assert any("ck_agent_devices_not_overcommitted" in line for line in made)


def test_an_empty_or_missing_database_is_named_without_its_password(postgres_url: str) -> None:
    with pytest.raises(schema.SchemaMismatch, match="`perijove db upgrade`"):
        schema.check(postgres_url)
    missing = postgres_url.replace("perijove@", "perijove:hunter2@").rpartition("/")[0] + "/nowhere"
    with pytest.raises(StoreUnavailable, match="nowhere") as refused:
        schema.check(missing)
    assert "hunter2" not in str(refused.value)


def test_two_managers_may_upgrade_at_once(postgres_url: str) -> None:
    async def both() -> list[schema.Upgrade]:
        return await asyncio.gather(
            *(asyncio.to_thread(schema.upgrade, postgres_url) for _ in "ab")
        )

    assert sorted(done.changed for done in asyncio.run(both())) == [False, True]


async def test_a_work_that_fails_takes_back_itself_only(store: Store) -> None:
    await add(store, "taken")
    answers = await asyncio.gather(
        *(add(store, name) for name in ("a", "taken", "b")), return_exceptions=True
    )
    assert [isinstance(answer, DBAPIError) for answer in answers] == [False, True, False]
    assert await names(store) == ["a", "b", "taken"]


async def test_a_read_sees_one_snapshot_and_cannot_write(store: Store) -> None:
    async def work(session: AsyncSession) -> tuple[int, int]:
        count = text("SELECT count(*) FROM notes")
        before = await session.scalar(count)
        await add(store, "between")
        return before, await session.scalar(count)

    assert await store.read(work) == (0, 0)
    with pytest.raises(DBAPIError, match="read-only"):
        await store.read(lambda session: session.execute(text("DELETE FROM notes")))


async def test_a_server_that_dies_is_unavailable_and_then_works_again(
    store: Store, postgres_server: PostgresServer
) -> None:
    await add(store, "before")
    began, release = asyncio.Event(), asyncio.Event()

    async def interrupted(session: AsyncSession) -> None:
        await session.execute(text("INSERT INTO notes VALUES ('interrupted')"))
        began.set()
        await release.wait()
        await session.execute(text("SELECT 1"))

    writing = asyncio.create_task(store.write(interrupted))
    await began.wait()
    await asyncio.to_thread(postgres_server.kill)
    release.set()
    with pytest.raises(StoreUnavailable):
        await writing
    with pytest.raises(StoreUnavailable):
        await add(store, "nobody there")
    with pytest.raises(StoreUnavailable):
        await names(store)
    await asyncio.to_thread(postgres_server.start)
    assert await names(store) == ["before"]
    await add(store, "after")
    assert await names(store) == ["after", "before"]


async def test_leadership_is_lost_with_the_server_and_won_again(
    postgres_url: str, postgres_server: PostgresServer
) -> None:
    url = parse_url(postgres_url)
    first = PostgresLeadership(url, "scheduler", check_seconds=0.05)
    second = PostgresLeadership(url, "scheduler", check_seconds=0.05)
    other = PostgresLeadership(url, "janitor", check_seconds=0.05)
    assert await first.try_acquire()
    assert not await second.try_acquire()
    assert await other.try_acquire()
    await other.release()
    await asyncio.to_thread(postgres_server.kill)
    await asyncio.wait_for(first.lost.wait(), 10)
    assert not first.held
    waiting = asyncio.create_task(second.acquire())
    await asyncio.to_thread(postgres_server.start)
    await asyncio.wait_for(waiting, 30)
    assert not await first.try_acquire()
    await first.release()
    await second.release()


async def test_a_killed_leader_is_followed_by_the_next(postgres_url: str) -> None:
    program = (
        "import asyncio, sys\n"
        "from store.database import Store\n"
        "async def main():\n"
        "    await Store(sys.argv[1]).leadership('scheduler').acquire()\n"
        "    print('leading', flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    leader = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, postgres_url, stdout=asyncio.subprocess.PIPE
    )
    assert leader.stdout is not None
    assert await asyncio.wait_for(leader.stdout.readline(), 60) == b"leading\n"
    follower = Store(postgres_url).leadership("scheduler")
    assert not await follower.try_acquire()
    os.kill(leader.pid, signal.SIGKILL)
    await leader.wait()
    start = time.monotonic()
    await asyncio.wait_for(follower.acquire(), 10)
    assert time.monotonic() - start < 5
    await follower.release()


async def test_a_silent_leader_is_ousted_and_commits_nothing_more(
    postgres_url: str, store: Store
) -> None:
    url = parse_url(postgres_url)
    silent = PostgresLeadership(url, "scheduler", check_seconds=60)
    other = PostgresLeadership(url, "scheduler", check_seconds=0.05, lease=0.2)
    assert await silent.try_acquire()
    began, release = asyncio.Event(), asyncio.Event()

    async def begun_before(session: AsyncSession) -> None:
        await silent.fence(session)
        began.set()
        await release.wait()
        await session.execute(text("INSERT INTO notes VALUES ('in time')"))

    async def late(session: AsyncSession) -> None:
        await silent.fence(session)
        await session.execute(text("INSERT INTO notes VALUES ('late')"))

    writing = asyncio.create_task(store.write(begun_before))
    await began.wait()
    following = asyncio.create_task(other.acquire())
    while await store.read(_holds_lock):
        assert not following.done(), "it leads while the other one still writes"
    release.set()
    await writing
    await asyncio.wait_for(following, 30)
    with pytest.raises(LeadershipLost, match="'scheduler'"):
        await store.write(late)
    assert silent.lost.is_set()
    assert not silent.held
    await store.write(other.fence)
    assert await names(store) == ["in time"]
    await silent.release()
    await other.release()


async def _holds_lock(session: AsyncSession) -> bool:
    """Whether both locks, that of the leader and that of its writes, are held by other than who follows."""
    query = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    return not (await session.execute(text(query))).scalar_one()


async def test_a_transaction_of_a_suspended_process_lets_go_of_its_locks(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("store.engine.IDLE_TRANSACTION_MS", 200)
    suspended, alive = Store(postgres_url), Store(postgres_url)
    await suspended.open()
    await alive.open()
    await alive.write(lambda db: db.execute(text("CREATE TABLE IF NOT EXISTS rows (n int)")))
    await alive.write(lambda db: db.execute(text("INSERT INTO rows VALUES (1)")))
    held, release = asyncio.Event(), asyncio.Event()
    lock = text("UPDATE rows SET n = n + 1")

    async def hold(session: AsyncSession) -> None:
        await session.execute(lock)
        held.set()
        await release.wait()

    holding = asyncio.create_task(suspended.write(hold))
    await held.wait()
    await asyncio.wait_for(alive.write(lambda db: db.execute(lock)), 30)
    release.set()
    with pytest.raises(StoreUnavailable):
        await holding
    read = await alive.read(lambda db: db.execute(text("SELECT n FROM rows")))
    assert read.scalar_one() == 2
    await suspended.close()
    await alive.close()


async def test_of_two_writers_in_each_others_way_one_is_told_to_come_back(store: Store) -> None:
    other = Store(store.url.render_as_string(hide_password=False))
    await other.open()
    meeting = asyncio.Barrier(2)
    for name in ("left", "right"):
        await add(store, name)

    async def cross(session: AsyncSession, first: str, then: str) -> None:
        lock = text("SELECT name FROM notes WHERE name = :name FOR UPDATE")
        await session.execute(lock, {"name": first})
        await meeting.wait()
        await session.execute(lock, {"name": then})

    told = await asyncio.gather(
        store.write(lambda session: cross(session, "left", "right")),
        other.write(lambda session: cross(session, "right", "left")),
        return_exceptions=True,
    )
    await other.close()
    (refused,) = [each for each in told if each is not None]
    assert isinstance(refused, StoreUnavailable)
    assert "in the way" in str(refused)
    await add(store, "and goes on")
