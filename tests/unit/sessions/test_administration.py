"""Administrators' records: one way for all kinds, with a sentence for everything that is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from authenticator.principals import Principal, Role
from authenticator.problems import BadRequest, Forbidden, InvalidParameters, NotFound
from spawner.sessions.administration import Administration
from spawner.sessions.states import Status
from tests.harness.plane import REQUEST, Rig

Admin = tuple[Administration, Principal]


async def admin(plane: Rig) -> Admin:
    return plane.plane.administration, await plane.user("root", Role.SUPERADMIN)


MADE: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (
        "domains",
        {"name": "physics", "total_resource_slots": {"cpu": 8, "mem": "16g"}},
        {"description": "", "is_active": True, "max_concurrent_sessions": None},
    ),
    (
        "projects",
        {"name": "lhc", "max_concurrent_sessions": 3},
        {"domain": "default", "total_resource_slots": None, "members": []},
    ),
    (
        "keypair-policies",
        {"name": "guests", "max_session_lifetime": "2h", "max_priority": 5},
        {"max_session_lifetime": 7200, "max_pending_sessions": None, "idle_timeout": None},
    ),
    (
        "user-policies",
        {"name": "students", "max_pending_resource_slots": {"cpu": 8}},
        {"max_vfolder_count": None, "max_customized_image_count": 3},
    ),
    (
        "project-policies",
        {"name": "small", "max_containers_per_session": 4},
        {"max_pending_sessions": None, "total_resource_slots": None},
    ),
    (
        "resource-groups",
        {"name": "gpu", "options": {"sequencer": "fifo", "half_life": "1d"}},
        {"is_default": False, "options": {"sequencer": "fifo", "half_life": "1d"}},
    ),
    (
        "presets",
        {"name": "tiny", "resource_slots": {"cpu": "0.5", "mem": "512m"}, "shared_memory": "64m"},
        {"resource_slots": {"cpu": "0.5", "mem": "536870912"}, "rank": 0},
    ),
]


@pytest.mark.parametrize(("kind", "given", "shown"), MADE, ids=[each[0] for each in MADE])
async def test_a_record_from_its_making_to_its_end(
    plane: Rig, kind: str, given: dict[str, Any], shown: dict[str, Any]
) -> None:
    records, root = await admin(plane)
    made = await records.create(root, kind, given, REQUEST)
    assert made["name"] == given["name"]
    assert {key: made[key] for key in shown} == shown
    assert made in await records.list(root, kind)
    assert await records.get(root, kind, given["name"]) == made
    number = {"presets": "rank", "keypair-policies": "max_priority"}
    limited = "max_pending_sessions" if kind.endswith("policies") else None
    field = number.get(kind, limited)
    change: dict[str, Any] = {field: 7} if field else {"description": "new"}
    changed = await records.update(root, kind, given["name"], change, REQUEST)
    assert changed == {**made, **change}
    with pytest.raises(InvalidParameters) as twice:
        await records.create(root, kind, given, REQUEST)
    assert "already" in twice.value.fields["name"]
    await records.delete(root, kind, given["name"], REQUEST)
    with pytest.raises(NotFound, match="there is no"):
        await records.get(root, kind, given["name"])


WRONG: list[tuple[str, dict[str, Any], str, str]] = [
    ("domains", {}, "name", "missing"),
    ("domains", {"name": "-x"}, "name", "'-x': 1 to 64 letters"),
    ("domains", {"name": "x", "colour": 1}, "colour", "unknown: known are name, description"),
    ("domains", {"name": "x", "is_active": "yes"}, "is_active", "'yes': true or false"),
    ("domains", {"name": "x", "description": 7}, "description", "a text"),
    (
        "domains",
        {"name": "x", "total_resource_slots": {"cpu": "lots"}},
        "total_resource_slots",
        "lots",
    ),
    (
        "domains",
        {"name": "x", "total_resource_slots": {"CPU": 1}},
        "total_resource_slots",
        "'CPU' is not the name of a slot",
    ),
    ("domains", {"name": "x", "total_resource_slots": 4}, "total_resource_slots", "an object"),
    (
        "domains",
        {"name": "x", "max_concurrent_sessions": -1},
        "max_concurrent_sessions",
        "'-1': a whole number of 0 or more",
    ),
    ("projects", {"name": "x", "domain": "nowhere"}, "domain", "there is no domain 'nowhere'"),
    ("keypair-policies", {"name": "x", "max_priority": 101}, "max_priority", "from 0 to 100"),
    ("keypair-policies", {"name": "x", "idle_timeout": "soon"}, "idle_timeout", "a duration"),
    ("users", {"name": "X"}, "name", "'X' must begin with a small letter"),
    ("users", {"name": "x", "email": "nobody"}, "email", "'nobody' is not an address"),
    ("users", {"name": "x", "role": "king"}, "role", "'king': one of user, admin, superadmin"),
    ("users", {"name": "x", "status": "away"}, "status", "'away': one of active, inactive"),
    ("users", {"name": "x", "password": "short"}, "password", "at least"),
    ("users", {"name": "x", "password": 12345678}, "password", "a text"),
    ("users", {"name": "x", "domain": "nowhere"}, "project", "in the domain 'nowhere'"),
    ("users", {"name": "x", "policy": "none"}, "policy", "there is no policy 'none'"),
    (
        "user-policies",
        {"name": "x", "max_vfolder_count": "7"},
        "max_vfolder_count",
        "'7': a whole number of 0 or more",
    ),
    (
        "project-policies",
        {"name": "x", "max_containers_per_session": 0},
        "max_containers_per_session",
        "'0': a whole number from 1 to 1000",
    ),
    ("project-policies", {"name": "x", "max_vfolder_count": 1}, "max_vfolder_count", "unknown"),
    (
        "resource-groups",
        {"name": "x", "options": {"sequencer": "lottery"}},
        "options.sequencer",
        "'lottery': one of",
    ),
    (
        "resource-groups",
        {"name": "x", "is_active": False, "is_default": True},
        "is_active",
        "another one the default first",
    ),
    ("presets", {"name": "x"}, "resource_slots", "missing"),
    ("presets", {"name": "x", "resource_slots": {}}, "resource_slots", "asks for nothing"),
    (
        "presets",
        {"name": "x", "resource_slots": {"mem": "1g"}, "shared_memory": "1g"},
        "shared_memory",
        "less than 1 GiB",
    ),
    (
        "presets",
        {"name": "x", "resource_slots": {"cpu": 1}, "resource_group": "nowhere"},
        "resource_group",
        "there is no resource group 'nowhere'",
    ),
]


@pytest.mark.parametrize(("kind", "given", "where", "sentence"), WRONG)
async def test_a_sentence_for_each_wrong_field(
    standing: Rig, kind: str, given: dict[str, Any], where: str, sentence: str
) -> None:
    records, root = await admin(standing)
    before = await records.list(root, kind)
    with pytest.raises(InvalidParameters) as refused:
        await records.create(root, kind, given, REQUEST)
    assert list(refused.value.fields) == [where]
    assert sentence in refused.value.fields[where]
    assert await records.list(root, kind) == before


async def test_all_wrong_fields_are_told_at_once(plane: Rig) -> None:
    records, root = await admin(plane)
    with pytest.raises(InvalidParameters) as refused:
        await records.create(
            root,
            "resource-groups",
            {"name": "", "is_active": 1, "options": {"ageing": "x", "fill": 1}, "size": 2},
            REQUEST,
        )
    assert set(refused.value.fields) == {
        "name",
        "is_active",
        "options.ageing",
        "options.fill",
        "size",
    }


async def test_what_is_used_is_not_deleted(plane: Rig) -> None:
    await plane.agent()
    records, root = await admin(plane)
    for kind in ("domains", "keypair-policies"):
        with pytest.raises(BadRequest, match="'default' stays: new"):
            await records.delete(root, kind, "default", REQUEST)
    with pytest.raises(BadRequest, match="project 'default' is in use: its members are root"):
        await records.delete(root, "projects", "default", REQUEST)
    with pytest.raises(BadRequest, match="make another one the default first"):
        await records.delete(root, "resource-groups", "default", REQUEST)
    await records.create(root, "resource-groups", {"name": "x", "is_default": True}, REQUEST)
    with pytest.raises(BadRequest, match=r"is in use \(it can be switched off instead: is_active"):
        await records.delete(root, "resource-groups", "default", REQUEST)
    await records.create(root, "domains", {"name": "physics"}, REQUEST)
    await records.create(root, "projects", {"name": "lhc", "domain": "physics"}, REQUEST)
    with pytest.raises(BadRequest, match="is in use"):
        await records.delete(root, "domains", "physics", REQUEST)


async def test_names_stay(plane: Rig) -> None:
    records, root = await admin(plane)
    with pytest.raises(InvalidParameters) as refused:
        await records.update(root, "domains", "default", {"name": "other"}, REQUEST)
    assert refused.value.fields == {"name": "it stays as it was made"}


async def test_there_is_one_default_group(plane: Rig) -> None:
    records, root = await admin(plane)
    given = {"name": "gpu", "is_default": True}
    await records.create(root, "resource-groups", given, REQUEST)
    found = await records.list(root, "resource-groups")
    assert {each["name"]: each["is_default"] for each in found} == {"default": False, "gpu": True}
    with pytest.raises(InvalidParameters) as refused:
        await records.update(root, "resource-groups", "gpu", {"is_default": False}, REQUEST)
    assert refused.value.fields == {"is_default": "make another group the default instead"}


async def test_limits_and_policy_of_a_user(plane: Rig) -> None:
    records, root = await admin(plane)
    await plane.user("ada")
    await records.create(root, "keypair-policies", {"name": "guests"}, REQUEST)
    given = {"total_resource_slots": {"cpu": 2}, "policy": "guests"}
    changed = await records.update(root, "users", "ada", given, REQUEST)
    assert changed == {
        "name": "ada",
        "email": "ada@localhost",
        "full_name": "",
        "role": "user",
        "domain": "default",
        "status": "active",
        "total_resource_slots": {"cpu": "2"},
        "max_concurrent_sessions": None,
        "weight": 1.0,
        "resource_policy": "default",
        "policy": "guests",
    }
    with pytest.raises(InvalidParameters) as refused:
        await records.update(root, "users", "ada", {"policy": "nobodys"}, REQUEST)
    assert refused.value.fields == {"policy": "there is no policy 'nobodys'"}


async def test_a_user_from_the_making_to_the_end(plane: Rig) -> None:
    records, root = await admin(plane)
    given = {"name": "ada", "full_name": "Ada L", "total_resource_slots": {"cpu": 2}}
    made = await records.create(root, "users", given, REQUEST)
    assert (await plane.identity.log_in("ada", made.pop("password"), "test")).full_name == "Ada L"
    assert made["total_resource_slots"] == {"cpu": "2"}
    assert await records.get(root, "users", "ada") == made
    change = {"role": "superadmin", "email": "ada@example.org", "status": "inactive"}
    assert (await records.update(root, "users", "ada", change, REQUEST)) == {**made, **change}
    silent = {"name": "bob", "password": None}
    assert "password" not in await records.create(root, "users", silent, REQUEST)
    for taken in ({"name": "ada"}, {"name": "eve", "email": "ada@example.org"}):
        with pytest.raises(InvalidParameters, match="Input validation") as refused:
            await records.create(root, "users", taken, REQUEST)
        assert "is taken" in "".join(refused.value.fields.values())
    with pytest.raises(InvalidParameters) as refused:
        await records.update(root, "users", "bob", {"email": "ada@example.org"}, REQUEST)
    assert refused.value.fields == {"email": "'ada@example.org' is taken"}
    await records.delete(root, "users", "ada", REQUEST)
    with pytest.raises(NotFound):
        await records.get(root, "users", "ada")


async def test_a_user_who_ran_something_is_not_deleted(plane: Rig) -> None:
    await plane.agent()
    records, root = await admin(plane)
    await plane.run(await plane.user())
    with pytest.raises(
        BadRequest, match=r"in use \(it can be switched off instead: status=inactive\)"
    ):
        await records.delete(root, "users", "ada", REQUEST)


async def test_administrators_do_not_lock_themselves_out(plane: Rig) -> None:
    records, root = await admin(plane)
    with pytest.raises(InvalidParameters) as refused:
        await records.update(root, "users", "root", {"role": "user", "status": "inactive"}, REQUEST)
    assert set(refused.value.fields) == {"role", "status"}
    with pytest.raises(BadRequest, match="ask another administrator"):
        await records.delete(root, "users", "root", REQUEST)


async def test_members_of_a_project(plane: Rig) -> None:
    records, root = await admin(plane)
    ada = await plane.user("ada")
    await records.create(root, "projects", {"name": "lhc"}, REQUEST)
    for _ in range(2):
        record = await records.set_member(root, "default/lhc", "ada", True, REQUEST)
        assert record["members"] == ["ada"]
    await plane.agent()
    detail = await plane.create(ada, project="lhc")
    assert detail.project == "lhc"
    for _ in range(2):
        record = await records.set_member(root, "lhc", "ada", False, REQUEST)
        assert record["members"] == []
    await records.create(root, "domains", {"name": "physics"}, REQUEST)
    await records.create(root, "projects", {"name": "lhc", "domain": "physics"}, REQUEST)
    with pytest.raises(BadRequest, match="say DOMAIN/NAME"):
        await records.get(root, "projects", "lhc")
    with pytest.raises(InvalidParameters) as refused:
        await records.set_member(root, "physics/lhc", "ada", True, REQUEST)
    assert "belongs to the domain default" in refused.value.fields["user"]


async def test_a_change_wakes_the_scheduler(plane: Rig) -> None:
    await plane.agent()
    records, root = await admin(plane)
    ada = await plane.user("ada")
    nothing = {"max_concurrent_sessions": 0}
    await records.update(root, "keypair-policies", "default", nothing, REQUEST)
    detail = await plane.create(ada)
    await plane.plane.scheduler.run_once()
    assert (await plane.wait(detail, Status.PENDING)).status is Status.PENDING
    unlimited = {"max_concurrent_sessions": None}
    await records.update(root, "keypair-policies", "default", unlimited, REQUEST)
    assert (await plane.wait(detail)).status is Status.RUNNING


async def test_only_administrators(plane: Rig) -> None:
    records, _ = await admin(plane)
    ada = await plane.user("ada")
    for refuse in (
        records.list(ada, "domains"),
        records.get(ada, "domains", "default"),
        records.create(ada, "domains", {"name": "x"}, REQUEST),
        records.update(ada, "domains", "default", {}, REQUEST),
        records.delete(ada, "domains", "default", REQUEST),
        records.set_member(ada, "default", "ada", True, REQUEST),
        records.repair(ada),
    ):
        with pytest.raises(Forbidden):
            await refuse


async def test_an_unknown_kind_is_no_record(plane: Rig) -> None:
    records, root = await admin(plane)
    with pytest.raises(NotFound, match="'planets' is none of domains, projects"):
        await records.list(root, "planets")


async def test_repair_on_request(plane: Rig) -> None:
    records, root = await admin(plane)
    assert not await records.repair(root)
