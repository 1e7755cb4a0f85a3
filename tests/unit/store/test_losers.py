"""Who loses a race for a name can look at the winner as soon as they know that they lost."""

import asyncio

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from store.database import Store
from tests.unit.store.notes import NoteRow


async def test_the_loser_of_a_batch_sees_the_winner(store: Store) -> None:
    async def attempt(text: str) -> str:
        async def insert(session: AsyncSession) -> None:
            session.add(NoteRow(name="one", text=text))

        async def look(session: AsyncSession) -> str:
            return (await session.get_one(NoteRow, "one")).text

        try:
            await store.write(insert)
        except IntegrityError:
            return await store.read(look)
        return text

    answers = await asyncio.gather(*(attempt(f"writer {n}") for n in range(5)))
    assert set(answers) == {"writer 0"}
