"""Images from a real registry that wants a password: pulled once for all, checked, made, removed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import time
import urllib.request
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import docker
import pytest

from spawner.agent.engines.base import BoundMount, EngineError, Identity, Limits
from spawner.agent.engines.docker import DockerEngine, pulls
from spawner.agent.protocol import ImagePull, KernelSpec, Share
from tests.harness.ports import free_port
from tests.integration.docker_engine import (
    TEST_IMAGE,
    ensure_test_image,
    running_engine,
    unavailable,
)
from tests.integration.engines.conformance import until

pytestmark = [pytest.mark.integration, pytest.mark.docker]
PASSWORD = "a password of the registry"
CONFIG = """
version: 0.1
storage: {{filesystem: {{rootdirectory: {folder}/data}}}}
http: {{addr: "127.0.0.1:{port}"}}
auth: {{htpasswd: {{realm: test, path: {folder}/htpasswd}}}}
"""


class Registry:
    """A registry that may be stopped and started."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.folder = folder
        self.host = f"127.0.0.1:{self.port}"
        self.image = f"{self.host}/team/python:1"
        (folder / "config.yml").write_text(CONFIG.format(folder=folder, port=self.port))
        made = ["htpasswd", "-Bbn", "puller", PASSWORD]
        lines = subprocess.run(made, capture_output=True, text=True, check=True).stdout
        (folder / "htpasswd").write_text(lines)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                ["docker-registry", "serve", str(self.folder / "config.yml")],
                stdout=log,
                stderr=log,
                env={**os.environ, "OTEL_TRACES_EXPORTER": "none"},
            )
        deadline = time.monotonic() + 30
        while True:
            try:
                urllib.request.urlopen(f"http://{self.host}/v2/")
            except urllib.error.HTTPError:
                return
            except OSError:
                assert time.monotonic() < deadline, (self.folder / "log").read_text()
                time.sleep(0.05)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(10)
            self.process = None


@pytest.fixture(scope="module")
def docker_image() -> Iterator[str]:
    with running_engine():
        yield ensure_test_image()


@pytest.fixture(scope="module")
def registry(docker_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    for program in ("docker-registry", "htpasswd"):
        if shutil.which(program) is None:
            unavailable(f"{program} is not installed (docker-registry, apache2-utils)")
    registry = Registry(tmp_path_factory.mktemp("registry"))
    registry.start()
    client = docker.from_env(timeout=120)
    client.api.tag(docker_image, registry.image.rpartition(":")[0], "1")
    login = {"username": "puller", "password": PASSWORD}
    for line in client.api.push(registry.image, stream=True, decode=True, auth_config=login):
        assert "error" not in line, line
    try:
        yield registry
    finally:
        with contextlib.suppress(docker.errors.ImageNotFound):
            client.api.remove_image(registry.image)
        client.close()
        registry.stop()


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[DockerEngine]:
    engine = DockerEngine()
    await engine.open({"state_dir": tmp_path / "agent"})
    yield engine
    for state in await engine.list():
        await engine.stop(state.identity, 0)
        await engine.remove(state.identity)
    await engine.close()


@pytest.fixture
async def absent(registry: Registry, engine: DockerEngine) -> str:
    """The name of an image that is in the registry and not here."""
    await engine.remove_image(registry.image)
    return registry.image


RIGHT = ImagePull("puller", PASSWORD)


async def test_all_who_want_an_image_follow_one_pull(
    registry: Registry, engine: DockerEngine, absent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    stream = pulls._stream

    def counted(client: docker.DockerClient, name: str, how: ImagePull) -> object:
        begun.append(name)
        return stream(client, name, how)

    monkeypatch.setattr(pulls, "_stream", counted)

    async def told() -> list[str]:
        return [sentence async for sentence in engine.ensure_image(absent, RIGHT)]

    async def leaves() -> str:
        async for sentence in engine.ensure_image(absent, RIGHT):
            return sentence
        raise AssertionError("nothing was told")

    left, sentences, others = await asyncio.gather(leaves(), told(), told())
    assert left == sentences[0]
    assert begun == [absent]
    assert sentences[0] == others[0] == f"pulling the image {absent}"
    assert await told() == []


async def test_a_wrong_password_is_said_at_once(engine: DockerEngine, absent: str) -> None:
    for how in (ImagePull("puller", "wrong"), ImagePull()):
        with pytest.raises(EngineError, match="cannot be pulled") as caught:
            _ = [sentence async for sentence in engine.ensure_image(absent, how)]
        assert not caught.value.retriable
        assert "wrong" not in str(caught.value)


async def test_a_pull_goes_on_when_the_registry_is_back(
    registry: Registry, engine: DockerEngine, absent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulls, "PAUSE", 0.2)
    registry.stop()
    sentences: list[str] = []
    try:
        async for sentence in engine.ensure_image(absent, RIGHT):
            sentences.append(sentence)
            if "broke off" in sentence and registry.process is None:
                await asyncio.to_thread(registry.start)
    finally:
        if registry.process is None:
            registry.start()
    assert any("broke off" in sentence for sentence in sentences)
    client = docker.from_env()
    assert client.images.get(absent).tags
    client.close()


async def test_only_the_approved_digest_is_taken(
    registry: Registry, engine: DockerEngine, absent: str, docker_image: str
) -> None:
    """Also when the tag is another image's in the registry by now."""
    _ = [sentence async for sentence in engine.ensure_image(absent, RIGHT)]
    (report,) = [each for each in await engine.images() if each.name in (absent, TEST_IMAGE)]
    approved = ImagePull("puller", PASSWORD, report.digest)
    assert [sentence async for sentence in engine.ensure_image(absent, approved)] == []
    client = docker.from_env(timeout=120)
    try:
        made = client.api.create_container(docker_image, ["true"])["Id"]
        repository, _, tag = absent.rpartition(":")
        client.api.commit(made, repository, tag, changes=["LABEL other=1"])
        client.api.remove_container(made)
        for line in client.api.push(
            absent,
            stream=True,
            decode=True,
            auth_config={"username": "puller", "password": PASSWORD},
        ):
            assert "error" not in line, line
        other = str(client.images.get(absent).id)
        assert [sentence async for sentence in engine.ensure_image(absent, approved)] != []
        assert client.images.get(absent).id != other, "the approved one has the name again"
        wrong = ImagePull("puller", PASSWORD, f"sha256:{'0' * 64}")
        with pytest.raises(EngineError, match="of the approved digest sha256:000") as refused:
            _ = [sentence async for sentence in engine.ensure_image(absent, wrong)]
        assert not refused.value.retriable
        client.api.tag(docker_image, repository, tag)
        client.images.remove(other, force=True)
    finally:
        client.close()


def spec(image: str, command: tuple[str, ...], **facts: object) -> KernelSpec:
    given: dict[str, object] = {
        "kernel_id": str(uuid.uuid4()),
        "session_id": str(uuid.uuid4()),
        "epoch": 1,
        "session_name": "commits",
        "owner": "ada",
        "hostname": "main1",
        "image": image,
        "command": command,
        "environ": {"JUPYTERHUB_API_TOKEN": "secret-of-the-session"},
        "mounts": (),
        "ports": (),
        "shares": (Share("cpu", "cpu", 500_000),),
        "shm_bytes": 1 << 20,
    }
    return KernelSpec(**{**given, **facts})  # type: ignore[arg-type]


async def run(engine: DockerEngine, wanted: KernelSpec, home: Path) -> Identity:
    home.mkdir(exist_ok=True)
    os.chown(home, 1000, 1000)
    limits = Limits(cpu_quota=0.5, memory_bytes=128 << 20, shm_bytes=1 << 20, pids=64)
    await engine.create(wanted, limits, (BoundMount(str(home), "/home/work", False),))
    identity = Identity(wanted.kernel_id, wanted.session_id, wanted.epoch)
    await engine.start(identity)
    return identity


@pytest.fixture
def writable(docker_image: str) -> Iterator[str]:
    """An image whose containers may change their own file system."""
    client = docker.from_env(timeout=120)
    name = f"perijove/test-writable:{uuid.uuid4().hex[:8]}"
    source = client.api.create_container(docker_image, ["true"])["Id"]
    repository, _, tag = name.partition(":")
    client.api.commit(source, repository, tag, changes=["LABEL ai.perijove.root=writable"])
    client.api.remove_container(source)
    yield name
    client.images.remove(name, force=True)
    client.close()


async def test_an_image_of_a_session_has_its_files_and_nothing_of_the_session(
    engine: DockerEngine, writable: str, tmp_path: Path
) -> None:
    made = f"perijove.invalid/{uuid.uuid4().hex}/mine:latest"
    write = "echo kept > /var/tmp/result; echo home > /home/work/at-home; sleep 600"
    identity = await run(engine, spec(writable, ("sh", "-c", write)), tmp_path / "home")
    await until((tmp_path / "home/at-home").exists, "the command never ran")
    client = docker.from_env()
    try:
        report = await engine.commit(identity, made, {"ai.perijove.commit": "7"})
        assert (report.name, report.labels["ai.perijove.commit"]) == (made, "7")
        assert report.labels["ai.perijove.kernel"] == report.labels["ai.perijove.home"] == ""
        config = client.api.inspect_image(made)["Config"]
        origin = client.api.inspect_image(writable)["Config"]
        assert "secret-of-the-session" not in str(client.api.inspect_image(made))
        assert (config["Cmd"], config["User"]) == (origin["Cmd"], origin["User"] or "root")
        with pytest.raises(EngineError, match="in use on this node"):
            await engine.remove_image(writable)
        show = ("sh", "-c", "cat /var/tmp/result; ls /home/work")
        again = await run(engine, spec(made, show), tmp_path / "other")

        async def printed() -> str:
            return await engine.logs(again, 5)

        assert (await until(printed, "it printed nothing")).split() == ["kept"]
        assert {state.identity for state in await engine.list()} == {identity, again}
    finally:
        for state in await engine.list():
            await engine.stop(state.identity, 0)
            await engine.remove(state.identity)
        await engine.remove_image(made)
        client.close()


async def test_an_image_that_is_made_again_replaces_the_one_before(
    engine: DockerEngine, writable: str, tmp_path: Path
) -> None:
    """Nothing is left of the first one, nor of the making of either."""
    identity = await run(engine, spec(writable, ("sleep", "600")), tmp_path / "home")
    made, mark = f"perijove.invalid/ada/{uuid.uuid4().hex}:latest", uuid.uuid4().hex
    client = docker.from_env(timeout=120)
    labelled = {"label": f"ai.perijove.test={mark}"}
    try:
        ids = []
        for _ in range(2):
            await engine.commit(identity, made, {"ai.perijove.test": mark})
            ids.append(client.images.get(made).id)
        assert ids[0] != ids[1]
        tagged = [each.id for each in client.images.list(filters=labelled)]
        assert tagged == ids[1:]
        everything = client.images.list(all=True, filters=labelled)
        assert len(everything) == 2, "the image and what it is built on"
        assert client.containers.list(all=True, filters=labelled) == []
        await engine.remove_image(made)
        assert client.images.list(all=True, filters=labelled) == []
    finally:
        client.close()


async def test_a_read_only_session_makes_no_image_and_says_why(
    engine: DockerEngine, docker_image: str, tmp_path: Path
) -> None:
    identity = await run(engine, spec(docker_image, ("sleep", "600")), tmp_path / "home")
    with pytest.raises(EngineError, match="root is read-only"):
        await engine.commit(identity, "perijove.invalid/x/y:latest", {})
