"""The supervisor with small real daemons: starting, adopting, restarting, ending, giving up."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from hub.supervision import supervisor as module
from hub.supervision.daemons import Daemon, DaemonSpec
from hub.supervision.supervisor import (
    Backoff,
    Listener,
    Member,
    Supervisor,
    SupervisorError,
    only_one,
)
from tests.harness.ports import free_port

pytestmark = pytest.mark.integration
PROGRAM = Path(__file__).with_name("daemon_program.py")


class Rig:
    """A folder with one daemon in it, and everything that must be gone at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.said: list[str] = []
        self.pids: set[int] = set()
        self.earlier: list[Daemon] = []

    def spec(self, behaviour: str = "answers", **environ: str) -> DaemonSpec:
        return DaemonSpec(
            name="thing",
            argv=(sys.executable, str(PROGRAM), behaviour, str(self.port)),
            environ={"PATH": os.environ["PATH"], **environ},
            secrets={"THING_SECRET": "hush"},
            log=self.folder / "thing.log",
            record=self.folder / "thing.json",
            directory=self.folder,
        )

    def member(self, behaviour: str = "answers", **options: object) -> Member:
        environ = options.pop("environ", {})
        return Member(Daemon(self.spec(behaviour, **environ)), ready=self.ready, **options)

    def supervisor(self) -> Supervisor:
        return Supervisor(lambda name, text: self.said.append(f"{name}: {text}"))

    async def started_earlier(self) -> int:
        """Start the daemon as a supervisor did that died since; returns its pid."""
        daemon = Daemon(self.spec())
        self.earlier.append(daemon)
        await asyncio.to_thread(daemon.start)
        return await self.answering_other_than(None)

    async def ready(self) -> bool:
        return await asyncio.to_thread(self.answering) is not None

    def answering(self) -> int | None:
        """Pid of what answers on the port."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}", timeout=1) as response:
                pid = int(response.read())
        except OSError:
            return None
        self.pids.add(pid)
        return pid

    async def answering_other_than(self, pid: int | None, within: float = 10) -> int:
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            found = await asyncio.to_thread(self.answering)
            if found is not None and found != pid:
                return found
            await asyncio.sleep(0.02)
        raise AssertionError(f"nothing new answers; said: {self.said}")

    def record(self) -> dict[str, object]:
        return json.loads((self.folder / "thing.json").read_text())


@pytest.fixture
def rig(tmp_path):
    made = Rig(tmp_path)
    yield made
    left = [pid for pid in made.pids if psutil.pid_exists(pid) and _runs(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    for daemon in made.earlier:
        assert not daemon.alive()  # and reaped
    assert left == [], "the supervisor left processes behind"


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_starts_keeps_and_ends(rig):
    supervisor = rig.supervisor()
    await supervisor.bring_up(rig.member())
    first = rig.answering()
    assert rig.record()["pid"] == first
    assert os.getsid(first) == first, "a terminal's Ctrl-C must not reach it"
    os.kill(first, signal.SIGKILL)
    second = await rig.answering_other_than(first)
    await supervisor.end(("thing",))
    assert rig.answering() is None
    assert not (rig.folder / "thing.json").exists()
    assert any("was ended by SIGKILL" in text for text in rig.said)
    assert second not in (None, first)


async def test_secrets_are_in_the_environment_only(rig):
    supervisor = rig.supervisor()
    await supervisor.bring_up(rig.member())
    process = psutil.Process(rig.answering())
    assert process.environ()["THING_SECRET"] == "hush"
    await supervisor.end(("thing",))
    assert not any("hush" in path.read_text() for path in rig.folder.iterdir())
    assert "hush" not in repr(rig.spec().argv)


async def test_adopts_what_still_runs(rig):
    first = await rig.started_earlier()
    supervisor = rig.supervisor()
    await supervisor.bring_up(rig.member())
    assert rig.answering() == first
    os.kill(first, signal.SIGKILL)
    assert await rig.answering_other_than(first)
    await supervisor.end(("thing",))


async def test_adopts_a_launch_whose_record_was_cut_short(rig):
    first = await rig.started_earlier()
    record = rig.record()
    (rig.folder / "thing.json").write_text(json.dumps({"launch": record["launch"]}))
    other = Daemon(rig.spec())
    assert other.adopt() == "other"  # its settings are not known, so it is replaced
    assert other.pid == first
    await other.stop(5)


def test_a_reused_pid_is_not_adopted(rig):
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        record = {"launch": "x", "pid": stranger.pid, "started": 12345.0, "fingerprint": "y"}
        (rig.folder / "thing.json").write_text(json.dumps(record))
        assert Daemon(rig.spec()).adopt() == "none"
    finally:
        stranger.communicate(b"\n")


@pytest.mark.parametrize("record", ["", "{", '{"pid": "no"}', '{"launch": ""}', "[]"])
def test_a_damaged_record_is_nothing_to_adopt(rig, record):
    (rig.folder / "thing.json").write_text(record)
    assert Daemon(rig.spec()).adopt() == "none"


async def test_other_settings_replace_the_process(rig):
    first = await rig.started_earlier()
    supervisor = rig.supervisor()
    await supervisor.bring_up(rig.member(environ={"MORE": "1"}))
    assert rig.answering() != first
    assert any("other settings" in text for text in rig.said)
    await supervisor.end(("thing",))


async def test_gives_up_with_the_end_of_the_log(rig):
    supervisor = rig.supervisor()
    with pytest.raises(SupervisorError, match=r"(?s)exit status 3.*no such luck") as caught:
        await supervisor.bring_up(rig.member("fails"))
    assert str(rig.folder / "thing.log") in str(caught.value)
    await supervisor.end(("thing",))
    assert not (rig.folder / "thing.json").exists()


async def test_gives_up_on_what_never_answers(rig, monkeypatch):
    monkeypatch.setattr(module, "READY_WITHIN", 0.5)
    supervisor = rig.supervisor()
    member = rig.member("deaf")
    with pytest.raises(SupervisorError, match="does not answer"):
        await supervisor.bring_up(member)
    pid = member.daemon.pid
    await supervisor.end(("thing",))
    assert not _runs(pid)


async def test_a_taken_port_is_named(rig):
    with socket.socket() as other:
        other.bind(("127.0.0.1", rig.port))
        other.listen()
        listener = Listener("127.0.0.1", rig.port, "choose another one")
        supervisor = rig.supervisor()
        with pytest.raises(
            SupervisorError, match=f"port {rig.port} .* thing .* choose another one"
        ):
            await supervisor.bring_up(rig.member(listeners=(listener,)))
        await supervisor.end(("thing",))


async def test_what_ignores_sigterm_is_killed(rig):
    supervisor = rig.supervisor()
    await supervisor.bring_up(rig.member("stubborn", grace=0.3))
    pid = rig.answering()
    await supervisor.end(("thing",))
    assert not _runs(pid)


async def test_says_when_it_answers_again(rig):
    again = asyncio.Event()

    async def restarted() -> None:
        again.set()

    supervisor = rig.supervisor()
    await supervisor.bring_up(rig.member(restarted=restarted))
    os.kill(rig.answering(), signal.SIGTERM)
    await asyncio.wait_for(again.wait(), 10)
    await supervisor.end(("thing",))


async def test_what_cannot_be_started_again_is_tried_ever_more_rarely(rig):
    member = rig.member()
    supervisor = rig.supervisor()
    await supervisor.bring_up(member)
    first = rig.answering()
    member.daemon.started_at -= module.STABLE_AFTER
    away = rig.folder.with_name("away")
    rig.folder.rename(away)  # neither the record nor the log can be written
    os.kill(first, signal.SIGKILL)
    async with asyncio.timeout(10):
        while not any("starting it again in 0.4 s" in text for text in rig.said):
            await asyncio.sleep(0.02)
    assert sum("cannot be started" in text for text in rig.said) == 2
    away.rename(rig.folder)
    assert await rig.answering_other_than(first)
    await supervisor.end(("thing",))


async def test_when_one_of_several_gives_up_nothing_starts_another_again(rig, monkeypatch):
    """What is ended because a neighbour failed must stay ended."""
    monkeypatch.setattr(module, "READY_WITHIN", 30.0)
    failing = DaemonSpec(
        name="other",
        argv=(sys.executable, str(PROGRAM), "fails", "0"),
        environ={"PATH": os.environ["PATH"]},
        secrets={},
        log=rig.folder / "other.log",
        record=rig.folder / "other.json",
        directory=rig.folder,
    )

    async def never() -> bool:
        return False

    deaf = rig.member("deaf")
    supervisor = rig.supervisor()
    before = asyncio.all_tasks()
    with pytest.raises(SupervisorError, match="no such luck"):
        await supervisor.bring_up(Member(Daemon(failing), ready=never), deaf)
    pid = deaf.daemon.pid
    await supervisor.end(("thing", "other"))
    assert not _runs(pid)
    assert asyncio.all_tasks() <= before


async def test_a_log_that_cannot_be_read_for_a_while_is_followed_again(rig, monkeypatch):
    monkeypatch.setattr(module, "FOLLOW_AGAIN", 0.02)
    supervisor = rig.supervisor()
    await supervisor.bring_up(rig.member())
    log = rig.folder / "thing.log"

    async def said(words: str) -> None:
        async with asyncio.timeout(10):
            while not any(words in text for text in rig.said):
                await asyncio.sleep(0.02)

    await said("answers pid=")
    log.unlink()
    log.mkdir()
    await said("cannot be followed now")
    log.rmdir()
    log.write_text("[W now] once more\n")
    await said("once more")
    assert sum("cannot be followed" in text for text in rig.said) == 1
    await supervisor.end(("thing",))


async def test_what_follows_a_restart_does_not_hold_up_the_next(rig):
    begun = asyncio.Event()

    async def restarted() -> None:
        begun.set()
        await asyncio.Event().wait()  # as where a hub does not answer

    supervisor = rig.supervisor()
    await supervisor.bring_up(rig.member(restarted=restarted))
    first = rig.answering()
    os.kill(first, signal.SIGKILL)
    second = await rig.answering_other_than(first)
    await asyncio.wait_for(begun.wait(), 10)
    os.kill(second, signal.SIGKILL)
    assert await rig.answering_other_than(second)
    await supervisor.end(("thing",))


async def test_key_lines_of_the_log_are_forwarded(rig):
    supervisor = rig.supervisor()
    await supervisor.bring_up(rig.member())
    async with asyncio.timeout(10):
        while not any("[W to day start] answers" in text for text in rig.said):
            await asyncio.sleep(0.02)
    await supervisor.end(("thing",))


def test_backoff_doubles_and_begins_anew_after_a_stable_run():
    backoff = Backoff()
    delays = [backoff.after(1.0) for _ in range(12)]
    assert delays[:4] == [0.0, 0.2, 0.4, 0.8]
    assert max(delays) == module.MAX_DELAY == delays[-1]
    assert backoff.after(module.STABLE_AFTER) == 0.0


def test_only_one_per_state_folder(tmp_path):
    lock = tmp_path / "up.lock"
    with (
        only_one(lock),
        pytest.raises(SupervisorError, match=f"process {os.getpid()}"),
        only_one(lock),
    ):
        pass
    with only_one(lock):
        pass
