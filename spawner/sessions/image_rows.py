"""What the rows of images say: whose they are, who has them, how agents may get them."""

from __future__ import annotations

import uuid
from collections.abc import Iterable

from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from spawner.agent.protocol import ImagePull, ImageReport
from spawner.sessions.tables import AgentRow, CommitRow, ImageRow, RegistryRow
from spawner.sessions.transitions import Change

OWN_HOST = "perijove.invalid"
"""Host in the names of images made of sessions: no registry can have it, so they are never pulled."""
COMMIT_LABEL = "ai.perijove.commit"
OWNER_LABEL = "ai.perijove.image-owner"
ONGOING, DONE, FAILED = "ongoing", "done", "failed"


def usable_by(user_id: uuid.UUID) -> ColumnElement[bool]:
    """Whether a user may use an image: everybody's, and the own ones."""
    return or_(ImageRow.owner_id.is_(None), ImageRow.owner_id == user_id)


def own_name(owner_id: uuid.UUID, name: str) -> str:
    """The full name of an image that a user made."""
    return f"{OWN_HOST}/{owner_id.hex}/{name}:latest"


async def pull_rules(db: AsyncSession, images: Iterable[str]) -> dict[str, ImagePull]:
    """Credentials and approved digests of those of ``images`` that have any."""
    names = set(images)
    registries = {
        row.name: row for row in await db.scalars(select(RegistryRow).where(RegistryRow.is_active))
    }
    query = select(ImageRow.name, ImageRow.expected_digest).where(
        ImageRow.name.in_(names), ImageRow.expected_digest.is_not(None)
    )
    digests = {str(name): digest for name, digest in (await db.execute(query)).all()}
    rules: dict[str, ImagePull] = {}
    for name in names:
        registry = registries.get(name.partition("/")[0])
        if registry is not None:
            rules[name] = ImagePull(registry.username, registry.password, digests.get(name))
        elif name in digests:
            rules[name] = ImagePull(digest=digests[name])
    return rules


async def arrived(change: Change, report: ImageReport, row: ImageRow) -> None:
    """An agent has an image: note whose it is, and that its commit is done."""
    owner, commit = report.labels.get(OWNER_LABEL), report.labels.get(COMMIT_LABEL)
    if not owner or not commit or not report.name.startswith(f"{OWN_HOST}/{owner}/"):
        return
    done = await _commit(change.db, commit)
    if done is None or done.owner_id.hex != owner:
        return
    row.owner_id = done.owner_id
    if done.status != DONE:
        done.status, done.ended_at, done.message = DONE, change.now, ""


async def _commit(db: AsyncSession, text: str) -> CommitRow | None:
    try:
        commit_id = uuid.UUID(text)
    except ValueError:
        return None
    return await db.get(CommitRow, commit_id, with_for_update=True)


async def holders(db: AsyncSession) -> dict[str, set[str]]:
    """Agents by the image that they have."""
    found: dict[str, set[str]] = {}
    for agent, images in (await db.execute(select(AgentRow.id, AgentRow.images))).all():
        for image in images:
            found.setdefault(image, set()).add(agent)
    return found
