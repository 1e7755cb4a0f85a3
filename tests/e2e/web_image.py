"""The image of the tests of web apps: that of sessions with all its parts, and a few apps that its labels tell of."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path

import docker
from docker.errors import ImageNotFound

from kernels.bootstrap import BootstrapError, bootstrap
from kernels.build import parts
from tests.integration.docker_engine import build_image, unavailable

BACKEND_AI = "perijove/test-backend-ai:latest"
SMALL_APP = Path(__file__).with_name("web_app.py")
LAB = [
    "jupyter",
    "lab",
    "--no-browser",
    "--ip={bind_host}",
    "--port={bind_port}",
    "--IdentityProvider.token=",
    "--ServerApp.allow_remote_access=True",
    "--ServerApp.base_url={base_path}",
]
SLOW = "sleep 3; exec python3 /opt/web_app.py {bind_port}"
STARTS = {
    "small": {"argv": ["python3", "/opt/web_app.py", "{bind_port}"], "port": 9001},
    "slow": {"argv": ["sh", "-c", SLOW], "port": 9002},
    "broken": {"argv": ["sh", "-c", "echo no licence >&2; exit 4"], "port": 9003},
    "lab": {"argv": LAB, "port": 9004},
}
SCALAR = """
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter
writer = EventFileWriter("/home/work/runs/first")
for step in range(20):
    value = Summary.Value(tag="loss", simple_value=1 / (1 + step))
    writer.add_event(Event(wall_time=1.7e9 + step, step=step, summary=Summary(value=[value])))
writer.close()
"""


def ensure_web_image() -> str:
    """Its name; it is built once for each state of this file and of the image below it."""
    dockerfile = _dockerfile(build_image(*parts()))
    client = docker.from_env(timeout=300)
    try:
        digest = hashlib.sha256(dockerfile.encode() + SMALL_APP.read_bytes()).hexdigest()[:12]
        tag = f"perijove/test-web:{digest}"
        try:
            client.images.get(tag)
        except ImageNotFound:
            with tempfile.TemporaryDirectory() as folder:
                shutil.copy(SMALL_APP, folder)
                (Path(folder) / "Dockerfile").write_text(dockerfile)
                client.images.build(path=folder, tag=tag, rm=True)
    finally:
        client.close()
    return tag


def ensure_backend_ai_image() -> str:
    """An image as for Backend.AI: labels, the program that one names, and a command that ends at once."""
    client = docker.from_env(timeout=300)
    try:
        dockerfile = f"FROM {bootstrap(client, print)}\nCOPY tensorboard /usr/local/bin/\n"
        dockerfile += (
            'LABEL ai.backend.kernelspec=1 ai.backend.service-ports="tensorboard:http:6006"\n'
        )
        with tempfile.TemporaryDirectory() as folder:
            program = Path(folder) / "tensorboard"
            program.write_text('#!/bin/sh\nexec python3 -m http.server "${2#--port=}"\n')
            program.chmod(0o755)
            (Path(folder) / "Dockerfile").write_text(f"{dockerfile}CMD true\n")
            client.images.build(path=folder, tag=BACKEND_AI, rm=True)
    except BootstrapError as error:
        unavailable(f"no base image: {error}")
    finally:
        client.close()
    return BACKEND_AI


def _dockerfile(base: str) -> str:
    labels = {f"ai.perijove.app.{name}": json.dumps(start) for name, start in STARTS.items()}
    told = " ".join(f"{name}={json.dumps(text)}" for name, text in labels.items())
    return f"FROM {base}\nCOPY web_app.py /opt/web_app.py\nLABEL {told}\n"
