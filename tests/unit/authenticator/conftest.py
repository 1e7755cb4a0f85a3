"""A clock that the test sets, quick password hashes, and identity on an empty database."""

import datetime as dt
from dataclasses import dataclass

import pytest
import pytest_asyncio
from argon2 import PasswordHasher

from authenticator.identity import IdentityService
from authenticator.keypairs import KeyPairService
from authenticator.passwords import Passwords
from authenticator.principals import Principal
from spawner.sessions.facts import Facts, read_facts
from store.database import Store


@dataclass
class Clock:
    """The time as the test tells it."""

    time: dt.datetime = dt.datetime(2026, 11, 23, 12, 0, tzinfo=dt.UTC)

    def __call__(self) -> dt.datetime:
        return self.time

    def forward(self, seconds: float) -> None:
        self.time += dt.timedelta(seconds=seconds)


def quick_hasher(rounds: int = 1) -> Passwords:
    """argon2id that costs nothing: the parameters are not what is tested."""
    return Passwords(PasswordHasher(time_cost=rounds, memory_cost=8, parallelism=1))


async def facts_of(store: Store, user: Principal) -> Facts:
    """What a session of the user would have: projects, policies."""
    return await store.read(lambda db: read_facts(db, user, ""))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest_asyncio.fixture(loop_scope="session")
async def identity(store: Store, clock: Clock) -> IdentityService:
    service = IdentityService(store, clock, quick_hasher())
    await service.bootstrap()
    return service


@pytest.fixture
def key_pairs(store: Store, clock: Clock) -> KeyPairService:
    return KeyPairService(store, clock)
