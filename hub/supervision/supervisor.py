"""Keeps daemons running: starts or adopts them, waits until they answer, starts again what dies."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from hub.config.deployment import DeploymentError, can_bind
from hub.supervision.daemons import Daemon
from hub.supervision.logfiles import LogFollower, last_lines

FIRST_DELAY, MAX_DELAY = 0.2, 30.0
STABLE_AFTER = 30.0
"""Seconds after which a daemon counts as stable: its next end is answered at once again."""
READY_WITHIN = 120.0
ANSWERS_WITHIN = 10.0
"""Seconds in which an adopted daemon must answer, else it is replaced."""
FOLLOW_AGAIN = 5.0
"""Seconds until a log that could not be read or rotated (a full disk) is tried again."""
TRIES = 3
"""Starts that may fail in a row before the first readiness; then `up` gives up."""


class SupervisorError(Exception):
    """The deployment cannot be started; the sentence says why."""


@dataclass(frozen=True, slots=True)
class Listener:
    """An address that a daemon needs; ``advice`` is what to do when another program has it."""

    host: str
    port: int
    advice: str


@dataclass(frozen=True, slots=True)
class Member:
    """A daemon with what the supervisor must know of it."""

    daemon: Daemon
    ready: Callable[[], Awaitable[bool]]
    listeners: tuple[Listener, ...] = ()
    restarted: Callable[[], Coroutine[None, None, None]] | None = None
    """Done beside everything else when it answers again after it was started again."""
    grace: float = 10.0
    """Seconds between SIGTERM and SIGKILL."""


class Backoff:
    """Delay before the next start: doubles while starts fail, begins anew after a stable run."""

    def __init__(self) -> None:
        self._delay = 0.0

    def after(self, ran_for: float) -> float:
        """Seconds to wait after a run of ``ran_for`` seconds."""
        if ran_for >= STABLE_AFTER:
            self._delay = 0.0
        delay = self._delay
        self._delay = min(MAX_DELAY, max(FIRST_DELAY, 2 * self._delay))
        return delay


class Supervisor:
    """Keeps its members running from ``bring_up`` until ``end``."""

    def __init__(self, say: Callable[[str, str], None], *, verbose: bool = False) -> None:
        self.say = say
        """Tells the person something about a member."""
        self._verbose = verbose
        self._members: dict[str, Member] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def bring_up(self, *members: Member) -> None:
        """Adopt or start ``members`` side by side and return when all answer; from then on keep them running.

        Raises ``SupervisorError`` when an address is taken or when one ends again and again; nothing is done
        for the others any more then.
        """
        tasks = [asyncio.create_task(self._bring_up(each)) for each in members]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _bring_up(self, member: Member) -> None:
        daemon = member.daemon
        self._members[daemon.name] = member
        self._do(daemon.name, self._follow(daemon))
        if not await self._adopt(member):
            check_listeners(member)
            await self._first_start(member)
        self._do(daemon.name, self._keep(member))

    async def end(self, names: tuple[str, ...]) -> None:
        """Stop keeping members running, then end them in the order of ``names``."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for name in names:
            member = self._members.get(name)
            if member is not None:
                await member.daemon.stop(member.grace)

    def _do(self, name: str, work: Coroutine[None, None, None]) -> None:
        """Do ``work`` beside everything else; if it fails, somebody hears of it."""

        def report(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                self.say(name, f"is not watched any more: {type(error).__name__}: {error}")

        task = asyncio.create_task(work)
        task.add_done_callback(report)
        self._tasks.add(task)

    def running(self) -> frozenset[str]:
        """Names of the members that run now."""
        return frozenset(n for n, member in self._members.items() if member.daemon.alive())

    def kill(self) -> None:
        """End all members at once; ``end`` returns soon after."""
        for member in self._members.values():
            member.daemon.kill()

    async def _adopt(self, member: Member) -> bool:
        """Take over a running process if it is the right one and answers."""
        daemon = member.daemon
        verdict = daemon.adopt()
        if verdict == "none":
            return False
        if verdict == "adopted":
            if await self._answers(member, ANSWERS_WITHIN):
                self.say(daemon.name, f"still running (process {daemon.pid}), adopted")
                return True
            self.say(daemon.name, "still there but does not answer; starting it anew")
        else:
            self.say(daemon.name, "runs with other settings; starting it anew")
        await daemon.stop(member.grace)
        return False

    async def _first_start(self, member: Member) -> None:
        """Start until it answers; gives up after ``TRIES`` ends."""
        daemon = member.daemon
        backoff = Backoff()
        for _ in range(TRIES):
            try:
                daemon.start()
            except OSError as error:
                raise SupervisorError(f"the {daemon.name} cannot be started: {error}") from error
            if await self._answers(member, READY_WITHIN):
                return
            if daemon.alive():
                break
            await asyncio.sleep(backoff.after(0.0))
        reason = (
            f"does not answer within {READY_WITHIN:.0f} seconds"
            if daemon.alive()
            else daemon.exit_reason()
        )
        tail = "\n    ".join(last_lines(daemon.spec.log))
        raise SupervisorError(
            f"the {daemon.name} does not start: it {reason}; the end of {daemon.spec.log}:\n    {tail}"
        )

    async def _keep(self, member: Member) -> None:
        """Start ``member`` again whenever it ends."""
        daemon = member.daemon
        backoff = Backoff()
        while True:
            await daemon.exited()
            delay = backoff.after(time.monotonic() - daemon.started_at)
            when = f"in {delay:.1f} s" if delay else "now"
            self.say(daemon.name, f"{daemon.exit_reason()}; starting it again {when}")
            await asyncio.sleep(delay)
            try:
                daemon.start()
            except (OSError, DeploymentError) as error:
                self.say(daemon.name, f"cannot be started: {error}")
                continue
            if await self._answers(member, READY_WITHIN):
                self.say(daemon.name, f"answers again (process {daemon.pid})")
                if member.restarted is not None:
                    self._do(daemon.name, member.restarted())
            elif daemon.alive():
                self.say(daemon.name, f"does not answer within {READY_WITHIN:.0f} s; ending it")
                await daemon.stop(member.grace)

    async def _answers(self, member: Member, within: float) -> bool:
        """Wait until it is ready; False when it ended or the time is over."""
        deadline = time.monotonic() + within
        while member.daemon.alive():
            if await member.ready():
                return True
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.1)
        return False

    async def _follow(self, daemon: Daemon) -> None:
        """Forward the key lines of its log."""
        follower = LogFollower(
            daemon.spec.log, lambda line: self.say(daemon.name, line), everything=self._verbose
        )
        told = ""
        while True:
            try:
                await follower.follow()
            except OSError as error:
                sentence = f"its log cannot be followed now: {error}"
                if sentence != told:
                    self.say(daemon.name, sentence)
                told = sentence
            await asyncio.sleep(FOLLOW_AGAIN)


def check_listeners(member: Member) -> None:
    """Raise ``SupervisorError`` with a sentence when another program has one of its addresses."""
    for listener in member.listeners:
        if not can_bind(listener.host, listener.port):
            raise SupervisorError(
                f"port {listener.port} on {listener.host or 'any address'}, which the"
                f" {member.daemon.name} needs, is taken by another program: {listener.advice}"
            )


@contextlib.contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Hold the lock ``path`` while the block runs; raises ``SupervisorError`` if another holds it."""
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SupervisorError(
                f"`perijove up` already runs on this state folder (process {_holder(file)}):"
                " stop it first, or choose another folder with --state-dir"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _holder(file: IO[str]) -> str:
    file.seek(0)
    return file.read().strip() or "unknown"
