"""Key pairs: rotation, listing without secrets, revocation."""

import pytest

from authenticator.identity import IdentityService
from authenticator.keypairs import KeyPairService
from authenticator.principals import Via
from authenticator.problems import AuthFailed, NotFound
from store.database import Store
from tests.unit.authenticator.conftest import Clock, facts_of


async def test_a_new_pair_takes_the_place_of_the_main_one(
    identity: IdentityService, key_pairs: KeyPairService, clock: Clock
) -> None:
    first = await identity.create_user("ada")
    clock.forward(1)
    second = await key_pairs.create("ada")
    with pytest.raises(AuthFailed):
        await identity.principal_by_access_key(first.access_key)
    principal, secret = await identity.principal_by_access_key(second.access_key)
    assert (principal.username, secret) == ("ada", second.secret_key)
    listed = await key_pairs.list("ada")
    assert [(pair.access_key, pair.is_main, pair.is_active) for pair in listed] == [
        (first.access_key, False, True),
        (second.access_key, True, True),
    ]
    assert first.secret_key not in repr(listed)
    assert second.secret_key not in repr(listed)


async def test_a_revoked_pair_signs_no_more_and_its_owner_may_still_come_by_the_hub(
    store: Store, identity: IdentityService, key_pairs: KeyPairService
) -> None:
    made = await identity.create_user("ada")
    assert not (await key_pairs.revoke(made.access_key)).is_active
    with pytest.raises(AuthFailed, match="Access key not found"):
        await identity.principal_by_access_key(made.access_key)
    principal = await identity.principal_by_username("ada", Via.HUB)
    assert (await facts_of(store, principal)).policy.name == "default"


async def test_use_is_remembered_to_five_minutes(
    identity: IdentityService, key_pairs: KeyPairService, clock: Clock
) -> None:
    made = await identity.create_user("ada")
    first = clock.time
    for passed, wanted in ((0, 0), (60, 0), (250, 310), (10, 310)):
        clock.forward(passed)
        await key_pairs.mark_used(made.access_key)
        (pair,) = await key_pairs.list()
        assert pair.last_used is not None
        assert (pair.last_used - first).total_seconds() == wanted


async def test_unknown_users_policies_and_keys_are_named(
    identity: IdentityService, key_pairs: KeyPairService
) -> None:
    await identity.create_user("ada")
    with pytest.raises(NotFound, match="nobody"):
        await key_pairs.create("nobody")
    with pytest.raises(NotFound, match="lavish"):
        await key_pairs.create("ada", policy="lavish")
    with pytest.raises(NotFound, match="nobody"):
        await key_pairs.list("nobody")
    with pytest.raises(NotFound, match="AKIA"):
        await key_pairs.revoke("AKIA0000000000000000")
    assert len(await key_pairs.list()) == 1
