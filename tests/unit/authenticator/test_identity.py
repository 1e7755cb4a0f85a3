"""Users: making, logging in, disabling, and being vouched for."""

import asyncio

import pytest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from authenticator.identity import IdentityService
from authenticator.principals import ALL_SCOPES, Role, Via
from authenticator.problems import AuthFailed, InvalidParameters, NotFound, RateLimited
from authenticator.tables import DomainRow, KeyPairPolicyRow, KeyPairRow, ProjectRow, UserRow
from store.database import Store
from tests.unit.authenticator.conftest import Clock, facts_of, quick_hasher

GOOD = "correct horse"


async def refusal(
    identity: IdentityService, username: str, password: str, remote: str = "r"
) -> str:
    with pytest.raises(AuthFailed) as refused:
        await identity.log_in(username, password, remote)
    return str(refused.value.body())


async def count(store: Store, row: type[object]) -> int:
    async def work(session: AsyncSession) -> int:
        return await session.scalar(select(func.count()).select_from(row)) or 0

    return await store.read(work)


async def test_bootstrap_fills_what_is_missing_and_keeps_what_was_changed(
    store: Store, identity: IdentityService
) -> None:
    async def change(session: AsyncSession) -> None:
        policy = await session.get_one(KeyPairPolicyRow, "default")
        policy.max_concurrent_sessions = 3
        await session.delete((await session.scalars(select(ProjectRow))).one())

    await store.write(change)
    await identity.bootstrap()
    await identity.bootstrap()
    assert [await count(store, row) for row in (DomainRow, ProjectRow, KeyPairPolicyRow)] == [
        1,
        1,
        1,
    ]
    made = await identity.create_user("ada")
    ada, _ = await identity.principal_by_access_key(made.access_key)
    assert (await facts_of(store, ada)).policy.max_concurrent_sessions == 3


async def test_a_new_user_has_all_that_a_session_needs(
    store: Store, identity: IdentityService, clock: Clock
) -> None:
    made = await identity.create_user("ada", full_name="Ada L.")
    user = made.user
    assert (user.username, user.email, user.role, user.status) == (
        "ada",
        "ada@localhost",
        "user",
        "active",
    )
    assert (user.created_at, user.password_changed_at) == (clock.time, clock.time)
    assert made.password is not None
    assert len(made.password) == 16
    assert (await identity.log_in("ada", made.password, "r")).id == user.id
    assert made.access_key.startswith("AKIA")
    assert (len(made.access_key), len(made.secret_key)) == (20, 40)
    principal, secret = await identity.principal_by_access_key(made.access_key)
    assert secret == made.secret_key
    assert (principal.user_id, principal.via, principal.scopes) == (
        user.id,
        Via.KEYPAIR,
        ALL_SCOPES,
    )
    assert (principal.domain, principal.role) == ("default", Role.USER)
    assert [each.name for each in (await facts_of(store, principal)).projects] == ["default"]


async def test_every_wrong_field_of_a_new_user_is_named(
    store: Store, identity: IdentityService
) -> None:
    with pytest.raises(InvalidParameters) as refused:
        await identity.create_user("Ada Lovelace", password="short", email="nowhere")
    assert set(refused.value.fields) == {"username", "email", "password"}
    assert "'Ada Lovelace'" in refused.value.fields["username"]
    assert "at least 8" in refused.value.fields["password"]
    assert "short" not in refused.value.fields["password"]
    await identity.create_user("ada")
    with pytest.raises(InvalidParameters) as refused:
        await identity.create_user("ada", project="secret")
    assert set(refused.value.fields) == {"username", "email", "project"}
    assert (await count(store, UserRow), await count(store, KeyPairRow)) == (1, 1)


@pytest.mark.parametrize("name", ["a", "ada", "ada.b-c_d", "ada@example.org", "0x", "a" * 64])
async def test_names_that_jupyterhub_can_keep(identity: IdentityService, name: str) -> None:
    assert (await identity.create_user(name, email="x@y", with_password=False)).password is None


@pytest.mark.parametrize("name", ["", "Ada", "a/b", "..", ".a", "a ", "a\n", "a.", "é", "a" * 65])
async def test_names_that_it_cannot_keep(identity: IdentityService, name: str) -> None:
    with pytest.raises(InvalidParameters, match="Input validation") as refused:
        await identity.create_user(name, email="x@y")
    assert set(refused.value.fields) == {"username"}


async def test_unknown_disabled_and_mistaken_users_are_told_the_same(
    identity: IdentityService,
) -> None:
    await identity.create_user("ada", password=GOOD)
    await identity.create_user("bob", password=GOOD)
    await identity.create_user("eve", with_password=False)
    await identity.set_status("bob", "inactive")
    answers = {
        await refusal(identity, "ada", "wrong password"),
        await refusal(identity, "bob", GOOD),
        await refusal(identity, "eve", ""),
        await refusal(identity, "nobody", GOOD),
        await refusal(identity, "ada", "x" * 100_000),
        await refusal(identity, "x" * 100_000, GOOD),
    }
    assert len(answers) == 1
    assert "Invalid username or password" in answers.pop()
    assert (await identity.log_in(" ADA ", GOOD, "r")).username == "ada"


async def test_an_unknown_user_costs_a_verification_as_well(
    identity: IdentityService, monkeypatch: pytest.MonkeyPatch
) -> None:
    await identity.create_user("ada", password=GOOD)
    verified = []
    hasher = identity._passwords._hasher

    class Counting:
        def __getattr__(self, name: str) -> object:
            return getattr(hasher, name)

        def verify(self, stored: str, password: str) -> bool:
            verified.append(stored)
            return hasher.verify(stored, password)

    monkeypatch.setattr(identity._passwords, "_hasher", Counting())
    for name in ("ada", "nobody"):
        await refusal(identity, name, "wrong password")
    assert len(verified) == 2
    assert all(stored.startswith("$argon2id$") for stored in verified)


async def test_repeated_failures_must_wait_longer_and_longer(
    identity: IdentityService, clock: Clock
) -> None:
    await identity.create_user("ada", password=GOOD)
    for _ in range(4):
        await refusal(identity, "ada", "wrong password")
    assert await identity.log_in(
        "ada", GOOD, "elsewhere"
    )  # four mistakes and one right: nothing to pay
    waits = []
    for _ in range(5):
        await refusal(identity, "ada", "wrong password")
    for _ in range(9):
        with pytest.raises(RateLimited) as limited:
            await identity.log_in("ada", GOOD, "elsewhere")
        assert "try again in" in str(limited.value)
        waits.append(limited.value.retry_after)
        clock.forward(limited.value.retry_after or 0)
        await refusal(identity, "ada", "wrong password")
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    clock.forward(60)
    assert await identity.log_in("ada", GOOD, "elsewhere")
    assert await identity.log_in("ada", GOOD, "elsewhere")


async def test_one_address_guessing_many_names_is_held_up_and_others_are_not(
    identity: IdentityService,
) -> None:
    await identity.create_user("ada", password=GOOD)
    for number in range(30):
        await refusal(identity, f"guess{number}", "wrong password", remote="bad")
    with pytest.raises(RateLimited):
        await identity.log_in("ada", GOOD, "bad")
    assert await identity.log_in("ada", GOOD, "good")


async def test_parallel_guesses_count_before_they_are_answered(identity: IdentityService) -> None:
    await identity.create_user("ada", password=GOOD)
    guesses = (identity.log_in("ada", f"guess number {n}", f"r{n}") for n in range(20))
    answers = await asyncio.gather(*guesses, return_exceptions=True)
    kinds = [type(answer) for answer in answers]
    assert (kinds.count(AuthFailed), kinds.count(RateLimited)) == (5, 15)


async def test_a_hash_of_other_parameters_is_replaced_at_log_in(
    store: Store, identity: IdentityService, clock: Clock
) -> None:
    await identity.create_user("ada", password=GOOD)
    stronger = IdentityService(store, clock, quick_hasher(rounds=2))
    await stronger.log_in("ada", GOOD, "r")
    stored = (await identity.user_by_name("ada")).password_hash
    assert stored is not None
    assert ",t=2," in stored
    assert await stronger.log_in("ada", GOOD, "r")


async def test_passwords_are_replaced_by_given_or_generated_ones(identity: IdentityService) -> None:
    await identity.create_user("ada", password=GOOD)
    assert await identity.set_password("ada", "another horse") is None
    await refusal(identity, "ada", GOOD)
    generated = await identity.set_password("ada")
    assert generated is not None
    assert await identity.log_in("ada", generated, "r")
    for bad in ("short", "x" * 257, "password", "aaaaaaaaaa", "tab\tinside"):
        with pytest.raises(InvalidParameters):
            await identity.set_password("ada", bad)
    with pytest.raises(NotFound):
        await identity.set_password("nobody", GOOD)


async def test_a_disabled_user_is_nobody_until_enabled_again(identity: IdentityService) -> None:
    made = await identity.create_user("ada", password=GOOD)
    await identity.set_status("ada", "inactive")
    with pytest.raises(AuthFailed, match="Access key not found"):
        await identity.principal_by_access_key(made.access_key)
    for create in (False, True):
        with pytest.raises(AuthFailed, match="disabled"):
            await identity.principal_by_username("ada", Via.HUB, create=create)
    await identity.set_status("ada", "active")
    assert await identity.log_in("ada", GOOD, "r")
    with pytest.raises(InvalidParameters, match="Input"):
        await identity.set_status("ada", "asleep")
    with pytest.raises(NotFound):
        await identity.set_status("nobody", "active")


async def test_roles_change_for_the_user_and_the_key_pairs(
    store: Store, identity: IdentityService
) -> None:
    made = await identity.create_user("ada")

    async def is_admin(session: AsyncSession) -> bool:
        return (await session.get_one(KeyPairRow, made.access_key)).is_admin

    await identity.set_role("ada", Role.SUPERADMIN)
    assert (await identity.principal_by_username("ada", Via.HUB)).is_superadmin
    assert await store.read(is_admin)
    await identity.set_role("ada", Role.USER)
    assert not (await identity.principal_by_username("ada", Via.HUB)).is_superadmin
    assert not await store.read(is_admin)


async def test_the_hub_may_bring_users_of_another_authenticator(
    store: Store, identity: IdentityService
) -> None:
    with pytest.raises(AuthFailed):
        await identity.principal_by_username("José@uni.example", Via.HUB)
    both = await asyncio.gather(
        *(
            identity.principal_by_username("José@uni.example", Via.HUB, create=True)
            for _ in range(2)
        )
    )
    assert both[0] == both[1]
    assert both[0].email == "José@uni.example"
    assert await count(store, UserRow) == 1
    assert (await facts_of(store, both[0])).projects[0].name == "default"
    await refusal(identity, "José@uni.example", "any password")
    await identity.create_user("ada", email="bob@localhost")
    assert (await identity.principal_by_username("bob", Via.HUB, create=True)).username == "bob"
    for name in ("", "a/b", " x", "..", "a\n", "a" * 65):
        with pytest.raises(InvalidParameters):
            await identity.principal_by_username(name, Via.HUB, create=True)


async def test_users_are_listed_by_name(identity: IdentityService) -> None:
    for name in ("bob", "ada"):
        await identity.create_user(name, with_password=False)
    assert [user.username for user in await identity.list_users()] == ["ada", "bob"]


async def test_what_is_not_there_is_not_found(identity: IdentityService) -> None:
    with pytest.raises(NotFound):
        await identity.user_by_name("nobody")
