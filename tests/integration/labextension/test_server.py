"""The server half in a real Jupyter server, as the installed configuration loads it, with a real manager."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import labextension
from tests.harness.ports import free_port
from tests.harness.session_upstream import TOKEN, Upstream, upstream

pytestmark = pytest.mark.integration
JUPYTER_TOKEN = "jupyter-token"


@dataclass
class Server:
    """A running Jupyter server under ``/user/ada/``."""

    url: str
    log: Path

    def get(
        self, path: str, token: str | None = JUPYTER_TOKEN, method: str = "GET"
    ) -> tuple[int, Any]:
        """Status and JSON body."""
        headers = {} if token is None else {"Authorization": f"token {token}"}
        request = urllib.request.Request(self.url + path, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read() or b"null")


@pytest.fixture
def manager() -> Iterator[Upstream]:
    with upstream() as running:
        yield running


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Any]:
    processes: list[subprocess.Popen[bytes]] = []

    def start(environ: dict[str, str]) -> Server:
        port, log = free_port(), tmp_path / "server.log"
        config = Path(labextension.__file__).parent / "jupyter-config"
        folder = tmp_path / "config" / "jupyter_server_config.d"
        folder.mkdir(parents=True)
        for path in config.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        ours = {n: v for n, v in os.environ.items() if not n.startswith(("PERIJOVE_", "JUPYTER"))}
        ours |= {
            "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
            "JUPYTER_DATA_DIR": str(tmp_path / "data"),
            "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"),
            "JUPYTER_TOKEN": JUPYTER_TOKEN,
        }
        words = ["-m", "jupyter_server", "--no-browser", "--allow-root", f"--port={port}"]
        words += ["--ServerApp.base_url=/user/ada/", f"--ServerApp.root_dir={tmp_path}"]
        words += ["--ServerApp.allow_unauthenticated_access=False", "--ip=127.0.0.1"]
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, *words],
                env={**ours, **environ},
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        processes.append(process)
        server = Server(f"http://127.0.0.1:{port}/user/ada/", log)
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            try:
                if server.get("api/status")[0] == 200:
                    return server
            except OSError:
                time.sleep(0.05)

    yield start
    for process in processes:
        process.terminate()
        process.wait(20)


def test_the_browser_is_told_about_its_session(serve: Any, manager: Upstream) -> None:
    server = serve(manager.environ())
    status, body = server.get("perijove/session")
    assert status == 200
    assert body["problem"] is None
    assert body["session"]["name"] == "ada-lab"
    assert list(body["session"]["resources"]) == ["cpu", "mem", "cuda.device"]
    assert body["session"]["age"] >= 754
    assert len(manager.asked) == 1
    assert server.get("perijove/session")[0] == 200
    assert len(manager.asked) == 1, "the second question is answered from memory"

    # Who is not logged in learns nothing, and the manager is not bothered.
    for stranger in (None, "wrong", TOKEN):
        assert server.get("perijove/session", stranger)[0] == 403
    assert len(manager.asked) == 1

    log = server.log.read_text()
    assert "labextension | extension was successfully loaded" in log
    # The server names each handler without authentication; those of other extensions are there.
    assert "JupyterServerAuthWarning" in log
    assert "SessionHandler" not in log
    assert TOKEN not in log
    assert TOKEN not in json.dumps(body)


def test_a_manager_that_is_away_is_said_to_be(serve: Any, manager: Upstream) -> None:
    manager.status, manager.body = 503, b'{"title": "The database is away"}'
    status, body = serve(manager.environ()).get("perijove/session")
    assert status == 502
    assert body == {"message": "the manager cannot tell (HTTP 503): The database is away"}


def test_outside_of_a_session_it_says_so(serve: Any) -> None:
    status, body = serve({}).get("perijove/session")
    assert status == 200
    assert body == {"session": None, "problem": "this does not run in a session of Perijove"}


def test_the_browser_extends_its_session(serve: Any, manager: Upstream) -> None:
    server = serve(manager.environ())
    assert server.get("perijove/session")[0] == 200
    assert server.get("perijove/extend", None, "POST")[0] == 403
    told = manager.body
    manager.body = b'{"ends_in": 3600.0}'
    assert server.get("perijove/extend", method="POST") == (200, {"ends_in": 3600.0})
    manager.status, manager.body = 412, b'{"msg": "your policy allows 3"}'
    refused = {"message": "your policy allows 3"}
    assert server.get("perijove/extend", method="POST") == (409, refused)
    manager.status, manager.body = 200, told
    assert server.get("perijove/session")[0] == 200
    asked = [path.rpartition("/")[2] for path, _ in manager.asked]
    assert asked[1:3] == ["extend", "extend"]
    assert len(asked) == 4, "what was known before it was extended is old"
