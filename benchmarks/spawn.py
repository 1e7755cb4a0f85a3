"""From the POST of a spawn to the answer of ``1+1``: Perijove against JupyterHub + DockerSpawner.

Both run on this machine at the same time with the same image and the same limits (1 CPU, 1 GiB), each
behind its own configurable-http-proxy. Rounds alternate between them: one start alone, then ten at
once. The result is the ratio Perijove / peer of the medians; below 1 means faster than the peer.

    scripts/bench spawn [--quick] [--image NAME]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import aiohttp

from benchmarks.notebook_client import HubAccess, create_user, first_answer, stop
from benchmarks.reporting import finish, note, summary

HERE = Path(sys.executable).parent
CROWD = 10
"""Servers started at once."""

PEER_CONFIG = """
import os
c = get_config()
c.JupyterHub.bind_url = os.environ["BENCH_URL"]
c.JupyterHub.hub_bind_url = os.environ["BENCH_HUB_URL"]
c.JupyterHub.db_url = "sqlite:///" + os.environ["BENCH_DIR"] + "/hub.sqlite"
c.JupyterHub.cookie_secret_file = os.environ["BENCH_DIR"] + "/cookie"
c.ConfigurableHTTPProxy.api_url = os.environ["BENCH_PROXY_API"]
c.ConfigurableHTTPProxy.pid_file = os.environ["BENCH_DIR"] + "/proxy.pid"
c.JupyterHub.authenticator_class = "dummy"
c.JupyterHub.spawner_class = "dockerspawner.DockerSpawner"
c.DockerSpawner.image = os.environ["BENCH_IMAGE"]
c.DockerSpawner.allowed_images = []
c.DockerSpawner.cmd = ["jupyterhub-singleuser"]
c.DockerSpawner.cpu_limit = 1
c.DockerSpawner.mem_limit = "1G"
c.DockerSpawner.name_template = "bench-peer-{username}"
c.DockerSpawner.remove = True
c.DockerSpawner.notebook_dir = "/home/work"
c.Spawner.start_timeout = 240
c.Spawner.http_timeout = 240
c.JupyterHub.concurrent_spawn_limit = 0
c.JupyterHub.services = [{"name": "bench", "api_token": os.environ["BENCH_TOKEN"]}]
c.JupyterHub.load_roles = [{
    "name": "bench", "services": ["bench"],
    "scopes": ["admin:users", "admin:servers", "access:servers"],
}]
"""

OUR_CONFIG = """
import os
c = get_config()
c.JupyterHub.services.append({"name": "bench", "api_token": os.environ["BENCH_TOKEN"]})
c.JupyterHub.load_roles.append({
    "name": "bench", "services": ["bench"],
    "scopes": ["admin:users", "admin:servers", "access:servers"],
})
c.Spawner.http_timeout = 240
"""


def free_port() -> int:
    """A port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def docker_gateway() -> str:
    """The address of Docker's default bridge on this host."""
    template = "{{(index .IPAM.Config 0).Gateway}}"
    command = ["docker", "network", "inspect", "bridge", "--format", template]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended:\n{log.read_text()[-3000:]}")
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    raise RuntimeError(f"{url} did not answer:\n{log.read_text()[-3000:]}")


@contextlib.contextmanager
def _running(
    command: list[str], environ: dict[str, str], url: str, folder: Path
) -> Iterator[HubAccess]:
    token = environ["BENCH_TOKEN"]
    log = folder / "output.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, **environ},
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_for(f"{url}/hub/api/", process, log)
        yield HubAccess(url, token)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


@contextlib.contextmanager
def peer(image: str, folder: Path) -> Iterator[HubAccess]:
    """JupyterHub with DockerSpawner, as its documentation sets it up."""
    folder.mkdir()
    config = folder / "config.py"
    config.write_text(PEER_CONFIG)
    url = f"http://127.0.0.1:{free_port()}"
    environ = {
        "BENCH_URL": url,
        "BENCH_HUB_URL": f"http://{docker_gateway()}:{free_port()}",
        "BENCH_PROXY_API": f"http://127.0.0.1:{free_port()}",
        "BENCH_DIR": str(folder),
        "BENCH_IMAGE": image,
        "BENCH_TOKEN": secrets.token_hex(16),
    }
    with _running([str(HERE / "jupyterhub"), "-f", str(config)], environ, url, folder) as hub:
        yield hub


@contextlib.contextmanager
def ours(folder: Path) -> Iterator[HubAccess]:
    """The whole platform, as ``perijove up`` runs it."""
    folder.mkdir()
    config = folder / "hub_extra.py"
    config.write_text(OUR_CONFIG)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environ = {"BENCH_TOKEN": secrets.token_hex(16)}
    command = [str(HERE / "perijove"), "up", "--engine", "docker", "--port", str(port)]
    state = ["--state-dir", str(folder / "state")]
    with _running([*command, *state, "-f", str(config)], environ, url, folder) as hub:
        for number in range(CROWD):  # the hub starts nothing for people whom Perijove does not know
            add = [str(HERE / "perijove"), "user", "add", f"u{number}", "--external", *state]
            subprocess.run(add, check=True, stdout=subprocess.DEVNULL)
        yield hub


async def _round(hub: HubAccess, users: list[str], options: dict[str, object]) -> list[float]:
    async with aiohttp.ClientSession() as http:
        for user in users:
            await create_user(http, hub, user)
        times = await asyncio.gather(*(first_answer(http, hub, user, options) for user in users))
        await asyncio.gather(*(stop(http, hub, user) for user in users))
    return list(times)


async def compare(
    rigs: dict[str, tuple[HubAccess, dict[str, object]]], rounds: int, crowds: int, crowd: int
) -> dict[str, dict[str, list[float]]]:
    """Alternate rounds over the rigs; per rig the times alone and until the last of a crowd."""
    samples: dict[str, dict[str, list[float]]] = {n: {"alone": [], "crowd": []} for n in rigs}
    for index in range(rounds + 1):
        for name, (hub, options) in rigs.items():
            (seconds,) = await _round(hub, ["u0"], options)
            note(f"{name}: alone {seconds:.2f} s" + (" (warm-up)" if index == 0 else ""))
            if index:
                samples[name]["alone"].append(seconds)
    for _ in range(crowds):
        for name, (hub, options) in rigs.items():
            times = await _round(hub, [f"u{n}" for n in range(crowd)], options)
            note(f"{name}: {crowd} at once, last after {max(times):.2f} s")
            samples[name]["crowd"].append(max(times))
    return samples


def main() -> None:
    """Run the comparison and print the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--image", default="perijove/jupyterlab:latest")
    arguments = parser.parse_args()
    rounds, crowds, crowd = (2, 1, 4) if arguments.quick else (7, 3, CROWD)
    slots = {"cpu": "1", "mem": "1g"}
    with tempfile.TemporaryDirectory(prefix="perijove-bench-") as temporary:
        folder = Path(temporary)
        with ours(folder / "perijove") as our_hub, peer(arguments.image, folder / "peer") as other:
            rigs: dict[str, tuple[HubAccess, dict[str, object]]] = {
                "perijove": (our_hub, {"slots": slots, "image": arguments.image}),
                "dockerspawner": (other, {}),
            }
            samples = asyncio.run(compare(rigs, rounds, crowds, crowd))
    ratios = {
        f"spawn_{kind}_ratio": round(
            statistics.median(samples["perijove"][kind])
            / statistics.median(samples["dockerspawner"][kind]),
            3,
        )
        for kind in ("alone", "crowd")
    }
    seconds = {
        name: {kind: summary(values) for kind, values in kinds.items()}
        for name, kinds in samples.items()
    }
    finish({**ratios, "seconds": json.loads(json.dumps(seconds)), "crowd_size": crowd})


if __name__ == "__main__":
    main()
