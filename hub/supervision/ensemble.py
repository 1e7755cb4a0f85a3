"""The four processes of a deployment on one host: how each is run, in which order, how all end."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from hub.commands.base import say
from hub.config.deployment import LOOPBACK, Deployment
from hub.first_start import ADMIN, default_images, first_administrator, prepare_database
from hub.supervision.daemons import Daemon
from hub.supervision.engine_choice import EngineChoice, choose_engine, process_choice
from hub.supervision.logfiles import printable
from hub.supervision.recipes import Recipes
from hub.supervision.supervisor import Listener, Member, Supervisor, SupervisorError, only_one
from spawner.options import DEFAULT_IMAGE
from store import schema
from store.engine import StoreError

END_ORDER = ("agent", "hub", "manager", "proxy")
SHUTDOWN_WITHIN = 30.0
HEARTBEAT_AGE = re.compile(r"^perijove_agent_heartbeat_age_seconds\{.*\} (\S+)$", re.MULTILINE)


@dataclass
class Ensemble:
    """A deployment under supervision, from the first process to the last."""

    deployment: Deployment
    config_path: Path | None
    engine: str
    verbose: bool
    log_level: int
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _hurry: asyncio.Event = field(default_factory=asyncio.Event)
    _end_sessions: bool = False
    _password: str | None = None

    async def run(self) -> None:
        """Bring everything up, keep it running until a signal comes, end it.

        Raises ``SupervisorError`` or ``DeploymentError`` when it cannot be brought up.
        """
        self.deployment.prepare()
        with only_one(self.deployment.run / "up.lock"):
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                loop.add_signal_handler(number, self._on_signal, number)
            async with aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=5), trust_env=False
            ) as self._http:
                await self._supervise()

    def _on_signal(self, number: int) -> None:
        """Ctrl-C ends the sessions too; a service manager's stop and a closed terminal do not."""
        if self._stop.is_set():
            self._hurry.set()
            return
        self._end_sessions = number == signal.SIGINT
        self._stop.set()

    async def _supervise(self) -> None:
        supervisor = Supervisor(show, verbose=self.verbose)
        rising = asyncio.create_task(self._bring_up(supervisor))
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({rising, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if rising.done():
                rising.result()  # raises what went wrong
            await stopping
        finally:
            for task in (rising, stopping):
                task.cancel()
            await asyncio.gather(rising, stopping, return_exceptions=True)
            self._show_password()
            await self._bring_down(supervisor)

    async def _bring_up(self, supervisor: Supervisor) -> None:
        """Everything in order: what others need comes first."""
        choice = await asyncio.to_thread(choose_engine, self.engine)
        show("up", f"engine of the local agent: {choice.engine} ({choice.reason})")
        self._secrets = self.deployment.secrets(create=True)
        self._addresses = self.deployment.choose_addresses(choice.host)
        recipes = Recipes(
            self.deployment, self._addresses, self._secrets, self.config_path, self.log_level
        )
        await self._prepare_database(Daemon(recipes.manager()))
        await supervisor.bring_up(self._proxy(recipes))
        await supervisor.bring_up(self._manager(recipes), self._hub(recipes))
        show("up", f"ready: {self._addresses.public_url}")
        self._show_password()
        await self._bring_up_agent(supervisor, recipes, choice)
        show("up", "sessions can start; Ctrl-C ends everything")

    async def _prepare_database(self, manager: Daemon) -> None:
        """Schema, default rows and, if there is none, an administrator.

        A manager of an older release that still runs is ended before its tables change.
        """
        try:
            current = await asyncio.to_thread(schema.current_revision, self.deployment.db_url)
            if current not in (None, schema.head_revision()) and manager.adopt() != "none":
                await manager.stop(10.0)
            upgrade = await prepare_database(self.deployment)
            self._password = await first_administrator(self.deployment)
        except StoreError as error:
            raise SupervisorError(str(error)) from error
        if upgrade.before is not None and upgrade.changed:
            show("up", f"database upgraded from {upgrade.before} to {upgrade.after}")

    async def _bring_up_agent(
        self, supervisor: Supervisor, recipes: Recipes, choice: EngineChoice
    ) -> None:
        """The agent, once the image is there; without one, the process engine if that may be."""
        if choice.image_missing and not await self._build_image():
            if self.engine != "auto":
                raise SupervisorError("the image could not be built; see the lines above")
            choice = process_choice("the image could not be built")
            show("up", f"engine of the local agent: process ({choice.reason})")
        used = await default_images(self.deployment) if choice.outdated else frozenset()
        for image in sorted(used & choice.outdated.keys()):
            show("image", f"{image} {choice.outdated[image]}")
        daemon = Daemon(recipes.agent(choice.engine))
        await supervisor.bring_up(
            Member(daemon, ready=lambda: self._agent_ready(daemon), grace=15.0)
        )

    async def _build_image(self) -> bool:
        """Build the image in a process of its own, showing its progress; whether it is there now."""
        show("image", f"{DEFAULT_IMAGE} is not there yet; building it (a few minutes, once)")
        command = [sys.executable, "-P", "-m", "hub.app", "image", "build"]
        if self.config_path is not None:
            command += ["-f", str(self.config_path)]
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        assert process.stdout is not None  # noqa: S101 - it was asked for
        try:
            async for line in process.stdout:
                show("image", printable(line.decode(errors="replace").rstrip()))
            return await process.wait() == 0
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()

    def _proxy(self, recipes: Recipes) -> Member:
        a = self._addresses
        token = {"Authorization": f"token {self._secrets.proxy_token}"}
        return Member(
            Daemon(recipes.proxy()),
            ready=lambda: self._answers(f"{a.proxy_api_url}/api/routes", token),
            listeners=(
                Listener(a.ip, a.port, "stop that program, or choose another port with --port"),
                self._inner(LOOPBACK, a.proxy_api_port),
            ),
            restarted=self._restore_routes,
        )

    def _hub(self, recipes: Recipes) -> Member:
        a = self._addresses
        return Member(
            Daemon(recipes.hub()),
            ready=lambda: self._answers(f"{a.hub_url}{a.base_url}hub/health"),
            listeners=(self._inner(a.host, a.hub_port),),
        )

    def _manager(self, recipes: Recipes) -> Member:
        a = self._addresses
        return Member(
            Daemon(recipes.manager()),
            ready=lambda: self._answers(f"{a.manager_url}/health"),
            listeners=(self._inner(a.host, a.manager_port),),
        )

    def _inner(self, host: str, port: int) -> Listener:
        path = self.deployment.state / "deployment.json"
        return Listener(
            host,
            port,
            f"stop that program; or, while no session lives, remove {path} to choose anew",
        )

    async def _agent_ready(self, agent: Daemon) -> bool:
        """Whether the manager heard of an agent since this one began (or lately, if it was adopted)."""
        recent = min(time.monotonic() - agent.started_at, 25.0) if agent.ours else 25.0
        url = f"{self._addresses.manager_url}/metrics"
        headers = {"Authorization": f"Bearer {self._secrets.hub_secret}"}
        try:
            async with self._http.get(url, headers=headers) as response:
                text = await response.text() if response.status == 200 else ""
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False
        return any(float(age) <= recent for age in HEARTBEAT_AGE.findall(text))

    async def _answers(self, url: str, headers: Mapping[str, str] | None = None) -> bool:
        try:
            async with self._http.get(url, headers=headers) as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    async def _restore_routes(self) -> None:
        """Ask the hub to give a new proxy its routes; JupyterHub by itself looks every few minutes."""
        url = f"{self._addresses.hub_api_url}/proxy"
        token = {"Authorization": f"token {self._secrets.service_token}"}
        for _ in range(50):
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
                async with self._http.post(url, headers=token) as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(0.2)
        show("proxy", "the hub did not restore the routes yet; it will within five minutes")

    def _show_password(self) -> None:
        """Show a new administrator's password on the terminal, the only place, exactly once."""
        if self._password is not None:
            say(
                f"\n    Log in as {ADMIN} with the password {self._password}\n"
                "    It is shown only this once; `perijove user password admin` sets another.\n"
            )
            self._password = None

    async def _bring_down(self, supervisor: Supervisor) -> None:
        """End the sessions if Ctrl-C asked for it, then the processes in their order."""
        if self._end_sessions and "manager" in supervisor.running():
            show("up", "ending all sessions (Ctrl-C again: at once)")
            sessions = asyncio.create_task(self._end_all_sessions())
            if not await self._unless_hurried(sessions):
                sessions.cancel()
        elif self._stop.is_set():
            show("up", "stopping; sessions go on and are taken over at the next start")
        ending = asyncio.create_task(supervisor.end(END_ORDER))
        if not await self._unless_hurried(ending):
            supervisor.kill()
        await ending
        show("up", "stopped")

    async def _end_all_sessions(self) -> None:
        """Ask the manager to end every session; says what is left."""
        url = f"{self._addresses.manager_url}/internal/shutdown"
        headers = {"Authorization": f"Bearer {self._secrets.hub_secret}"}
        timeout = aiohttp.ClientTimeout(total=SHUTDOWN_WITHIN)
        try:
            async with self._http.post(url, headers=headers, timeout=timeout) as response:
                answer = await response.json(content_type=None)
                left = answer.get("remaining", 0) if response.status == 200 else "unknown"
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            left = f"unknown ({type(error).__name__})"
        if left:
            show("up", f"sessions that did not end: {left}")

    async def _unless_hurried(self, task: asyncio.Task[None]) -> bool:
        """Wait for ``task`` or a second signal; whether it was the task."""
        hurry = asyncio.create_task(self._hurry.wait())
        await asyncio.wait({task, hurry}, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        return task.done()


def show(name: str, text: str) -> None:
    """A line on the terminal with the name of the process it is about."""
    say(f"{name:>7} | {text}")
