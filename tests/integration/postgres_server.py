"""A private PostgreSQL server for tests: its own data folder, port and life."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from pathlib import Path

from tests.harness.ports import free_port

USER = "perijove"
BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name)


def find_binaries() -> Path | None:
    """The folder with ``initdb`` and ``postgres``; None where PostgreSQL is not installed."""
    for folder in reversed(BINARIES):
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    found = shutil.which("initdb")
    return None if found is None else Path(found).parent


class PostgresServer:
    """Starts at once; PostgreSQL refuses to run as root, so then it runs as the user ``postgres``."""

    def __init__(self, binaries: Path) -> None:
        self.binaries = binaries
        self.port = free_port()
        self.account = pwd.getpwnam("postgres").pw_name if os.geteuid() == 0 else None
        self.folder = Path(tempfile.mkdtemp(prefix="perijove-pg-"))
        self.folder.chmod(0o755)
        self.data = self.folder / "data"
        self.data.mkdir(mode=0o700)
        if self.account is not None:
            for path in (self.folder, self.data):
                shutil.chown(path, self.account, self.account)
        self._run("initdb", "-D", self.data, "-U", USER, "--auth=trust", "-E", "UTF8", "--no-sync")
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def _run(self, program: str, *arguments: object) -> str:
        done = subprocess.run(
            [str(self.binaries / program), *map(str, arguments)],
            user=self.account,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{program}: {done.stdout}{done.stderr}"
        return done.stdout

    def start(self) -> None:
        """Start the server and wait until it answers."""
        self.process = subprocess.Popen(
            [
                self.binaries / "postgres",
                *("-D", self.data, "-p", str(self.port), "-k", self.folder),
                *("-c", "listen_addresses=127.0.0.1", "-c", "max_connections=60"),
            ],
            user=self.account,
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        ready = [str(self.binaries / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        while subprocess.run(ready, check=False).returncode != 0:
            assert self.process.poll() is None, "the server ended while it started"
            assert time.monotonic() < deadline, "the server does not answer"

    def kill(self) -> None:
        """End the server as a crash would: no checkpoint, no farewell to its clients."""
        assert self.process is not None
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(30)

    def stop(self) -> None:
        """End the server and remove its data."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(30)
        shutil.rmtree(self.folder)

    def new_database(self) -> str:
        """The URL of an empty database of its own."""
        name = f"t{uuid.uuid4().hex}"
        self.sql(f'CREATE DATABASE "{name}"')
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{name}"

    def sql(self, statement: str, database: str = "postgres") -> str:
        """Run one statement with ``psql``; the rows as text, fields separated by ``|``."""
        where = ("-h", "127.0.0.1", "-p", self.port, "-U", USER, "-d", database)
        return self._run("psql", "-X", "-q", "-A", "-t", *where, "-c", statement)
