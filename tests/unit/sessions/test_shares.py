"""What decides under ``fair-share`` is shown, to owners and to administrators."""

import pytest
from sqlalchemy import update

from authenticator.principals import Role
from authenticator.problems import BadRequest, Forbidden, NotFound
from authenticator.tables import UserRow
from hub.api import views
from spawner.sessions import usage
from spawner.sessions.tables import ResourceGroupRow
from tests.harness.plane import Rig


async def fair(plane: Rig) -> None:
    await plane.store.write(
        lambda db: db.execute(update(ResourceGroupRow).values(options={"sequencer": "fair-share"}))
    )


async def test_factors_of_everybody_and_of_one_session(plane: Rig) -> None:
    await fair(plane)
    await plane.agent()
    ada, bob = await plane.user(), await plane.user("bob")
    root = await plane.user("root", Role.SUPERADMIN)
    await plane.run(ada, cpu="4")
    plane.clock.forward(3600)
    await plane.store.write(lambda db: usage.settle(db, plane.clock(), {}))
    waiting = await plane.create(bob, cpu="2")
    found = await plane.plane.offers.shares(root, "default")
    assert [each.factor.scope for each in found] == ["domain", "project", "user", "user"]
    assert [each.name for each in found] == ["default", "default", "default/bob", "default/ada"]
    assert found[2].factor.factor == 1.0 > found[3].factor.factor
    own = await plane.plane.offers.shares_of(waiting.session.id)
    assert [each.name for each in own] == ["default", "default", "default/bob"]
    told = views.why(waiting, None, own)["fair_share"]
    assert told[2] == {
        "scope": "user",
        "id": f"{waiting.session.project_id}/{bob.user_id}",
        "name": "default/bob",
        "usage": 0.0,
        "weight": 1.0,
        "cost": 0.0,
        "factor": 1.0,
    }


async def test_who_has_no_weight_costs_without_bound(plane: Rig) -> None:
    await fair(plane)
    await plane.agent()
    ada, root = await plane.user(), await plane.user("root", Role.SUPERADMIN)
    weightless = update(UserRow).where(UserRow.id == ada.user_id).values(weight=0.0)
    await plane.store.write(lambda db: db.execute(weightless))
    found = await plane.plane.offers.shares(root, "default")
    (mine,) = [views.share(each) for each in found if each.name == "default/ada"]
    assert (mine["weight"], mine["cost"], mine["factor"]) == (0.0, None, 0.0)


async def test_who_may_ask_of_which_group(plane: Rig) -> None:
    await plane.agent()
    ada, root = await plane.user(), await plane.user("root", Role.SUPERADMIN)
    with pytest.raises(Forbidden):
        await plane.plane.offers.shares(ada, "default")
    with pytest.raises(NotFound, match="gone"):
        await plane.plane.offers.shares(root, "gone")
    with pytest.raises(BadRequest, match="ordered by fifo"):
        await plane.plane.offers.shares(root, "default")
    waiting = await plane.create(ada, cpu="4")
    assert await plane.plane.offers.shares_of(waiting.session.id) == []
