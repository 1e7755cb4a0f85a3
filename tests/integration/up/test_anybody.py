"""``scripts/up`` on a clean checkout in an empty home folder, as somebody who is not root."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.harness.ports import free_port
from tests.integration.docker_engine import unavailable
from tests.integration.up.deployments import START_WITHIN, Output, alive

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]
ROOT = Path(__file__).resolve().parents[3]
INSTALLED_WITHIN = 600.0
"""Everything comes from pip and npm, without a cache; it takes one to three minutes."""
KEPT = re.compile(r"(?i)(pip_|npm_config_|node_extra|ssl_cert|https?_proxy|no_proxy|lang$)")


@pytest.fixture
def somebody() -> pwd.struct_passwd:
    """An account without rights."""
    if os.geteuid() != 0:
        unavailable("only root may become somebody else")
    return pwd.getpwnam("nobody")


@pytest.fixture
def place(somebody: pwd.struct_passwd) -> Iterator[Path]:
    """A folder of theirs with a clean checkout and an empty home folder."""
    folder = Path(tempfile.mkdtemp(prefix="perijove-anybody-"))
    checkout, home = folder / "checkout", folder / "home"
    home.mkdir()
    for name in tracked():
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, checkout / name)
    for path in (folder, *folder.rglob("*")):
        os.chown(path, somebody.pw_uid, somebody.pw_gid)
    yield folder
    shutil.rmtree(folder)


def tracked() -> list[str]:
    """Files of this checkout as a clone would have them, changes included."""
    command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z", "-co", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def processes_of(uid: int, folder: Path) -> list[str]:
    """Command lines of what the account still runs from ``folder``."""
    found = []
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
            if process.uids().real == uid and str(folder) in line and alive(process.pid):
                found.append(line)
        except psutil.Error:
            continue
    return found


def test_anybody_starts_everything_with_one_command(
    somebody: pwd.struct_passwd, place: Path
) -> None:
    environ = {name: value for name, value in os.environ.items() if KEPT.match(name)}
    environ |= {"HOME": str(place / "home"), "PATH": "/usr/local/bin:/usr/bin:/bin"}
    port = free_port()
    command = [str(place / "checkout/scripts/up"), "--engine", "process", "--port", str(port)]
    process = subprocess.Popen(
        command,
        cwd=place / "home",
        env=environ,
        user=somebody.pw_uid,
        group=somebody.pw_gid,
        extra_groups=[],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    output = Output(process)
    try:
        output.wait_for("ready: http", INSTALLED_WITHIN)
        output.wait_for("sessions can start", START_WITHIN)
        assert f"http://127.0.0.1:{port}" in output.output
        assert re.search(r"admin with the password \S{12,}", output.output)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert processes_of(somebody.pw_uid, place) == []
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.close()
    state = place / "home/.local/state/perijove"
    assert (state / "secrets.json").stat().st_mode & 0o077 == 0
