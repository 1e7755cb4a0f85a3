"""``backend.ai ssh``, ``scp``, ``session ls``, ``upload``, ``download``: the published client on both engines."""

from __future__ import annotations

import getpass
import io
import os
import signal
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import docker
import psutil
import pytest

from kernels.build import RECIPES
from tests.e2e.platform import Platform
from tests.harness.ports import free_port
from tests.integration.compat.conftest import account
from tests.integration.docker_engine import ensure_session_image, running_engine, unavailable

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]
IMAGE = "perijove/test-client:latest"
SESSION = "files-and-ssh"


def image_of_this_checkout() -> str:
    """The image of sessions with this checkout's way to start an SSH server."""
    files = {
        "Dockerfile": f"FROM {ensure_session_image()}\nCOPY perijove-sshd /opt/perijove/bin/\n",
        "perijove-sshd": (RECIPES / "jupyterlab/perijove-sshd").read_text(),
    }
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text.encode()), 0o755
            archive.addfile(entry, io.BytesIO(text.encode()))
    context.seek(0)
    engine = docker.from_env(timeout=120)
    try:
        engine.images.build(fileobj=context, custom_context=True, tag=IMAGE, rm=True)
    finally:
        engine.close()
    return IMAGE


class Client:
    """The command ``backend.ai`` in a folder of its own, and one session that it made."""

    def __init__(self, python: Path, platform: Platform, engine: str, image: str) -> None:
        self.python, self.platform, self.engine = python, platform, engine
        self.environ = account(platform)
        self.folder = platform.state.parent / "here"
        self.folder.mkdir()
        (platform.state.parent / ".ssh").mkdir()
        resources = ("-r", "cpu=0.5", "-r", "mem=512m")
        made = self("session", "create", "--name", SESSION, *resources, image)
        assert made.returncode == 0, made.stdout + platform.logs()

    def command(self, *words: str) -> list[str]:
        return [str(self.python), "-m", "ai.backend.cli", *words]

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        client = subprocess.Popen(
            self.command(*words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.folder,
            env=self.environ,
        )
        looks = 0
        for _ in range(120):
            with suppress(subprocess.TimeoutExpired):
                said, _ = client.communicate(timeout=1)
                return subprocess.CompletedProcess(client.args, client.returncode, said)
            parts = psutil.Process(client.pid).children()
            looks = looks + 1 if len(parts) == 1 and "app" in parts[0].cmdline() else 0
            if looks % 15 == 14:
                self.interrupt_again(parts[0])
        client.kill()
        raise AssertionError(
            f"{words} did not end: {client.communicate()[0]}{self.platform.logs()}"
        )

    @staticmethod
    def interrupt_again(tunnel: psutil.Process) -> None:
        """Wake a tunnel that the client interrupted and waits for.

        Its event loop is told of no signal, so one that comes just before it falls asleep is seen when something
        else wakes it: somebody at a terminal presses Ctrl-C again.
        """
        with suppress(psutil.NoSuchProcess):
            tunnel.send_signal(signal.SIGINT)

    @staticmethod
    def at_a_port() -> tuple[str, str, str]:
        """A port for the client's tunnel, told before its session: nobody has used it yet."""
        return "-p", str(free_port()), SESSION

    def succeeds(self, *words: str) -> str:
        done = self(*words)
        assert done.returncode == 0, done.stdout + self.platform.logs()
        return done.stdout


@pytest.fixture(scope="module", params=["docker", "process"])
def backend(
    request: pytest.FixtureRequest, client: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Client]:
    engine = str(request.param)
    with running_engine():
        image = image_of_this_checkout() if engine == "docker" else "process"
        platform = Platform(tmp_path_factory.mktemp(engine) / "state", engine)
        platform.start()
        try:
            yield Client(client, platform, engine, image)
        finally:
            platform.end()


def test_files_go_there_and_back(backend: Client) -> None:
    (backend.folder / "deep/er").mkdir(parents=True)
    (backend.folder / "deep/er/data.bin").write_bytes(bytes(range(256)) * 3000)
    (backend.folder / "übung mit leerzeichen.txt").write_text("Grüße\n")
    backend.succeeds("session", "upload", SESSION, "deep/er/data.bin", "übung mit leerzeichen.txt")
    listed = backend.succeeds("session", "ls", SESSION)
    assert "übung mit leerzeichen.txt" in listed
    assert "drwx" in next(line for line in listed.splitlines() if line.startswith("deep"))
    assert "750.0 KiB" in backend.succeeds("session", "ls", SESSION, "deep/er")
    words = ("deep", "/home/work/übung mit leerzeichen.txt")
    backend.succeeds("session", "download", SESSION, *words, "--dest", "back")
    back = backend.folder / "back"
    assert (back / "deep/er/data.bin").read_bytes() == bytes(range(256)) * 3000
    assert (back / "übung mit leerzeichen.txt").read_text() == "Grüße\n"


def test_what_cannot_be_had_says_so(backend: Client) -> None:
    for words in (
        ("ls", SESSION, "nowhere"),
        ("ls", SESSION, "/etc"),
        ("ls", SESSION, "../.."),
        ("download", SESSION, "/etc/passwd"),
        ("download", SESSION, "nowhere"),
        ("download", SESSION, "deep", "../../etc/passwd"),
    ):
        done = backend("session", *words)
        assert done.returncode == 1, words
        assert "no such file" in done.stdout or "not in the home folder" in done.stdout, done.stdout


def test_a_key_is_made_for_the_session(backend: Client) -> None:
    backend.succeeds("session", "download", SESSION, "id_container")
    key = backend.folder / "id_container"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    first = key.read_text()
    assert "OPENSSH PRIVATE KEY" in first
    backend.succeeds("session", "download", SESSION, "id_container", "--dest", "again")
    assert (backend.folder / "again/id_container").read_text() == first
    assert "id_container" not in backend.succeeds("session", "ls", SESSION), (
        "it outlives no session"
    )


def test_ssh_and_scp(backend: Client) -> None:
    """The client logs in as ``work``, whom the containers have and a process engine's host has not."""
    if backend.engine == "process" and getpass.getuser() != "work":
        with_the_own_name(backend)
        return
    said = backend.succeeds("ssh", *backend.at_a_port(), "--", "echo", "hi", "$USER")
    assert said.splitlines()[-1] == "hi work"
    failed = backend("ssh", *backend.at_a_port(), "--", "exit", "7")
    assert failed.returncode == 7
    (backend.folder / "sent.txt").write_text("sent\n")
    backend.succeeds("scp", *backend.at_a_port(), "sent.txt", "work@localhost:kept.txt")
    backend.succeeds("scp", *backend.at_a_port(), "work@localhost:kept.txt", "back.txt")
    assert (backend.folder / "back.txt").read_text() == "sent\n"
    (backend.folder / "tree/leaves").mkdir(parents=True)
    (backend.folder / "tree/leaves/one").write_bytes(bytes(2048))
    backend.succeeds("scp", "-r", *backend.at_a_port(), "tree", "work@localhost:copied")
    assert "2.0 KiB" in backend.succeeds("session", "ls", SESSION, "copied/leaves")
    assert list((backend.platform.state.parent / ".ssh").glob("id_*")) == []


def with_the_own_name(backend: Client) -> None:
    """The same tunnel and key, for the user that sessions of this engine have."""
    if not Path("/usr/sbin/sshd").exists():
        unavailable("sshd is not installed (apt-get install openssh-server)")
    backend.succeeds("session", "download", SESSION, "id_container")
    port = free_port()
    app = subprocess.Popen(
        backend.command("app", SESSION, "sshd", "-b", f"127.0.0.1:{port}"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=backend.folder,
        env=backend.environ,
    )
    try:
        assert app.stdout is not None
        while f"127.0.0.1:{port}" not in (line := app.stdout.readline()):
            assert line, "the tunnel ended"
        options = ("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null")
        where = ("-i", "id_container", "-p", str(port), f"{getpass.getuser()}@127.0.0.1")
        done = subprocess.run(
            ["ssh", *options, "-o", "BatchMode=yes", *where, "pwd"],
            capture_output=True,
            text=True,
            cwd=backend.folder,
            env={**os.environ, "HOME": str(backend.folder)},
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    finally:
        app.terminate()
        app.communicate(timeout=30)
