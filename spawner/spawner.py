"""JupyterHub's Spawner: a thin client of the session API.

It decides nothing and remembers nothing: the name of a server's session follows from hub, user and server
name, so a hub that lost its memory finds it again by asking the manager.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from jupyterhub.spawner import Spawner
from jupyterhub.traitlets import Callable as CallableTrait
from jupyterhub.utils import url_escape_path, url_path_join
from traitlets import Dict, Float, Integer, List, Unicode, Union, default

from authenticator.problems import InvalidParameters
from spawner import options
from spawner.client import (
    End,
    ManagerClient,
    Refusal,
    Server,
    ServerCache,
    Unreachable,
    Verdict,
)
from spawner.formhandling import accept, posted, render
from spawner.launch import Launch
from spawner.resuming import ResumedStart
from spawner.scheduler.slots import MICRO, format_amount
from spawner.starting import (
    StartRefused,
    StartStory,
    ended_early,
    invalid_options,
    never_fits,
    refused,
)

PORT = 8888
"""Port of the server inside its container."""


class PerijoveSpawner(Spawner):
    """Starts servers as sessions of a Perijove cluster."""

    manager_url = Unicode(
        help="""
        URL of the Perijove manager as the hub reaches it.

        Default: the environment variable `PERIJOVE_MANAGER_URL`, else `http://127.0.0.1:8090`.
        """,
    ).tag(config=True)
    hub_secret = Unicode(
        help="""
        The secret with which the hub may act for its users at the manager.

        Best left to the environment variable `PERIJOVE_HUB_SECRET`, its default: configuration files are
        read by more people than environments are.
        """,
    ).tag(config=True)
    hub_id = Unicode(
        help="""
        Name of this hub at the manager. It must stay the same for as long as servers live.

        Servers are found by it. Default: derived from the hub secret. Set it when several hubs share one
        manager (and one secret), to a different name for each.
        """,
    ).tag(config=True)
    session_api_url = Unicode(
        help="""
        URL of the manager as sessions reach it (`PERIJOVE_API_URL` in the session): what
        `hub_connect_url` is for the hub. In both, `{session_address}` stands for the host at which the
        agent's sessions reach their own node.

        Default: `manager_url`, with `{session_address}` for a loopback host. Without `hub_connect_url`, a
        loopback host in the hub's own URL is replaced in the same way.
        """,
    ).tag(config=True)
    image = Unicode(
        help="""
        Image of sessions whose user did not choose one. Default: the manager's default image.
        """,
    ).tag(config=True)
    allowed_images = Union(
        [CallableTrait(), Dict(), List(Unicode())],
        default_value=[],
        help="""
        Images that users may choose: a list, or a dict of labels to images, or a callable that takes the
        spawner and returns one of them.

        When empty, users may choose among the images that the manager offers; never any other.
        """,
    ).tag(config=True)
    resource_group = Unicode(
        help="""
        Resource group of sessions whose user did not choose one. Default: the manager's default for them.
        """,
    ).tag(config=True)
    poll_cache_seconds = Float(
        3.0,
        min=0,
        help="""
        For how many seconds one answer about all servers of this hub serves every server's `poll`.
        """,
    ).tag(config=True)
    stop_timeout = Integer(
        120,
        min=1,
        help="""
        For how many seconds `stop` waits until the session is gone, and for a manager that is away, before
        it reports that it could not end it. After half of them the session is ended by force.
        """,
    ).tag(config=True)
    form_template = Unicode(
        "perijove_form.html",
        help="""
        Template of the spawn form's content, found in `JupyterHub.template_paths`.

        It gets `form` (see `spawner.form.view`), `spawner`, `user_name` and `base_url`. With an empty
        name, or when there is no such template, servers start with defaults and without a form.
        """,
    ).tag(config=True)

    _shared: ClassVar[dict[tuple[Any, ...], ServerCache]] = {}

    # Set by JupyterHub, and by ``ResumedStart`` where it steps in for it.
    _spawn_future: Any = None
    _server: Any = None

    choice: options.Choice | None = None
    """What the user asked for in this start."""
    _starting = False
    _alive = False
    _slots: Mapping[str, int] = MappingProxyType({})
    _resumed: ResumedStart | None = None
    _finishing: asyncio.Task[None] | None = None
    _made_launch: Launch | None = None

    # Defaults of our own for JupyterHub's traits

    @default("manager_url")
    def _default_manager_url(self) -> str:
        return os.environ.get("PERIJOVE_MANAGER_URL", "http://127.0.0.1:8090")

    @default("hub_secret")
    def _default_hub_secret(self) -> str:
        return os.environ.get("PERIJOVE_HUB_SECRET", "")

    @default("hub_id")
    def _default_hub_id(self) -> str:
        return options.hub_id(self.hub_secret)

    @default("session_api_url")
    def _default_session_api_url(self) -> str:
        return options.seen_from_session(self.manager_url)

    @default("start_timeout")
    def _default_start_timeout(self) -> int:
        return 7 * 24 * 3600  # a queued server is a starting server

    @default("http_timeout")
    def _default_http_timeout(self) -> int:
        return 120

    @default("env_keep")
    def _default_env_keep(self) -> list[str]:
        return []

    @default("default_url")
    def _default_default_url(self) -> str:
        return "/lab"

    @default("notebook_dir")
    def _default_notebook_dir(self) -> str:
        return "{home}"

    @default("server_token_scopes")
    def _default_server_token_scopes(self) -> list[str]:
        return [
            "users:activity!user",
            "access:servers!server",
            "custom:perijove:sessions:read!user",
            "custom:perijove:sessions:extend!user",
        ]

    @default("options_form")
    def _default_options_form(self) -> Callable[[PerijoveSpawner], Awaitable[str]]:
        return render

    @default("options_from_form")
    def _default_options_from_form(self) -> Callable[..., Awaitable[dict[str, Any]]]:
        return posted

    @default("apply_user_options")
    def _default_apply_user_options(self) -> Callable[[PerijoveSpawner, Any], None]:
        return accept

    # Who and where

    @property
    def session_name(self) -> str:
        """Name of this server's session at the manager."""
        return options.session_name(self.hub_id, self.user.name, self.name)

    @property
    def servers(self) -> ServerCache:
        """What is known of the hub's sessions, shared by all spawners of this process."""
        loop = asyncio.get_running_loop()
        key = (loop, self.manager_url, self.hub_secret, self.hub_id, self.poll_cache_seconds)
        cache = self._shared.get(key)
        if cache is None:
            client = ManagerClient(self.manager_url, self.hub_secret)
            cache = self._shared[key] = ServerCache(client, self.hub_id, self.poll_cache_seconds)
        return cache

    @property
    def manager(self) -> ManagerClient:
        """The connection to the manager."""
        return self.servers.client

    @property
    def _launch(self) -> Launch:
        if self._made_launch is None:
            self._made_launch = Launch(
                self.manager, self.hub_id, self.user.name, self.session_name, self.log
            )
        return self._made_launch

    # Options

    async def _images(self) -> Any:
        allowed = self.allowed_images
        if callable(allowed):
            allowed = allowed(self)
            if isinstance(allowed, Awaitable):
                allowed = await allowed
        return allowed

    async def image_labels(self) -> dict[str, str]:
        """Labels of images, where `allowed_images` gives them."""
        allowed = await self._images()
        return {i: label for label, i in allowed.items()} if isinstance(allowed, Mapping) else {}

    async def bounds(self) -> options.Bounds:
        """What this hub's configuration lets the user choose."""
        allowed = await self._images()
        return options.Bounds(
            allowed_images=tuple(allowed.values() if isinstance(allowed, Mapping) else allowed),
            least=_slots(self.cpu_guarantee, self.mem_guarantee),
            most=_slots(self.cpu_limit, self.mem_limit),
        )

    async def consider(
        self, choice: options.Choice, offer: Mapping[str, Any]
    ) -> tuple[options.Request, Verdict]:
        """The request that ``choice`` comes to, and what the manager says to it now."""
        request = options.resolve(
            choice, offer, await self.bounds(), self.image, self.resource_group
        )
        verdict = await self.manager.check(self.user.name, request.check_body())
        if verdict.verdict == "never" and not verdict.errors:
            wrong = options.too_big(request, offer)
            verdict = Verdict(verdict.verdict, verdict.message, wrong)
        return request, verdict

    async def accepted(self, choice: options.Choice, offer: Mapping[str, Any]) -> options.Request:
        """The request that ``choice`` comes to. Raises ``StartRefused`` when it could never run."""
        request, verdict = await self.consider(choice, offer)
        if verdict.verdict == "never":
            raise never_fits(verdict.message, dict(verdict.errors))
        return request

    # The contract

    def clear_state(self) -> None:
        """Forget the last start."""
        super().clear_state()
        self._alive = False
        self._slots = {}
        if self._resumed is not None:
            self._resumed.abandon()
            self._resumed = None

    def template_namespace(self) -> dict[str, Any]:
        """Names for `notebook_dir` and `default_url`; those in braces are filled in by the agent."""
        tokens = {name: "{" + name + "}" for name in options.AGENT_TOKENS}
        return {**tokens, **super().template_namespace()}

    def get_env(self) -> dict[str, str]:
        """The session's environment; the agent fills in where the server listens."""
        env = dict(super().get_env())
        prefix = env.get("JUPYTERHUB_SERVICE_PREFIX", "/")
        ours = {
            "JUPYTERHUB_SERVICE_URL": "http://{bind_host}:{bind_port}" + prefix,
            "PERIJOVE_API_URL": self.session_api_url,
        }
        if self.hub_connect_url is None:
            for name in ("JUPYTERHUB_API_URL", "JUPYTERHUB_ACTIVITY_URL"):
                ours[name] = options.seen_from_session(env[name])
        for slot in self._slots.keys() & {"cpu", "mem"}:
            amount = format_amount(slot, self._slots[slot])
            ours[f"{slot.upper()}_LIMIT"] = ours[f"{slot.upper()}_GUARANTEE"] = amount
        env.update({name: text for name, text in ours.items() if name not in self.environment})
        return {name: str(value) for name, value in env.items() if value is not None}

    async def start(self) -> str:
        """Ask for the session, wait until it runs, and return its URL. Raises ``StartRefused``."""
        if self.internal_ssl:
            raise StartRefused(
                "This hub uses internal_ssl, which Perijove's sessions do not support yet.",
                reason="configuration",
                status_code=500,
            )
        if not self._launch.story.untold:
            self._launch.story = StartStory()
        self._starting = True
        try:
            return await self._start()
        except Refusal as refusal:
            raise refused(refusal) from None
        except InvalidParameters as problem:
            raise invalid_options(problem) from None
        except asyncio.CancelledError:
            self._no_server()
            raise
        finally:
            self._starting = False
            self._launch.story.close()

    async def _start(self) -> str:
        launch = self._launch
        choice = self.choice or options.Choice()
        offer = await launch.answered(lambda: self.manager.spawn_options(self.user.name))
        request = await launch.answered(lambda: self.accepted(choice, offer))
        await launch.clear_name()
        self._slots = dict(request.slots)
        command = [*(self.cmd or []), *self.get_args()]
        extension = {"hub": self.hub_id, "server": self.name, "command": command, "port": PORT}
        self._alive = True
        session_id = await launch.submit(
            request.session_body(self.session_name, self.get_env(), extension)
        )
        self.servers.forget()
        return await launch.until_running(session_id)

    def _no_server(self) -> None:
        # JupyterHub takes a server that is neither pending nor gone for ready, and would say so to
        # the browsers that follow a cancelled start, until its `stop` comes.
        self.server = None
        self.user.db.commit()

    async def poll(self) -> int | None:
        """None while the session lives or starts, else its exit code. A manager that is away is no news."""
        if self._starting:
            return None
        try:
            server = await self.servers.find(self.user.name, self.session_name)
        except (Unreachable, Refusal) as error:
            self.log.warning("Nothing new about %s: %s", self._log_name, error)
            return None if self._alive or self.server is not None else 0
        self._alive = server is not None and not server.ended
        if server is None:
            return 0
        if not server.ended:
            return None
        if server.exit_code is not None:
            return server.exit_code
        return 1 if server.status == "ERROR" else 0

    async def stop(self, now: bool = False) -> None:
        """End the session (also a queued one) and return when nothing of it is left."""
        await self._launch.end(now=now, timeout=self.stop_timeout)
        self.servers.forget()
        self._alive = False

    async def get_url(self) -> str:
        """Where the server is; waits for it when the hub was started again before the session ran."""
        server = await self._launch.answered(self._launch.find)
        if server is not None and server.running:
            known = str(self.server.url)
            # The hub knows it with its path, and would call anything else invalid.
            return known if known.startswith(f"{server.url}/") else str(server.url)
        self._resumed = ResumedStart(self)
        return await self._resumed.url(self._resume(server))

    async def _resume(self, server: Server | None) -> str:
        try:
            if server is None:
                raise ended_early(End("TERMINATED", "the manager does not know the session"), "")
            return await self._launch.until_running(server.id)
        finally:
            self._launch.story.close()

    def run_post_stop_hook(self) -> Any:
        """Run `post_stop_hook`, after making sure that the server's token is no longer valid.

        JupyterHub revokes the token that it remembers; after a restart of the hub it remembers none.
        """
        if not self.api_token and not self.will_resume:
            path = url_path_join(self.user.base_url, url_escape_path(self.name), "/")
            for token in list(self.user.api_tokens):
                if token.note == f"Server at {path}":
                    self.user.db.delete(token)
            self.user.db.commit()
        return super().run_post_stop_hook()

    def start_polling(self) -> None:
        """Watch the server; also the end of a resumed start, since JupyterHub calls it there."""
        if self._resumed is not None and self._resumed.future.cancelled():
            self._no_server()
            return
        super().start_polling()
        if self._resumed is not None:
            self._finishing = asyncio.ensure_future(self._resumed.finish())

    async def progress(self) -> AsyncIterator[dict[str, Any]]:
        """The start's events from the first one on; any number of browsers may listen."""
        async for event in self._launch.story.listen():
            yield event

    async def delete_forever(self) -> None:
        """End what may be left of a deleted server. Folders belong to the user, not to a server."""
        try:
            server = await self._launch.find()
            if server is not None and not server.ended:
                await self.manager.destroy(self.user.name, server.id, forced=True)
        except (Unreachable, Refusal) as error:
            self.log.warning("Nothing ended for the deleted %s: %s", self._log_name, error)


def _slots(cpu: float | None, memory: int | None) -> dict[str, int]:
    slots = {}
    if cpu:
        slots["cpu"] = round(cpu * 10) * MICRO // 10
    if memory:
        slots["mem"] = memory
    return slots
