"""The reconciler makes up for whatever was missed."""

import uuid
from functools import partial

import pytest
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncSession

from spawner.sessions import reconciler, steps
from spawner.sessions.states import Status, Target
from spawner.sessions.tables import SessionRow
from spawner.sessions.transitions import Change
from tests.harness.agent import SlowAgent
from tests.harness.plane import FINISHED, REQUEST, Rig, until


async def test_a_target_that_nobody_followed_is_followed_by_the_sweep(plane: Rig) -> None:
    await plane.agent()
    ada = await plane.user()
    running = await plane.run(ada)
    waiting = await plane.create(ada, cpu="100")

    async def turn(db: AsyncSession) -> None:
        await db.execute(update(SessionRow).values(target=Target.TERMINATED.value))

    await plane.store.write(turn)
    await plane.plane.reconciler.sweep()
    assert (await plane.wait(running, *FINISHED)).status is Status.TERMINATED
    assert (await plane.wait(waiting, *FINISHED)).status is Status.CANCELLED


async def test_a_session_that_lags_behind_its_kernels_catches_up(plane: Rig) -> None:
    agent = await plane.agent(SlowAgent())
    ada = await plane.user()
    detail = await plane.create(ada)
    await plane.wait(detail, Status.PREPARING)

    async def handed() -> int:
        return len(agent.kernels)

    await until(handed, bool)

    async def kernel_only(change: Change) -> None:
        loaded = await steps.load(change.db, detail.session.id)
        assert loaded is not None
        session, kernels = loaded
        await change.move_kernel(session, kernels[0], Status.CREATING, "half a write")

    await plane.plane.journal.write(REQUEST, kernel_only)
    await plane.plane.reconciler.step(detail.session.id)
    assert (await plane.plane.sessions.get(ada, detail.session.name)).status is Status.CREATING


async def test_a_step_of_an_unknown_or_ended_session_does_nothing(plane: Rig) -> None:
    await plane.agent()
    ada = await plane.user()
    detail = await plane.run(ada)
    await plane.destroy(ada, detail)
    await plane.wait(detail, *FINISHED)
    await plane.plane.reconciler.step(detail.session.id)
    await plane.plane.reconciler.step(uuid.uuid4())


async def _spoil(db: AsyncSession, session_id: uuid.UUID, **values: object) -> None:
    await db.execute(update(SessionRow).where(SessionRow.id == session_id).values(**values))


async def test_a_row_that_cannot_be_worked_on_stops_nobody_else(plane: Rig) -> None:
    agent = await plane.agent()
    ada = await plane.user()
    poison, lagging = [await plane.run(ada) for _ in range(2)]
    watch = plane.plane.reconciler
    await plane.wait(poison)
    began = watch._leads_since
    spoil = partial(_spoil, session_id=poison.session.id)
    await plane.store.write(partial(spoil, status="NONSENSE"))
    target = partial(_spoil, session_id=lagging.session.id, target=Target.TERMINATED.value)
    await plane.store.write(target)
    watch.queue.put(poison.session.id)
    watch.queue.put(lagging.session.id)
    await plane.wait(lagging, *FINISHED)
    assert watch._leads_since == began, "the loops went on"
    await plane.store.write(partial(spoil, status=Status.RUNNING.value))
    assert len(agent.kernels) == 1


async def test_a_session_that_cannot_be_ended_keeps_no_other_from_its_limit(plane: Rig) -> None:
    await plane.agent()
    ada = await plane.user()
    command = {"type": "batch", "startup_command": "x", "run_time": 60}
    poison, overdue = [await plane.run(ada, **command) for _ in range(2)]
    plane.clock.forward(61)
    broken = {"policy": {"causes": [], "unknown": 1}}
    await plane.store.write(partial(_spoil, session_id=poison.session.id, recovery=broken))
    with pytest.raises(ExceptionGroup, match="1 failed"):
        await plane.plane.reconciler.end_overdue()
    await plane.wait(overdue, *FINISHED)
    await plane.store.write(partial(_spoil, session_id=poison.session.id, recovery=None))


@pytest.mark.parametrize("reason", [steps.PENDING_TIMEOUT, steps.TASK_TIMEOUT])
async def test_what_was_found_overdue_is_looked_at_again(plane: Rig, reason: str) -> None:
    await plane.agent()
    detail = await plane.run(await plane.user())
    end = partial(reconciler._end, session_id=detail.session.id, reason=reason, cause="it was late")
    await plane.plane.journal.write(REQUEST, end)
    assert (await plane.wait(detail)).status is Status.RUNNING
