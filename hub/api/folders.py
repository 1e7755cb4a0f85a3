"""vfolders: create, list, describe, delete."""

from __future__ import annotations

from dataclasses import dataclass

from authenticator.principals import Scope
from authenticator.problems import InvalidParameters
from hub.api import views
from hub.api.endpoints import Access, endpoint
from hub.api.handler import ApiHandler
from hub.api.parameters import param
from spawner.scheduler.slots import parse_amount
from vfolder.folders import USAGE_MODES


@dataclass(frozen=True, slots=True)
class FolderCreation:
    """Parameters of ``POST /folders``."""

    name: str = param("Name, unique among the owner's folders.", max_length=200)
    host: str | None = param("Volume that holds it.", default=None, names=("host", "folder_host"))
    usage_mode: str = param("What it is for.", default="general", choices=USAGE_MODES)
    quota: str | None = param("Most bytes it may hold, e.g. 10g; 0: no limit.", default=None)
    cloneable: bool = param("Whether others may copy it.", default=False)


class Folders(ApiHandler):
    """All of the caller's."""

    paths = ("/folders",)

    @endpoint("List folders", scope=Scope.VFOLDER_READ)
    async def get(self) -> None:
        """By name."""
        rows = await self.services.folders.list(self.principal)
        self.answer([views.folder(row, self.principal.email) for row in rows])

    @endpoint("Create a folder", scope=Scope.VFOLDER_WRITE, parameters=FolderCreation, status=201)
    async def post(self, given: FolderCreation) -> None:
        """Ready when answered."""
        row = await self.services.folders.create(
            self.principal,
            given.name,
            volume=views.volume_of(given.host),
            usage_mode=given.usage_mode,
            quota_bytes=_quota(given.quota),
            cloneable=given.cloneable,
        )
        self.answer(views.folder_created(row, self.principal.email))


class Folder(ApiHandler):
    """One of them."""

    paths = ("/folders/{folder}",)

    @endpoint("Describe a folder", scope=Scope.VFOLDER_READ)
    async def get(self, folder: str) -> None:
        """With what it holds."""
        row, usage = await self.services.folders.info(self.principal, folder)
        mine = row.owner_id == self.principal.user_id
        self.answer(views.folder_info(row, usage, is_owner=mine))

    @endpoint("Delete a folder and all in it", scope=Scope.VFOLDER_WRITE, status=204)
    async def delete(self, folder: str) -> None:
        """Refused for homes and while a session mounts it."""
        await self.services.folders.delete(self.principal, folder)
        self.answer_nothing()


class Hosts(ApiHandler):
    """Volumes."""

    paths = ("/folders/_/hosts",)

    @endpoint("Volumes on which the caller may create folders", scope=Scope.VFOLDER_READ)
    async def get(self) -> None:
        """The default one and what each can do."""
        folders = self.services.folders
        info = {
            views.host(name): {
                "backend": type(volume).__name__.removesuffix("Volume").lower(),
                "capabilities": sorted(volume.capabilities),
                "usage": {"percentage": 0},
                "sftp_scaling_groups": [],
            }
            for name, volume in folders.volumes.items()
        }
        default = views.host(folders.default_volume)
        self.answer({"default": default, "allowed": sorted(info), "volume_info": info})


class Types(ApiHandler):
    """Who may own folders."""

    paths = ("/folders/_/allowed_types", "/folders/_/allowed-types", "/config/vfolder-types")

    @endpoint("Kinds of owners", access=Access.PUBLIC)
    async def get(self) -> None:
        """Users, for now."""
        self.answer(["user"])


def _quota(text: str | None) -> int | None:
    """Bytes of a quota; None where there is none."""
    if text is None:
        return None
    try:
        return parse_amount("mem", text) or None
    except ValueError as error:
        raise InvalidParameters({"quota": str(error)}) from error


HANDLERS = (Folders, Hosts, Types, Folder)
