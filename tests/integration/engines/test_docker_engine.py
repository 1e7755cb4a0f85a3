"""The docker engine passes the conformance tests, and its containers are confined."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from spawner.accelerators.specification import DeviceNode, HostMount, RuntimeRequest
from spawner.agent.engines.base import BoundMount, Engine, EngineError
from spawner.agent.engines.docker import DockerEngine, calls, pulls
from spawner.agent.protocol import Port
from tests.integration.docker_engine import ensure_test_image, running_engine
from tests.integration.engines.conformance import SERVE, EngineConformance, until

pytestmark = [pytest.mark.integration, pytest.mark.docker]

POSTURE = """
import json, os
status = dict(line.split(':', 1) for line in open('/proc/self/status') if ':' in line)
def fails(action):
    try:
        action()
    except OSError:
        return True
    return False
print(json.dumps({
    'uid': os.getuid(),
    'caps': int(status['CapEff'], 16) | int(status['CapPrm'], 16) | int(status['CapBnd'], 16),
    'no_new_privs': status['NoNewPrivs'].strip(),
    'seccomp': status['Seccomp'].strip(),
    'root_is_read_only': fails(lambda: open('/usr/x', 'w')) and fails(lambda: open('/x', 'w')),
    'mknod_fails': fails(lambda: os.mknod('/tmp/n', 0o600 | 0o020000, os.makedev(1, 1))),
    'chroot_fails': fails(lambda: os.chroot('/tmp')),
    'tmp_is_writable': not fails(lambda: open('/tmp/x', 'w')),
    'docker_socket': os.path.exists('/var/run/docker.sock'),
}))
"""


HARDWARE = """
import json, os, resource
print(json.dumps({
    'device': open('/dev/acme0', 'rb').read(4) == bytes(4),
    'groups': sorted(os.getgroups()),
    'memlock': resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY,
    'library': open('/opt/acme/lib').read(),
    'environ': [os.environ[name] for name in ('GPU_TYPE', 'NVIDIA_VISIBLE_DEVICES')],
}))
"""


@pytest.fixture(scope="module", autouse=True)
def docker_image() -> Iterator[str]:
    with running_engine():
        yield ensure_test_image()


class TestDockerEngine(EngineConformance):
    kind = DockerEngine

    @pytest.fixture
    def image(self, docker_image: str) -> str:
        return docker_image

    @pytest.fixture(autouse=True)
    def _no_pauses(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pulls, "PAUSE", 0.01)

    async def test_devices_reach_the_container(
        self, engine: Engine, image: str, mounts: tuple[BoundMount, ...], tmp_path: Path
    ) -> None:
        (folder := tmp_path / "acme").mkdir()
        (folder / "lib").write_text("driver")
        lift = ("prlimit", "--memlock=unlimited:unlimited", "true")  # not everywhere root may
        may_lock = subprocess.run(lift, stderr=subprocess.DEVNULL).returncode == 0  # noqa: ASYNC221
        wishes = {"GPU_TYPE": "mine", "NVIDIA_VISIBLE_DEVICES": "all"}
        state = await self.run(
            engine,
            self.spec(image, ("python3", "-c", HARDWARE), environ=wishes),
            mounts,
            devices=(DeviceNode("/dev/zero", "/dev/acme0", "r"),),
            groups=(4242,),
            locked_memory=may_lock,
            driver_mounts=(HostMount(str(folder), "/opt/acme"),),
            environ={"GPU_TYPE": "cuda"},
            enforced={"NVIDIA_VISIBLE_DEVICES": "void"},
        )
        await self.ends(engine, state.identity)
        assert json.loads(await engine.logs(state.identity, 1)) == {
            "device": True,
            "groups": [1000, 4242],
            "memlock": may_lock,
            "library": "driver",
            "environ": ["mine", "void"],
        }

    async def test_a_node_without_the_vendors_toolkit_says_what_is_missing(
        self, engine: Engine, image: str, mounts: tuple[BoundMount, ...]
    ) -> None:
        spec = self.spec(image, ("true",))
        with pytest.raises(EngineError, match="needs its vendor's container toolkit") as refused:
            await self.run(engine, spec, mounts, requests=(RuntimeRequest("acme", ("ACME-0",)),))
        assert not refused.value.retriable

    async def test_a_session_that_takes_its_time_to_end_holds_up_no_other(
        self,
        engine: Engine,
        image: str,
        mounts: tuple[BoundMount, ...],
        home: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        await engine.close()
        monkeypatch.setattr(calls, "THREADS", 1)
        await engine.open({"state_dir": str(tmp_path / "agent")})
        program = (
            "import signal, time, pathlib\n"
            "signal.signal(signal.SIGTERM, lambda *_: pathlib.Path('told').touch())\n"
            "pathlib.Path('ready').touch()\n"
            "while True: time.sleep(0.1)\n"
        )
        state = await self.run(engine, self.spec(image, ("python3", "-c", program)), mounts)
        try:
            await until((home / "ready").exists, "it never began")
            ending = asyncio.create_task(engine.stop(state.identity, 60))
            await until((home / "told").exists, "it was not told to end")
            assert image in {report.name for report in await engine.images()}
            assert not ending.done()
        finally:
            await engine.stop(state.identity, 0)
            await ending

    async def test_containers_are_confined(
        self, engine: Engine, image: str, mounts: tuple[BoundMount, ...]
    ) -> None:
        state = await self.run(engine, self.spec(image, ("python3", "-c", POSTURE)), mounts)
        await self.ends(engine, state.identity)
        assert json.loads(await engine.logs(state.identity, 1)) == {
            "uid": 1000,
            "caps": 0,
            "no_new_privs": "1",
            "seccomp": "2",
            "root_is_read_only": True,
            "mknod_fails": True,
            "chroot_fails": True,
            "tmp_is_writable": True,
            "docker_socket": False,
        }

    async def test_read_only_mounts_cannot_be_written(
        self, engine: Engine, image: str, mounts: tuple[BoundMount, ...], tmp_path: Path
    ) -> None:
        data = tmp_path / "data"
        data.mkdir(mode=0o777)
        (data / "seen").write_text("yes")
        program = (
            "print(open('/home/work/data/seen').read())\n"
            "try: open('/home/work/data/x', 'w')\n"
            "except OSError as error: print(error.strerror)\n"
        )
        both = (*mounts, BoundMount(str(data), "/home/work/data", True))
        state = await self.run(engine, self.spec(image, ("python3", "-c", program)), both)
        await self.ends(engine, state.identity)
        lines = (await engine.logs(state.identity, 5)).splitlines()
        assert lines == ["yes", "Read-only file system"]

    async def test_one_session_cannot_reach_anothers_port(
        self, engine: Engine, image: str, mounts: tuple[BoundMount, ...]
    ) -> None:
        victim = await self.run(engine, self.spec(image, SERVE), mounts)
        (endpoint,) = victim.endpoints

        def reached() -> bool:
            try:
                socket.create_connection((endpoint.host, endpoint.port), 1).close()
            except OSError:
                return False
            return True

        await until(reached, "the proxy's side must work")
        client = docker.from_env()
        facts = client.api.inspect_container(victim.native_id)
        client.close()
        address = facts["NetworkSettings"]["Networks"]["perijove"]["IPAddress"]
        gateway = await engine.session_address()
        program = (
            "import socket\n"
            f"for where in [('{address}', 8888), ('{gateway}', {endpoint.port})]:\n"
            "    try:\n"
            "        socket.create_connection(where, 2).close()\n"
            "        print('reached', where)\n"
            "    except OSError: print('unreachable')\n"
        )
        attacker = await self.run(
            engine, self.spec(image, ("python3", "-c", program), ports=()), mounts
        )
        await self.ends(engine, attacker.identity)
        assert (await engine.logs(attacker.identity, 5)).split() == ["unreachable", "unreachable"]

    async def test_an_image_brings_its_own_command(
        self, engine: Engine, image: str, mounts: tuple[BoundMount, ...]
    ) -> None:
        state = await self.run(engine, self.spec(image, ()), mounts)
        client = docker.from_env()
        facts = client.api.inspect_container(state.native_id)
        client.close()
        assert facts["Config"]["Cmd"] == ["python3", "-m", "http.server", "8888"]

    async def test_the_proxys_port_is_published_and_nothing_else(
        self, engine: Engine, image: str, mounts: tuple[BoundMount, ...]
    ) -> None:
        ports = (Port("web", 8888, published=True), Port("tensorboard", 6006))
        state = await self.run(engine, self.spec(image, SERVE, ports=ports), mounts)
        assert [(each.name, each.host) for each in state.endpoints] == [("web", "127.0.0.1")]
        client = docker.from_env()
        facts = client.api.inspect_container(state.native_id)
        client.close()
        assert list(facts["HostConfig"]["PortBindings"]) == ["8888/tcp"]
