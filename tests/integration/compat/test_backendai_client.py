"""Backend.AI's published client works unchanged, through the proxy, against a platform of real processes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.platform import Platform
from tests.integration.compat.conftest import account

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]
PROGRAM = Path(__file__).with_name("sdk_program.py")


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    made = Platform(tmp_path_factory.mktemp("compat") / "state", "process")
    made.start()
    try:
        yield made
    finally:
        made.end()


@pytest.fixture(scope="module")
def told(client: Path, platform: Platform) -> dict[str, Any]:
    """What the client's program was answered."""
    environ = {**account(platform), "PERIJOVE_TEST_IMAGE": "process"}
    done = subprocess.run(
        [str(client), str(PROGRAM)],
        capture_output=True,
        text=True,
        env=environ,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:] + platform.logs()
    # The client itself prints a line of its own before ours.
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_what_there_is(told: dict[str, Any]) -> None:
    asked = told["ask"]
    assert asked["presets"] == ["small", "medium", "large"]
    assert asked["fits"]["small"] is True
    assert asked["groups"] == ["default"]


def test_the_life_of_a_session(told: dict[str, Any]) -> None:
    lived = told["live"]
    assert (lived["created"], lived["status"]) == (True, "RUNNING")
    assert lived["reused"] == [False, True]
    assert lived["info"] == ["RUNNING", "0.5"]
    assert lived["logs"] is True
    assert {"PENDING", "RUNNING"} <= set(lived["history"])
    assert "jupyterlab" in lived["apps"]
    assert lived["renamed"] == "RUNNING"
    assert lived["destroyed"]["stats"]["status"] == "terminated"


def test_refusals(told: dict[str, Any]) -> None:
    lived = told["live"]
    assert lived["taken"] == [400, "session-already-exists"]
    assert lived["missing"] == [404, "object-not-found"]
    assert lived["too_little"] == [400, "invalid-api-params"]
    assert told["wrong_key"] == [401, "auth-failed"]


def test_folders(told: dict[str, Any]) -> None:
    kept = told["keep"]
    assert kept == {
        "made": "sdk-data",
        "hosts": "local:local",
        "listed": True,
        "taken": [400, "vfolder-already-exists"],
        "gone": True,
    }


def test_a_terminal_and_a_tunnel_to_an_app(told: dict[str, Any]) -> None:
    shell_answered, status_line = told["apps"]
    assert shell_answered
    assert status_line.startswith("HTTP/1.")
    assert status_line.endswith("200 OK")


def test_events(told: dict[str, Any]) -> None:
    assert told["watch"][-1] == "session_terminated"


def test_dotfiles(told: dict[str, Any]) -> None:
    brought = told["bring"]
    for name in ("user", "group", "domain"):
        one, listed, gone = brought[name]
        assert one == {"path": f".{name}", "perm": "600", "data": "two"}
        assert listed == [{"path": f".{name}", "permission": "600", "data": "two"}]
        assert gone == {"success": True}
    assert brought["twice"] == [400, "generic-bad-request"]
    assert brought["missing"] == [404, "object-not-found"]
    assert brought["reserved"] == [400, "invalid-api-params"]
    assert brought["mine"] == []
    said = told["commands"]
    assert "Dotfile .cli created and ready" in said["create"]
    assert "755" in said["list"]
    assert "set -o vi" in said["get"]
    assert "Dotfile .cli deleted" in said["delete"]


def test_a_key_for_ssh_and_a_bootstrap_script(told: dict[str, Any]) -> None:
    made, shown, brought, kept, script = told["keys"]
    assert "PRIVATE KEY" in made["ssh_private_key"]
    assert shown == brought == {"ssh_public_key": made["ssh_public_key"]}
    assert (kept, script) == ({}, "echo begun")


def test_code_that_asks(told: dict[str, Any]) -> None:
    ran = told["program"]
    assert "".join(text for kind, text in ran["console"]) == "who? hello ada\nand bob\r\n"
    assert ran["code"] == 0
    assert "print" in ran["completions"]
    assert ran["unknown"] == [400, "generic-bad-request"]
    assert "more? 42\n" in told["commands"]["run"]
