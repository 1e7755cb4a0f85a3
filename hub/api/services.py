"""What handlers call: the use cases of all rooms, and the little that answers say about this deployment."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, replace

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from authenticator.dotfiles import DotfileService
from authenticator.identity import IdentityService
from authenticator.keypairs import KeyPairService
from authenticator.principals import Principal, Scope, may
from authenticator.problems import AuthFailed, Forbidden
from authenticator.sshkeys import SshKeyService
from spawner.sessions.control import ControlPlane
from spawner.sessions.states import FINAL
from spawner.sessions.tables import SessionRow
from store.database import Store
from vfolder.folders import FolderService

API_VERSION = "v7.20230615"
"""The version that suits every modern Backend.AI client."""
BACKENDAI_RELEASE = "23.09.10"
"""The release of Backend.AI whose wire shapes we speak."""


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that a handler may use."""

    store: Store
    identity: IdentityService
    keypairs: KeyPairService
    folders: FolderService
    control: ControlPlane
    now: Callable[[], dt.datetime]
    prefix: str = "/services/perijove/"
    """Path of the manager behind the proxy."""
    hub_prefix: str = "/hub/"
    """Path of the hub as browsers see it."""
    announcement: str = ""
    agents_show_certificates: bool = False
    """Whether agents of other nodes must show a certificate with their id."""
    keepalive: float = 15.0
    """Seconds of silence after which an event stream gets a comment."""

    @property
    def dotfiles(self) -> DotfileService:
        """What sessions find in their home folders."""
        return DotfileService(self.store)

    @property
    def ssh_keys(self) -> SshKeyService:
        """Keys that open the SSH servers of sessions."""
        return SshKeyService(self.store)

    async def owner(self, actor: Principal, access_key: str) -> Principal:
        """The owner of ``access_key``, with the rights of ``actor``. Raises ``Forbidden``."""
        if not may(actor, Scope.ADMIN):
            raise Forbidden("only administrators may act for the owner of another access key")
        try:
            owner, _ = await self.identity.principal_by_access_key(access_key)
        except AuthFailed:
            raise Forbidden(f"there is nobody with the access key {access_key[:20]!r}") from None
        return replace(owner, via=actor.via, scopes=actor.scopes)

    async def active_sessions(self) -> int:
        """How many sessions have not ended."""

        async def work(db: AsyncSession) -> int:
            ended = [status.value for status in FINAL]
            query = select(func.count()).where(SessionRow.status.not_in(ended))
            return await db.scalar(query) or 0

        return await self.store.read(work)
