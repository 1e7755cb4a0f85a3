"""Resource policies of users and projects: every limit that is set holds, at submission or in the queue."""

from __future__ import annotations

from typing import Any

import pytest

from authenticator.principals import Principal, Role
from authenticator.problems import BadRequest, InvalidParameters, QuotaExceeded
from spawner.scheduler.model import Quota
from spawner.sessions.administration import Administration
from spawner.sessions.facts import read_facts
from spawner.sessions.limits import Payer, least, least_amounts, read_quotas
from tests.harness.plane import REQUEST, Rig

CPU = 1_000_000
LATER: dict[str, Any] = {"type": "batch", "startup_command": "x", "starts_at": "9d"}


async def admin(plane: Rig) -> tuple[Administration, Principal]:
    return plane.plane.administration, await plane.user("root", Role.SUPERADMIN)


async def told(plane: Rig, ada: Principal, **fields: Any) -> str:
    """What the owner of a session that waits is told."""
    detail = await plane.create(ada, **fields)
    await plane.plane.scheduler.run_once()
    return (await plane.plane.sessions.get(ada, detail.session.name)).session.status_info


def test_the_smallest_limit_counts() -> None:
    assert least() is None
    assert least(None, 3, 0) == 0
    assert least_amounts(None, None) is None
    assert least_amounts({"cpu": 4, "mem": 1}, None, {"cpu": 0}) == {"cpu": 0, "mem": 1}


@pytest.mark.parametrize(("scope", "whose"), [("user", "your"), ("project", "your project's")])
async def test_a_policy_holds_sessions_in_the_queue(plane: Rig, scope: str, whose: str) -> None:
    await plane.agent()
    ada = await plane.user()
    limit = plane.user_policy if scope == "user" else plane.project_policy
    await limit(max_concurrent_sessions=1, total_resource_slots={"cpu": 2 * CPU})
    await plane.run(ada)
    assert (await told(plane, ada)).startswith(f"waiting: {whose} limit of 1 session is reached")
    assert "limit of 2 CPUs is less than it needs" in await told(plane, ada, cpu="3")
    await limit(max_concurrent_sessions=0, total_resource_slots=None)
    assert f"{whose} limit of 0 sessions" in await told(plane, ada)


async def test_own_limits_and_those_of_the_policy_both_hold(plane: Rig) -> None:
    records, root = await admin(plane)
    ada = await plane.user()
    policy = {"name": "students", "total_resource_slots": {"cpu": 4, "mem": "8g"}}
    await records.create(root, "user-policies", policy, REQUEST)
    own = {
        "total_resource_slots": {"cpu": 8, "mem": "2g"},
        "max_concurrent_sessions": 3,
        "resource_policy": "students",
    }
    await records.update(root, "users", "ada", own, REQUEST)

    async def mine() -> dict[str, Quota]:
        (project,) = (await plane.store.read(lambda db: read_facts(db, ada, ""))).projects
        payer = Payer(ada.access_key, str(project.id), ada.domain, str(ada.user_id))
        found = await plane.store.read(lambda db: read_quotas(db, [payer]))
        return {each.scope: each for each in found}

    user = (await mine())["user"]
    assert user.max_slots == {"cpu": 4 * CPU, "mem": 2 * 2**30}
    assert (user.max_sessions, user.max_containers) == (3, None)
    change = {"total_resource_slots": None, "max_containers_per_session": 2}
    await records.update(root, "user-policies", "students", change, REQUEST)
    user = (await mine())["user"]
    assert user.max_slots == {"cpu": 8 * CPU, "mem": 2 * 2**30}
    assert user.max_containers == 2


async def test_what_may_wait_and_how_wide_is_checked_at_submission(plane: Rig) -> None:
    await plane.agent()
    ada, bob = await plane.user(), await plane.user("bob")
    await plane.policy(max_containers_per_session=9)
    await plane.project_policy(max_containers_per_session=3)
    await plane.user_policy(max_containers_per_session=2)
    with pytest.raises(QuotaExceeded, match="at most 2 containers"):
        await plane.create(ada, cluster_size=3)
    await plane.user_policy(max_containers_per_session=None)
    with pytest.raises(QuotaExceeded, match="at most 3 containers"):
        await plane.create(ada, cluster_size=4)
    await plane.user_policy(max_pending_sessions=1)
    await plane.project_policy(max_pending_resource_slots={"cpu": 3 * CPU})
    await plane.create(ada, cpu="2", **LATER)
    with pytest.raises(QuotaExceeded, match="you have 1 sessions waiting and may have 1"):
        await plane.create(ada, **LATER)
    with pytest.raises(QuotaExceeded, match="of your project default may ask for 3 CPUs together"):
        await plane.create(bob, cpu="2", **LATER)
    await plane.project_policy(max_pending_sessions=1)
    with pytest.raises(QuotaExceeded, match="your project default has 1 sessions waiting"):
        await plane.create(bob, **LATER)


async def test_a_policy_in_use_stays(plane: Rig) -> None:
    records, root = await admin(plane)
    await plane.user()
    for plural in ("user-policies", "project-policies"):
        await records.create(root, plural, {"name": "few"}, REQUEST)
    change = {"resource_policy": "few"}
    for name in ("ada", "root"):
        await records.update(root, "users", name, change, REQUEST)
    await records.update(root, "projects", "default", change, REQUEST)
    with pytest.raises(BadRequest, match="'few' is in use: it is the one of ada, root"):
        await records.delete(root, "user-policies", "few", REQUEST)
    with pytest.raises(
        BadRequest, match="project policy 'few' is in use: it is the one of default"
    ):
        await records.delete(root, "project-policies", "few", REQUEST)
    with pytest.raises(BadRequest, match="'default' stays: new users get it"):
        await records.delete(root, "user-policies", "default", REQUEST)
    for name in ("ada", "root"):
        await records.update(root, "users", name, {"resource_policy": "default"}, REQUEST)
    await records.delete(root, "user-policies", "few", REQUEST)


async def test_a_policy_that_is_not_there_cannot_be_given(plane: Rig) -> None:
    records, root = await admin(plane)
    await plane.user()
    change = {"resource_policy": "few"}
    for plural, name, word in (("users", "ada", "user"), ("projects", "default", "project")):
        with pytest.raises(InvalidParameters) as refused:
            await records.update(root, plural, name, change, REQUEST)
        assert refused.value.fields == {"resource_policy": f"there is no {word} policy 'few'"}
    with pytest.raises(InvalidParameters) as refused:
        await records.create(root, "projects", {"name": "lhc", **change}, REQUEST)
    assert set(refused.value.fields) == {"resource_policy"}
