"""The reconciler makes up for whatever was missed."""

import uuid

from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncSession

from spawner.sessions import steps
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
