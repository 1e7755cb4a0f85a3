"""``perijove up`` with the process engine: first start, kills, adoption, ends. Real processes throughout."""

import http.cookiejar
import os
import re
import signal
import socket
import subprocess
import urllib.parse
import urllib.request

import pytest

from tests.harness.ports import free_port
from tests.integration.up.deployments import NAMES, Up, alive, eventually, running_up

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]


def recovers_within() -> float:
    """Ten seconds, and as many times more as the machine has work for more processors than it has."""
    return 10.0 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


@pytest.fixture(scope="module")
def up(tmp_path_factory):
    """A deployment that tests wound but do not end."""
    with running_up(tmp_path_factory.mktemp("up") / "state", free_port()) as made:
        yield made


def log_in(url: str, username: str, password: str) -> str:
    """Log in through the form; where one ends up."""
    jar = http.cookiejar.CookieJar()
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))
    opener.open(f"{url}/hub/login", timeout=10).close()
    xsrf = next(cookie.value for cookie in jar if cookie.name == "_xsrf")
    form = {"username": username, "password": password, "_xsrf": xsrf}
    body = urllib.parse.urlencode(form).encode()
    with opener.open(f"{url}/hub/login?next=%2Fhub%2Fhome", body, timeout=10) as response:
        return str(response.url)


def test_the_first_start_shows_the_password_once_and_ctrl_c_leaves_nothing(tmp_path):
    port = free_port()
    with running_up(tmp_path / "state", port) as first:
        (password,) = re.findall(r"password (\S{12,})", first.output)
        assert first.output.count(password) == 1
        assert f"http://127.0.0.1:{port}/" in first.output
        assert log_in(f"http://127.0.0.1:{port}", "admin", password).endswith("/hub/home")
        pids = first.pids()
        assert first.end(signal.SIGINT) == 0
        assert [pid for pid in pids.values() if alive(pid)] == []
        assert list((tmp_path / "state" / "run").glob("*.json")) == []
        secrets = (tmp_path / "state" / "secrets.json").read_text()
        for path in (tmp_path / "state").rglob("*"):
            if path.is_file():
                assert password.encode() not in path.read_bytes(), path
            if path.is_file() and path.parent.name == "logs":
                text = path.read_text()
                assert not [
                    value for value in re.findall(r"[0-9a-f]{64}", secrets) if value in text
                ]
    with running_up(tmp_path / "state", port) as second:
        assert "password" not in second.output
        assert second.end(signal.SIGTERM) == 0
        assert "sessions go on" in second.output


@pytest.mark.parametrize("name", NAMES)
def test_what_is_killed_comes_back(up, name):
    before, told = up.pids(), up.heard()
    os.kill(before[name], signal.SIGKILL)
    eventually(lambda: up.pid(name) not in (before[name], None) and up.whole(), recovers_within())
    up.wait_for(f"{name:>7} | answers again", recovers_within(), since=told)
    others = {other: pid for other, pid in up.pids().items() if other != name}
    assert others == {other: pid for other, pid in before.items() if other != name}


def test_all_four_killed_come_back(up):
    before, told = up.pids(), up.heard()
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)
    eventually(
        lambda: not set(up.pids().values()) & set(before.values()) and up.whole(), recovers_within()
    )
    for name in NAMES:
        up.wait_for(f"{name:>7} | answers again", recovers_within(), since=told)


def test_secrets_are_in_no_command_line(up):
    secrets = re.findall(r"[0-9a-f]{64}", (up.state / "secrets.json").read_text())
    for name in NAMES:
        with open(f"/proc/{up.pid(name)}/cmdline") as line:
            words = line.read()
        assert not [secret for secret in secrets if secret in words]


def test_a_second_up_refuses(up):
    other = Up(up.state, up.port)
    try:
        assert other.process.wait(30) == 1
        assert f"already runs on this state folder (process {up.process.pid})" in other.output
        assert other.output.count("\n") == 0
    finally:
        other._reader.join(5)
        other.process.stdout.close()
    assert up.whole()


def test_up_itself_killed_adopts_what_still_runs(tmp_path):
    state, port = tmp_path / "state", free_port()
    with running_up(state, port) as first:
        before = first.pids()
        first.process.kill()
        first.process.wait()
        assert first.whole()
        os.kill(before["agent"], signal.SIGKILL)  # nobody is there to start it again
        with running_up(state, port) as second:
            assert second.output.count("adopted") == 3
            after = second.pids()
            assert {n: after[n] for n in NAMES[:3]} == {n: before[n] for n in NAMES[:3]}
            os.kill(after["hub"], signal.SIGKILL)
            eventually(
                lambda: second.pid("hub") != after["hub"] and second.whole(), recovers_within()
            )
            assert second.end(signal.SIGINT) == 0
            assert not [pid for pid in {**before, **after}.values() if alive(pid)]


def test_ctrl_c_while_starting(tmp_path):
    up = Up(tmp_path / "state", free_port())
    try:
        eventually(lambda: up.pid("proxy") is not None, 60)
        assert up.end(signal.SIGINT) == 0
        assert "password" in up.output  # shown now, because it would be lost
        assert list((tmp_path / "state" / "run").glob("*.json")) == []
    finally:
        up.close()


def test_a_taken_port_is_a_sentence(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        up = Up(tmp_path / "state", port)
        try:
            assert up.process.wait(60) == 1
            up._reader.join(5)
            assert f"port {port} on 127.0.0.1" in up.output
            assert "--port" in up.output
            assert "Traceback" not in up.output
            assert list((tmp_path / "state" / "run").glob("*.json")) == []
        finally:
            up.close()


def test_processes_get_no_foreign_settings(up):
    """What an operator's shell has of another Perijove does not leak into this one."""
    environ = subprocess.run(
        ["cat", f"/proc/{up.pid('manager')}/environ"], capture_output=True, text=True, check=True
    ).stdout
    names = {entry.split("=")[0] for entry in environ.split("\0")}
    assert "CONFIGPROXY_AUTH_TOKEN" not in names
    assert "JPY_COOKIE_SECRET" not in names
