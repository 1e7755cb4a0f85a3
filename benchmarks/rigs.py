"""Two JupyterHub platforms on this machine to compare: Perijove, and JupyterHub with DockerSpawner.

Each runs behind its own configurable-http-proxy in a temporary folder, starts the same image with the
same limits and gives each user a home folder of the host. Whatever a platform started is ended with it,
also when the benchmark is interrupted or ended by SIGTERM.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import docker
import psutil

from authenticator.identity import IdentityService
from benchmarks.interruption import containers_of, remove_containers
from benchmarks.notebook_client import HubAccess
from benchmarks.reporting import note
from hub.config.deployment import Deployment
from hub.first_start import now, open_store
from tests.harness.ports import free_port

HERE = Path(sys.executable).parent
CPUS = 1
MEMORY = "1G"
START_DEADLINE = 180.0
END_DEADLINE = 60.0

SERVICE = """
service = {"name": "bench", "api_token": os.environ["BENCH_TOKEN"]}
role = {
    "name": "bench", "services": ["bench"],
    "scopes": ["admin:users", "admin:servers", "access:servers"],
}
c.Spawner.http_timeout = 240
c.JupyterHub.concurrent_spawn_limit = 0
"""

PEER_CONFIG = f"""
import os
c = get_config()
{SERVICE}
c.JupyterHub.services = [service]
c.JupyterHub.load_roles = [role]
c.JupyterHub.bind_url = os.environ["BENCH_URL"]
c.JupyterHub.hub_bind_url = os.environ["BENCH_HUB_URL"]
c.JupyterHub.db_url = "sqlite:///" + os.environ["BENCH_DIR"] + "/hub.sqlite"
c.JupyterHub.cookie_secret_file = os.environ["BENCH_DIR"] + "/cookie"
c.ConfigurableHTTPProxy.api_url = os.environ["BENCH_PROXY_API"]
c.ConfigurableHTTPProxy.pid_file = os.environ["BENCH_DIR"] + "/proxy.pid"
c.JupyterHub.authenticator_class = "dummy"
c.Authenticator.allow_all = True
c.JupyterHub.spawner_class = "dockerspawner.DockerSpawner"
c.DockerSpawner.image = os.environ["BENCH_IMAGE"]
c.DockerSpawner.cmd = ["jupyterhub-singleuser"]
c.DockerSpawner.cpu_limit = {CPUS}
c.DockerSpawner.mem_limit = "{MEMORY}"
c.DockerSpawner.prefix = "bench-" + os.environ["BENCH_TOKEN"][:8]
c.DockerSpawner.remove = True
c.DockerSpawner.notebook_dir = "/home/work"
c.DockerSpawner.volumes = {{os.environ["BENCH_DIR"] + "/homes/{{username}}": "/home/work"}}
c.DockerSpawner.extra_create_kwargs = {{"user": os.environ["BENCH_OWNER"]}}
c.DockerSpawner.start_timeout = 240
"""

OUR_CONFIG = """
import os
c = get_config()
{service}
c.JupyterHub.services.append(service)
c.JupyterHub.load_roles.append(role)
c.AgentConfig.accelerators = {{"cpu": {{"total": "{crowd}"}}, "mem": {{"total": "{total}"}}}}
"""
"""The node counts with one CPU for each server of the crowd, as the peer does not count at all."""


@dataclass(frozen=True, slots=True)
class Rig:
    """A platform that runs."""

    name: str
    hub: HubAccess
    options: dict[str, object]
    """What its users ask for."""
    folder: Path
    process: subprocess.Popen[bytes]

    def platform_cpu(self) -> float:
        """CPU seconds of its processes so far: hub, proxy, and what else it is made of."""
        total = 0.0
        for process in _family(self.process.pid):
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def server_cpu(self) -> float:
        """CPU seconds of its servers that run now, from their first instruction on."""
        nanoseconds = 0
        with contextlib.closing(docker.from_env()) as client:
            for container in containers_of(client, self.folder):
                facts = client.api.stats(container, stream=False, one_shot=True)
                nanoseconds += facts["cpu_stats"]["cpu_usage"]["total_usage"]
        return nanoseconds / 1e9


@contextlib.contextmanager
def peer(image: str, folder: Path, users: list[str]) -> Iterator[Rig]:
    """JupyterHub with DockerSpawner, as its documentation sets it up."""
    folder.mkdir()
    config = folder / "config.py"
    config.write_text(PEER_CONFIG)
    uid, gid = (os.geteuid(), os.getegid()) if os.geteuid() else (1000, 1000)
    for user in users:
        home = folder / "homes" / user
        home.mkdir(parents=True)
        os.chown(home, uid, gid)
    url = f"http://127.0.0.1:{free_port()}"
    environ = {
        "BENCH_URL": url,
        "BENCH_HUB_URL": f"http://{_docker_gateway()}:{free_port()}",
        "BENCH_PROXY_API": f"http://127.0.0.1:{free_port()}",
        "BENCH_DIR": str(folder),
        "BENCH_IMAGE": image,
        "BENCH_OWNER": f"{uid}:{gid}",
        "CONFIGPROXY_AUTH_TOKEN": secrets.token_hex(16),
    }
    command = [str(HERE / "jupyterhub"), "-f", str(config)]
    with _running("dockerspawner", command, environ, url, folder, {}) as rig:
        yield rig


@contextlib.contextmanager
def ours(image: str, folder: Path, users: list[str]) -> Iterator[Rig]:
    """The whole platform, as ``perijove up`` runs it, with users that it knows."""
    folder.mkdir()
    config = folder / "perijove_config.py"
    crowd = len(users)
    config.write_text(OUR_CONFIG.format(service=SERVICE, crowd=crowd * CPUS, total=f"{crowd + 2}g"))
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    state = folder / "state"
    command = [str(HERE / "perijove"), "up", "--engine", "docker", "--port", str(port)]
    command += ["--state-dir", str(state), "-f", str(config)]
    options: dict[str, object] = {
        "slots": {"cpu": str(CPUS), "mem": MEMORY.lower()},
        "image": image,
    }
    with _running("perijove", command, {}, url, folder, options) as rig:
        _wait_for_line("sessions can start", rig.process, folder)
        asyncio.run(_add_users(state, users))
        yield rig


async def _add_users(state: Path, users: list[str]) -> None:
    async with open_store(Deployment(state_dir=str(state))) as store:
        identity = IdentityService(store, now)
        for user in users:
            await identity.create_user(user, with_password=False)


@contextlib.contextmanager
def _running(
    name: str,
    command: list[str],
    environ: dict[str, str],
    url: str,
    folder: Path,
    options: dict[str, object],
) -> Iterator[Rig]:
    """The processes of a platform while the block runs; nothing of it is left afterwards."""
    token = secrets.token_hex(16)
    with (folder / "output.log").open("wb") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, **environ, "BENCH_TOKEN": token},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_for(f"{url}/hub/api/", process, folder)
        yield Rig(name, HubAccess(url, token), options, folder, process)
    finally:
        _end(process, folder)


def _end(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Ctrl-C, which both platforms answer by ending their servers; then by force whatever is left."""
    family = _family(process.pid)
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(END_DEADLINE)
    for left in family:
        with contextlib.suppress(psutil.Error):
            if left.is_running():
                note(f"{left.name()} ({left.pid}) did not end by itself")
                left.kill()
    process.wait()
    remove_containers(folder)


def _family(pid: int) -> list[psutil.Process]:
    """A process and all that descend from it; empty when it is gone."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _docker_gateway() -> str:
    """The address of Docker's default bridge on this host."""
    with contextlib.closing(docker.from_env()) as client:
        return str(client.networks.get("bridge").attrs["IPAM"]["Config"][0]["Gateway"])


def _wait_for(url: str, process: subprocess.Popen[bytes], folder: Path) -> None:
    for _ in _patience(process, folder, url):
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            continue


def _wait_for_line(text: str, process: subprocess.Popen[bytes], folder: Path) -> None:
    for _ in _patience(process, folder, repr(text)):
        if text in (folder / "output.log").read_text(errors="replace"):
            return


def _patience(process: subprocess.Popen[bytes], folder: Path, what: str) -> Iterator[None]:
    """Yield every 0.2 s; raises ``RuntimeError`` when the process ended or after ``START_DEADLINE``."""
    deadline = time.monotonic() + START_DEADLINE
    while time.monotonic() < deadline and process.poll() is None:
        yield
        time.sleep(0.2)
    output = (folder / "output.log").read_text(errors="replace")[-3000:]
    raise RuntimeError(f"waiting for {what} of {process.args!r} was in vain:\n{output}")
