"""Plans meet rows that moved on; explanations are written when they change and only then."""

from dataclasses import replace

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from authenticator.principals import Role
from spawner.scheduler.model import Plan, Snapshot
from spawner.scheduler.observe import Observer
from spawner.scheduler.plan import plan
from spawner.scheduler.policies import Policies
from spawner.sessions.scheduling import PassResult, SchedulerLoop, apply
from spawner.sessions.snapshot import read_snapshot
from spawner.sessions.states import IllegalTransition, Status, check_transition
from spawner.sessions.tables import HistoryRow, KernelRow, SessionRow
from spawner.sessions.transitions import Change
from tests.harness.agent import FakeAgent
from tests.harness.plane import REQUEST, Rig


async def _still(plane: Rig) -> Plan:
    """Stop the loops and plan on what is there now."""
    assert plane.plane._task is not None
    plane.plane._task.cancel()
    await plane.plane.stop()
    return plan(await _snapshot(plane))


async def _snapshot(plane: Rig) -> Snapshot:
    return (await plane.store.read(lambda db: read_snapshot(db, plane.clock()))).snapshot


async def _apply(plane: Rig, made: Plan) -> PassResult:
    return await plane.plane.journal.write(
        REQUEST, lambda change: apply(change, made, list(made.waiting))
    )


async def _waiting(plane: Rig, count: int, **fields: object) -> list[str]:
    """Sessions that wait because the agent is closed, with the loops stopped."""
    ada = await plane.user()
    admin = await plane.user("root", Role.SUPERADMIN)
    await plane.plane.nodes.set_schedulable(admin, "node-1", False, REQUEST)
    made = [await plane.create(ada, **fields) for _ in range(count)]
    await _still(plane)
    await plane.plane.nodes.set_schedulable(admin, "node-1", True, REQUEST)
    return [str(detail.session.id) for detail in made]


async def test_one_refused_placement_takes_no_other_with_it(plane: Rig) -> None:
    await plane.agent()
    first, second, third = await _waiting(plane, 3)
    made = plan(await _snapshot(plane))
    assert [each.session_id for each in made.placements] == [first, second, third]
    spoiled = replace(
        made.placements[1],
        kernels=(
            replace(
                made.placements[1].kernels[0],
                shares=tuple(
                    share._replace(amount=share.amount * 99) if share.slot == "mem" else share
                    for share in made.placements[1].kernels[0].shares
                ),
            ),
        ),
    )
    stale = replace(made, placements=(made.placements[0], spoiled, made.placements[2]))
    result = await _apply(plane, stale)
    assert (result.placed, result.refused) == ([first, third], [second])
    await plane.validate()
    again = await _apply(plane, plan(await _snapshot(plane)))
    assert again.placed == [second]
    await plane.validate()


async def test_a_plan_that_is_applied_twice_places_once(plane: Rig) -> None:
    await plane.agent()
    await _waiting(plane, 2)
    made = plan(await _snapshot(plane))
    await _apply(plane, made)
    await _apply(plane, made)
    await plane.validate()
    epochs = await plane.store.read(_epochs)
    assert epochs == [1, 1]


async def test_a_plan_for_what_changed_meanwhile(plane: Rig) -> None:
    await plane.agent(replace(FakeAgent(), max_containers=2))
    first, second, third = await _waiting(plane, 3)
    made = plan(await _snapshot(plane))
    assert len(made.placements) == 2
    ada = await plane.user()
    await plane.plane.sessions.destroy(ada, first, forced=False, request_id=REQUEST)
    result = await _apply(plane, made)
    assert result.refused == []
    await plane.validate()
    crowd = replace(made.placements[1], session_id=third, kernels=())
    assert (await _apply(plane, replace(made, placements=(crowd,)))).refused == [third]
    admin = await plane.user("root", Role.SUPERADMIN)
    await plane.plane.nodes.set_schedulable(admin, "node-1", False, REQUEST)
    fresh = plan(replace(await _snapshot(plane), agents=made_open(await _snapshot(plane))))
    assert (await _apply(plane, fresh)).refused == [third]
    await plane.validate()
    assert second


def made_open(snapshot: Snapshot) -> tuple[object, ...]:
    """The agents of a snapshot that is older than the cordon."""
    return tuple(replace(agent, schedulable=True) for agent in snapshot.agents)


async def test_explanations_are_written_once(plane: Rig) -> None:
    await plane.agent()
    ada = await plane.user()
    detail = await plane.create(ada, cpu="100")
    await plane.plane.scheduler.run_once()
    before = await plane.store.read(_history_count)
    for _ in range(3):
        result = await plane.plane.scheduler.run_once()
        assert result.waiting == 1
    assert await plane.store.read(_history_count) == before
    assert (await plane.plane.sessions.get(ada, detail.session.name)).session.status_data


async def test_a_large_plan_is_made_in_a_thread(
    plane: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    await plane.agent()
    ada = await plane.user()
    made_in: list[str] = []

    def planner(snapshot: Snapshot, policies: Policies, observer: Observer) -> Plan:
        made_in.append(threading.current_thread().name)
        return plan(snapshot, policies, observer)

    monkeypatch.setattr("spawner.sessions.scheduling.THREAD_SIZE", 1)
    loop = SchedulerLoop(plane.plane.journal, plane.plane.metrics, 30, planner=planner)
    await plane.create(ada, cpu="100")
    await loop.run_once()
    assert made_in
    assert made_in[0] != threading.main_thread().name


async def test_a_transition_that_is_not_in_the_table_tells_the_story(plane: Rig) -> None:
    await plane.agent()
    ada = await plane.user()
    detail = await plane.run(ada)

    async def wrong(change: Change) -> None:
        session = await change.db.get_one(SessionRow, detail.session.id)
        await change.move_session(session, Status.SCHEDULED, "because")

    heard: list[str] = []
    with plane.plane.bus.subscribe() as events:
        with pytest.raises(IllegalTransition, match=r"(?s)submitted.*running") as raised:
            await plane.plane.journal.write(REQUEST, wrong)
        assert (raised.value.old, raised.value.new) == (Status.RUNNING, Status.SCHEDULED)
        events.close()
        heard += [event.name async for event in events]
    assert heard == []  # nothing was committed, so nothing is told
    with pytest.raises(IllegalTransition):
        check_transition("x", Status.TERMINATED, Status.RUNNING)


async def _epochs(db: AsyncSession) -> list[int]:
    return list(await db.scalars(select(KernelRow.epoch)))


async def _history_count(db: AsyncSession) -> int:
    return len((await db.scalars(select(HistoryRow.id))).all())


async def test_the_end_of_a_long_line_is_told_now_and_then(
    plane: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spawner.sessions.telling.TOLD_PLACES", 1)
    await plane.agent()
    ids = await _waiting(plane, 4, cpu="4")
    ada = await plane.user()

    async def places() -> list[object]:
        found = [await plane.plane.sessions.get(ada, each) for each in ids[1:]]
        return [each.session.status_data["scheduler"]["position"] for each in found]

    plane.clock.forward(31)
    await plane.plane.scheduler.run_once()
    assert await places() == [1, 2, 3]
    await plane.plane.sessions.destroy(ada, ids[1], forced=False, request_id=REQUEST)
    before = await plane.store.read(_history_count)
    await plane.plane.scheduler.run_once()
    assert (await places())[1:] == [1, 3]  # the first hears at once, the last one later
    assert await plane.store.read(_history_count) == before + 1
    plane.clock.forward(31)
    await plane.plane.scheduler.run_once()
    assert (await places())[1:] == [1, 2]
    assert await plane.store.read(_history_count) == before + 1
