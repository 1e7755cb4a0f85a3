"""Images: what can be started, where it is, and what administrators and owners do with it.

Names have slashes in them, so they are parameters and no part of a path.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from authenticator.principals import Scope
from hub.api.endpoints import Access, endpoint
from hub.api.handler import ApiHandler
from hub.api.parameters import param
from spawner.sessions.image_rows import ONGOING
from spawner.sessions.images import ImageView


@dataclass(frozen=True, slots=True)
class Named:
    """Parameters that name an image."""

    name: str = param("Name of the image with its tag.", names=("name", "image"), max_length=255)


@dataclass(frozen=True, slots=True)
class Listing:
    """Parameters of ``GET /images``."""

    name: str | None = param("Only this image.", default=None, max_length=255)


@dataclass(frozen=True, slots=True)
class Approval(Named):
    """Parameters of ``PATCH /images``."""

    enabled: bool | None = param("Whether sessions may use it.", default=None)
    digest: str | None = param(
        "The only digest under which it may be pulled; an empty text: any.", default=None
    )


@dataclass(frozen=True, slots=True)
class Pull(Named):
    """Parameters of ``POST /images/pull``."""

    agents: list[str] = param("Agents that get it; none: all that live.", factory=list)


@dataclass(frozen=True, slots=True)
class Commit:
    """Parameters of ``POST /session/{session}/commit``."""

    name: str | None = param(
        "Name of the new image; default: the session's.",
        default=None,
        names=("image_name", "imageName", "filename"),
        max_length=255,
    )


class Images(ApiHandler):
    """All images."""

    paths = ("/images",)

    @endpoint("Images that the caller may use", scope=Scope.SESSIONS_READ, parameters=Listing)
    async def get(self, given: Listing) -> None:
        """With labels; superadmins see all, and which agents have them."""
        found = await self.services.control.images.list(self.principal, given.name)
        self.answer({"images": [_shown(each, self.principal.is_superadmin) for each in found]})

    @endpoint(
        "Switch an image on or off, approve a digest", access=Access.ADMIN, parameters=Approval
    )
    async def patch(self, given: Approval) -> None:
        """Sessions that run go on."""
        service = self.services.control.images
        await service.update(
            self.principal,
            given.name,
            enabled=given.enabled,
            digest=given.digest,
            request_id=self.request_id,
        )
        self.answer({})

    @endpoint(
        "Remove an image from the nodes: an own one, or (superadmins) any",
        scope=Scope.SESSIONS,
        parameters=Named,
    )
    async def delete(self, given: Named) -> None:
        """Tells which agents removed it, and why the others did not."""
        service = self.services.control.images
        self.answer(await service.remove(self.principal, given.name, self.request_id))


class ImagePulls(ApiHandler):
    """Getting images onto nodes."""

    paths = ("/images/pull",)

    @endpoint("How far each node's pull of an image is", access=Access.ADMIN, parameters=Named)
    async def get(self, given: Named) -> None:
        """By agent: state (running, done, failed) and a sentence with bytes."""
        self.answer({"pulls": await self.services.control.images.tasks(self.principal, given.name)})

    @endpoint("Have nodes pull an image", access=Access.ADMIN, parameters=Pull, status=202)
    async def post(self, given: Pull) -> None:
        """Answers at once; several requests for one image share one pull."""
        service = self.services.control.images
        pulls = await service.pull(self.principal, given.name, given.agents)
        self.answer({"pulls": pulls}, status=202)


class SessionCommit(ApiHandler):
    """An image of a session."""

    paths = ("/session/{session}/commit",)

    @endpoint("How far the newest image of a session is", scope=Scope.SESSIONS_READ)
    async def get(self, session: str) -> None:
        """``status`` is ``ready`` or ``ongoing``; ``result`` says how the newest one ended."""
        service = self.services.control.images
        row = await service.commit_status(self.principal, session, self.request_id)
        detail = await self.services.control.sessions.get(self.principal, session)
        answer: dict[str, Any] = {"kernel": str(detail.main.id), "status": "ready"}
        if row is not None:
            answer["status"] = "ongoing" if row.status == ONGOING else "ready"
            answer |= {"image": row.image, "result": row.status, "message": row.message}
        self.answer(answer)

    @endpoint(
        "Make an image of a running session", scope=Scope.SESSIONS, parameters=Commit, status=201
    )
    async def post(self, session: str, given: Commit) -> None:
        """Goes on in the background; the image is the owner's alone."""
        service = self.services.control.images
        row = await service.commit(self.principal, session, given.name, self.request_id)
        detail = await self.services.control.sessions.get(self.principal, session)
        answer = {"bgtask_id": str(row.id), "kernel": str(detail.main.id), "path": row.image}
        self.answer(answer, status=201)


def _shown(view: ImageView, with_agents: bool) -> dict[str, Any]:
    row = view.row
    shown: dict[str, Any] = {
        "name": row.name,
        "architecture": row.architecture,
        "digest": row.digest,
        "size_bytes": row.size_bytes,
        "labels": row.labels,
        "installed": bool(view.agents),
        "is_own": row.owner_id is not None,
        "created_at": row.created_at.isoformat(),
    }
    if with_agents:
        shown |= {
            "is_enabled": row.is_enabled,
            "expected_digest": row.expected_digest,
            "installed_agents": list(view.agents),
        }
    return shown


HANDLERS = (ImagePulls, Images, SessionCommit)
