"""A clock that the test sets, quick password hashes, and identity on a database of its own."""

import datetime as dt
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from argon2 import PasswordHasher
from sqlalchemy.ext.asyncio import AsyncSession

import authenticator.tables
from authenticator.identity import IdentityService
from authenticator.keypairs import KeyPairService
from authenticator.passwords import Passwords
from store.base import Base
from store.database import Store

TABLES = [
    Base.metadata.tables[row.__tablename__]
    for row in vars(authenticator.tables).values()
    if isinstance(row, type) and issubclass(row, Base) and row is not Base
]


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


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = Store(f"sqlite:///{tmp_path / 'identity.sqlite'}")
    await opened.open()

    async def make_tables(session: AsyncSession) -> None:
        connection = await session.connection()
        await connection.run_sync(lambda sync: Base.metadata.create_all(sync, tables=TABLES))

    await opened.write(make_tables)
    yield opened
    await opened.close()


@pytest.fixture
async def identity(store: Store, clock: Clock) -> IdentityService:
    service = IdentityService(store, clock, quick_hasher())
    await service.bootstrap()
    return service


@pytest.fixture
def key_pairs(store: Store, clock: Clock) -> KeyPairService:
    return KeyPairService(store, clock)
