"""A Docker engine and a small image for tests; the engine is started here where none answers."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import docker
import pytest
from docker.errors import DockerException, ImageNotFound

from kernels.bootstrap import BootstrapError, bootstrap
from spawner.options import DEFAULT_IMAGE as IMAGE

TEST_IMAGE = "perijove/test-python:latest"
_DOCKERFILE = """
FROM {base}
LABEL ai.perijove.image="test" ai.perijove.label="Python for tests" \\
      ai.perijove.command="[\\"python3\\", \\"-m\\", \\"http.server\\", \\"{{bind_port}}\\"]"
RUN mkdir -p /home/work && chown 1000:1000 /home/work
"""


def unavailable(reason: str) -> None:
    """Skip loudly, or fail where nothing may be skipped."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def answers() -> bool:
    try:
        client = docker.from_env(timeout=10)
        client.ping()
        client.close()
    except (DockerException, OSError):
        return False
    return True


@contextmanager
def running_engine() -> Iterator[None]:
    """An engine answers inside the block; one that we started ends with it."""
    if answers():
        yield
        return
    if shutil.which("dockerd") is None or os.geteuid() != 0:
        unavailable(
            "no Docker engine answers, and none can be started (dockerd and root are needed)"
        )
    Path("/var/run/docker.pid").unlink(missing_ok=True)  # of an engine that was killed
    with tempfile.TemporaryFile() as log:
        engine = subprocess.Popen(
            ["dockerd"], stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            deadline = time.monotonic() + 60
            while not answers():
                if engine.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    pytest.fail("dockerd did not start:\n" + log.read()[-3000:].decode())
                time.sleep(0.2)
            yield
        finally:
            engine.terminate()
            engine.wait(30)


def ensure_test_image() -> str:
    """A small image with Python and our labels."""
    client = docker.from_env(timeout=120)
    try:
        client.images.get(TEST_IMAGE)
    except ImageNotFound:
        try:
            base = bootstrap(client, print)
        except BootstrapError as error:
            unavailable(f"no base image: {error}")
        dockerfile = io.BytesIO(_DOCKERFILE.format(base=base).encode())
        client.images.build(fileobj=dockerfile, tag=TEST_IMAGE, rm=True)
    finally:
        client.close()
    return TEST_IMAGE


def ensure_session_image() -> str:
    """The image of sessions, built if it is not there; under CI always of this very checkout."""
    client = docker.from_env(timeout=120)
    try:
        present = bool(client.images.list(name=IMAGE))
    finally:
        client.close()
    if not present or os.environ.get("CI"):
        build_image()
    return IMAGE


def build_image(*parts: str) -> str:
    """Build the image of sessions of this very checkout with ``parts``, unless it is there; its tag."""
    command = [sys.executable, "-m", "hub.app", "image", "build"]
    command += [f"--with={part}" for part in parts]
    build = subprocess.run(command, capture_output=True, text=True, check=False)
    if build.returncode:
        output = f"{build.stdout[-3000:]}{build.stderr[-3000:]}"
        unavailable(f"the image of sessions cannot be built:\n{output}")
    return build.stdout.split()[-1]
