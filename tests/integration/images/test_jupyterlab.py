"""The image of ordinary sessions, held as tightly as a session is."""

from __future__ import annotations

import inspect
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import docker
import pytest

from spawner.options import DEFAULT_IMAGE as IMAGE
from tests.integration.docker_engine import ensure_session_image, running_engine
from tests.integration.perijove import kernels

pytestmark = [
    pytest.mark.integration,
    pytest.mark.docker,
    pytest.mark.timeout(1200),  # the first test may have to build its image
]
LIMITS: dict[str, Any] = {
    "read_only": True,
    "tmpfs": {"/tmp": "mode=1777"},
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
    "mem_limit": "1g",
    "nano_cpus": 10**9,
    "pids_limit": 512,
}


@pytest.fixture(scope="module")
def client() -> Iterator[docker.DockerClient]:
    with running_engine():
        ensure_session_image()
        made = docker.from_env(timeout=120)
        yield made
        made.close()


@pytest.fixture
def home(client: docker.DockerClient) -> Iterator[str]:
    volume = client.volumes.create()
    yield str(volume.name)
    volume.remove(force=True)


def ask(url: str, token: str | None = None) -> tuple[int, Any]:
    headers = {} if token is None else {"Authorization": f"token {token}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=5) as got:
            return got.status, json.loads(got.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, None


def run(client: docker.DockerClient, words: list[str], **options: Any) -> str:
    """Output of a command in a container that is held like a session."""
    out = client.containers.run(IMAGE, words, entrypoint="", remove=True, **{**LIMITS, **options})
    return str(out.decode())


def test_it_says_what_it_is(client: docker.DockerClient) -> None:
    image = client.images.get(IMAGE)
    labels = image.labels
    assert labels["ai.perijove.image"] == "jupyterlab"
    assert labels["ai.perijove.label"]
    assert len(labels["ai.perijove.recipe"]) == 12
    assert json.loads(labels["ai.perijove.command"])[-2:] == ["{bind_port}", "{base_path}"]
    assert labels["ai.backend.service-ports"] == "jupyterlab:http:8888"
    assert {"ai.backend.resource.min.cpu", "ai.backend.resource.min.mem"} <= set(labels)
    assert image.attrs["Config"]["User"] == "1000:1000"
    settings = [name for name in image.attrs["Config"]["Env"] if name.startswith("PIP_")]
    assert settings == ["PIP_USER=1"], "nothing of where the packages came from"


@pytest.mark.parametrize("user", ["1000:1000", "54321:54321"])
def test_everything_of_ours_is_in_it_for_any_user(client: docker.DockerClient, user: str) -> None:
    listed = run(
        client,
        ["sh", "-c", "jupyter labextension list 2>&1; jupyter server extension list 2>&1"],
        user=user,
        environment={"HOME": "/tmp"},
    )
    assert "perijove-lab" in listed
    assert "Validating labextension" in listed
    said = run(client, ["sh", "-c", "python -m perijove 2>&1 || true"], user=user)
    assert "does not run in a session" in said


def test_nothing_of_the_server_side_is_imported_by_what_runs_in_it(
    client: docker.DockerClient,
) -> None:
    program = (
        "import sys, perijove, labextension.handlers; perijove.SessionInfo;"
        "print([m for m in ('hub', 'spawner', 'store', 'vfolder', 'authenticator') if m in sys.modules])"
    )
    assert run(client, ["python", "-c", program]).strip() == "[]"


MAKE_WHEELS = """
import zipfile
for name in ("planet", "tornado"):
    stem = f"/tmp/{name}-99.0"
    with zipfile.ZipFile(f"{stem}-py3-none-any.whl", "w") as wheel:
        info = f"{name}-99.0.dist-info"
        wheel.writestr(f"{name}/__init__.py", "mine = True")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\\nName: {name}\\nVersion: 99.0\\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{info}/RECORD", "")
"""
INSTALL = "pip install -q --no-index --no-deps /tmp/planet-99.0-py3-none-any.whl"
CLASH = "pip install -q --no-index --no-deps --ignore-installed /tmp/tornado-99.0-py3-none-any.whl"


def test_people_install_into_their_home_and_cannot_break_their_server(
    client: docker.DockerClient, home: str
) -> None:
    mounted = {"volumes": {home: {"bind": "/home/work", "mode": "rw"}}}
    made = run(client, ["sh", "-ec", f"python -c '{MAKE_WHEELS}'; {INSTALL}; {CLASH}"], **mounted)
    assert "rror" not in made
    program = "import planet, tornado; print(planet.__file__, tornado.__file__)"
    mine, theirs = run(client, ["python", "-c", program], **mounted).split()
    assert mine.startswith("/home/work/.local/")
    assert theirs.startswith("/opt/perijove/")


def test_programs_of_a_notebook_ask_for_input(client: docker.DockerClient, home: str) -> None:
    source = inspect.getsource(kernels)
    program = (
        f"{source}\nwith kernel() as notebook: print(notebook.run('!read x; echo $x', ['typed']))"
    )
    mounted = {"volumes": {home: {"bind": "/home/work", "mode": "rw"}}}
    assert "('typed\\r\\n', [False])" in run(client, ["python", "-c", program], **mounted)


def test_its_own_command_serves_behind_a_token(client: docker.DockerClient, home: str) -> None:
    command = json.loads(client.images.get(IMAGE).labels["ai.perijove.command"])
    words = [
        word.format(bind_host="0.0.0.0", bind_port="8888", base_path="/a/path/") for word in command
    ]
    container = client.containers.run(
        IMAGE,
        words,
        detach=True,
        init=True,
        environment={"JUPYTER_TOKEN": "a-token"},
        volumes={home: {"bind": "/home/work", "mode": "rw"}},
        **LIMITS,
    )
    try:
        container.reload()
        address = container.attrs["NetworkSettings"]["IPAddress"]
        base = f"http://{address}:8888/a/path"
        deadline = time.monotonic() + 60
        while True:
            assert time.monotonic() < deadline, container.logs().decode()
            try:
                if ask(f"{base}/api")[0] == 200:
                    break
            except OSError:
                time.sleep(0.05)
        assert ask(f"{base}/api/status")[0] == 403
        assert ask(f"{base}/api/status", "a-token")[0] == 200
        assert ask(f"{base}/perijove/session")[0] == 403
        status, told = ask(f"{base}/perijove/session", "a-token")
        assert status == 200
        assert told["session"] is None
    finally:
        container.remove(force=True)
