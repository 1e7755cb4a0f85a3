"""A table of the store's own tests: the store knows nothing of what it keeps."""

from sqlalchemy import MetaData, String
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class NoteBase(DeclarativeBase):
    metadata = MetaData()


class NoteRow(NoteBase):
    __tablename__ = "notes"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    text: Mapped[str] = mapped_column(String(64), default="")


async def make_table(session: AsyncSession) -> None:
    connection = await session.connection()
    await connection.run_sync(NoteBase.metadata.create_all)
