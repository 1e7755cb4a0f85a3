"""What people bring into their sessions: dotfiles, a bootstrap script, a key for SSH."""

from __future__ import annotations

from dataclasses import dataclass

from authenticator.dotfiles import Dotfile, Owner
from authenticator.principals import Scope
from authenticator.problems import InvalidParameters
from hub.api.endpoints import endpoint
from hub.api.handler import ApiHandler
from hub.api.parameters import param

OWNER_NAMES = ("owner_access_key", "onwer_access_key")
"""Backend.AI's client 23.09 misspells it when it lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Which:
    """Whose dotfiles, and which of them."""

    path: str | None = param("One dotfile; without it, all.", default=None)
    owner_access_key: str | None = param(
        "Access key of the owner, of user-config.", default=None, names=OWNER_NAMES
    )
    group: str | None = param("Project, of group-config: its id or name.", default=None)
    domain: str | None = param("Domain, of domain-config, or of the project.", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Written(Which):
    """A dotfile as it shall be."""

    path: str = param("Where in the home folder.")
    data: str = param("Content.")
    permission: str = param("Three octal digits, such as 644.")


@dataclass(frozen=True, slots=True)
class Script:
    """Parameters of ``POST /user-config/bootstrap-script``."""

    script: str = param("Shell script, or one that begins with #!; empty: none.")


@dataclass(frozen=True, slots=True)
class Key:
    """Parameters of ``POST /auth/ssh-keypair``."""

    pubkey: str = param("Public key, as in an OpenSSH .pub file.")
    privkey: str | None = param("Its private key, to see that they fit; not kept.", default=None)


class Dotfiles(ApiHandler):
    """Files that sessions find in the home folder: the domain's, the project's, the user's."""

    paths = ("/user-config/dotfiles", "/group-config/dotfiles", "/domain-config/dotfiles")

    @endpoint("All dotfiles, or one", scope=Scope.SESSIONS_READ, parameters=Which)
    async def get(self, given: Which) -> None:
        """One has ``perm`` where the list has ``permission``, as Backend.AI has it."""
        dotfiles, owner = self.services.dotfiles, await self._owner(given, write=False)
        if given.path is not None:
            one = await dotfiles.get(owner, given.path)
            self.answer({"path": one.path, "perm": one.permission, "data": one.data})
            return
        found = await dotfiles.list(owner)
        self.answer([{"path": f.path, "permission": f.permission, "data": f.data} for f in found])

    @endpoint("Make a dotfile", scope=Scope.SESSIONS, parameters=Written)
    async def post(self, given: Written) -> None:
        """Sessions that start from now on find it."""
        owner = await self._owner(given, write=True)
        await self.services.dotfiles.create(owner, _file(given))
        self.answer({})

    @endpoint("Change a dotfile", scope=Scope.SESSIONS, parameters=Written)
    async def patch(self, given: Written) -> None:
        """Where a session's owner changed the file it found, that stays."""
        owner = await self._owner(given, write=True)
        await self.services.dotfiles.update(owner, _file(given))
        self.answer({})

    @endpoint("Forget a dotfile", scope=Scope.SESSIONS, parameters=Which)
    async def delete(self, given: Which) -> None:
        """Home folders that have it keep it."""
        if given.path is None:
            raise InvalidParameters({"path": "is required"})
        owner = await self._owner(given, write=True)
        await self.services.dotfiles.delete(owner, given.path)
        self.answer({"success": True})

    async def _owner(self, given: Which, *, write: bool) -> Owner:
        """Whose, by the path of the request."""
        dotfiles, me = self.services.dotfiles, self.principal
        kind = self.request.path.split("/")[-2]
        if kind == "user-config":
            user = await self.acting_for(given.owner_access_key)
            return dotfiles.of_user(me, user, write=write)
        if kind == "group-config":
            if not given.group:
                raise InvalidParameters({"group": "is required"})
            return await dotfiles.of_project(me, given.group, given.domain, write=write)
        if not given.domain:
            raise InvalidParameters({"domain": "is required"})
        return dotfiles.of_domain(me, given.domain, write=write)


class BootstrapScript(ApiHandler):
    """What runs first in sessions of the caller that bring no script of their own."""

    paths = ("/user-config/bootstrap-script",)

    @endpoint("The caller's bootstrap script", scope=Scope.SESSIONS_READ)
    async def get(self) -> None:
        """Text; empty where there is none."""
        self.answer(await self.services.dotfiles.bootstrap_script(self.principal))

    @endpoint("Keep a bootstrap script", scope=Scope.SESSIONS, parameters=Script)
    async def post(self, given: Script) -> None:
        """For sessions that start from now on."""
        await self.services.dotfiles.set_bootstrap_script(self.principal, given.script)
        self.answer({})


class SshKey(ApiHandler):
    """The key that opens the SSH servers of the caller's sessions."""

    paths = ("/auth/ssh-keypair",)

    @endpoint("The caller's public key for SSH", scope=Scope.SESSIONS_READ)
    async def get(self) -> None:
        """Empty where there is none."""
        self.answer({"ssh_public_key": await self.services.ssh_keys.get(self.principal)})

    @endpoint("Make a new key pair for SSH", scope=Scope.SESSIONS)
    async def patch(self) -> None:
        """The private key is in this answer only."""
        public, private = await self.services.ssh_keys.generate(self.principal)
        self.answer({"ssh_public_key": public, "ssh_private_key": private})

    @endpoint("Bring a public key for SSH", scope=Scope.SESSIONS, parameters=Key)
    async def post(self, given: Key) -> None:
        """For sessions that start from now on."""
        keys = self.services.ssh_keys
        line = await keys.replace(self.principal, given.pubkey, given.privkey)
        self.answer({"ssh_public_key": line})


def _file(given: Written) -> Dotfile:
    return Dotfile(given.path, given.permission, given.data)


HANDLERS = (Dotfiles, BootstrapScript, SshKey)
