"""A node whose disks are full: while an image is pulled, while a container is made, while people write.

Every test ends in the audit. How long it took is written to ``artifacts/recovery.csv``.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.hosts import Host, sh
from tests.cluster.one_node import containers, host_of, identities, one_node, submit
from tests.cluster.platform import Platform, until
from tests.harness.recovery import timed
from tests.integration.docker_engine import TEST_IMAGE, unavailable

pytestmark = [pytest.mark.integration, pytest.mark.docker, pytest.mark.timeout(240)]

ENGINE, FOLDERS = "h1/data", "state/volumes/local"
DISKS = {ENGINE: "2g", FOLDERS: "8m"}
HOST = "127.0.0.1:5000"
LARGE = f"{HOST}/team/large:1"
MEGABYTES = 40
FULL = "no space left on device"
CONFIG = """
version: 0.1
storage: {{filesystem: {{rootdirectory: {folder}/data}}}}
http: {{addr: "{host}"}}
"""


@pytest.fixture(scope="module")
def shared() -> Iterator[Platform]:
    with one_node(DISKS) as made:
        yield made


@pytest.fixture
def neighbour(platform: Platform) -> Iterator[str]:
    """A session that notices nothing of what becomes of others."""
    ref = submit(platform, "neighbour")
    platform.wait(ref, "RUNNING")
    before = identities(platform)[ref]
    yield ref
    assert platform.session(ref)["status"] == "RUNNING"
    until(lambda: identities(platform), lambda found: found == {ref: before})


@contextlib.contextmanager
def left(platform: Platform, disk: str, room: int) -> Iterator[None]:
    """Inside the block so many bytes are left on a disk; afterwards it is as large as it was."""
    place = str(platform.hosts.folder / disk)
    used = shutil.disk_usage(place).used
    sh("mount", "-o", f"remount,size={max(used + room, 4096)}", place)
    try:
        yield
    finally:
        sh("mount", "-o", f"remount,size={DISKS[disk]}", place)


@contextlib.contextmanager
def registry(host: Host, folder: Path) -> Iterator[None]:
    """A registry on the host that has ``LARGE``, which its engine has not."""
    if shutil.which("docker-registry") is None:
        unavailable("docker-registry is not installed")
    config = folder / "config.yml"
    config.write_text(CONFIG.format(folder=folder, host=HOST))
    engine = ("docker", "-H", host.socket)
    with (folder / "log").open("wb") as log:
        serving = subprocess.Popen(
            host.inside("docker-registry", "serve", str(config)), stdout=log, stderr=log,
            env={**os.environ, "OTEL_TRACES_EXPORTER": "none"},
        )  # fmt: skip
    try:
        build = subprocess.Popen([*engine, "build", "-q", "-t", LARGE, "-"], stdin=subprocess.PIPE)
        build.communicate(large(), 120)
        until(lambda: sh(*engine, "push", "-q", LARGE, check=False), bool)
        sh(*engine, "rmi", LARGE)
        yield
    finally:
        serving.terminate()
        serving.wait(10)


def large() -> bytes:
    """What an image is built of that adds ``MEGABYTES`` that cannot be compressed."""
    files = {
        "Dockerfile": f"FROM {TEST_IMAGE}\nCOPY noise /noise\n".encode(),
        "noise": os.urandom(MEGABYTES << 20),
    }
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def refused(platform: Platform, name: str, image: str = TEST_IMAGE) -> None:
    """A start fails, says why, and leaves nothing."""
    ref = submit(platform, name, image=image)
    found = until(lambda: platform.session(ref), lambda seen: seen["status"] == "ERROR", 60)
    assert FULL in found["statusInfo"].lower(), found["statusInfo"]
    until(lambda: containers(platform), lambda left: ref not in left)


def test_a_disk_is_full_during_a_pull(platform: Platform, neighbour: str, tmp_path: Path) -> None:
    group = {"options": {"allow_pull": True}}
    platform.call("PATCH", "/admin/resource-groups/default", group, user="admin")
    with registry(host_of(platform), tmp_path):
        with left(platform, ENGINE, (MEGABYTES // 2) << 20):
            with timed("18,disk full during a pull until it is told"):
                refused(platform, "pulls", LARGE)
            platform.audit()
        with timed("18,space freed until the image is pulled and its session runs"):
            ref = submit(platform, "pulls", image=LARGE)
            platform.wait(ref, "RUNNING")
        platform.call("DELETE", f"/session/{ref}")
        platform.wait(ref, "TERMINATED")


def test_a_disk_is_full_while_a_container_is_made(platform: Platform, neighbour: str) -> None:
    with left(platform, ENGINE, 0):
        with timed("18,disk of the engine full until it is told"):
            refused(platform, "made")
        platform.audit()
    with timed("18,space freed until a session runs"):
        ref = submit(platform, "made")
        platform.wait(ref, "RUNNING")
    platform.call("DELETE", f"/session/{ref}")
    platform.wait(ref, "TERMINATED")


WRITE = """
fill() { dd if=/dev/zero of=$1/filling bs=64k count=4096; }
fill /home/work; fill /tmp
rm /home/work/filling /tmp/filling
echo again > /home/work/kept && echo again > /tmp/kept && cat /home/work/kept /tmp/kept
"""


def test_people_who_fill_a_disk_are_told_by_their_own_programs(
    platform: Platform, neighbour: str
) -> None:
    ref = submit(platform, "writes", WRITE)
    platform.wait(ref, "TERMINATED")
    (attempt,) = platform.call("GET", f"/session/{ref}/attempts")["attempts"]
    told = platform.call("GET", f"/session/{ref}/logs")["result"]["logs"]
    assert told.lower().count(FULL) == 2, told
    assert told.split()[-2:] == ["again", "again"]
    assert (attempt["cause"], attempt["exit_code"]) == ("success", 0)
