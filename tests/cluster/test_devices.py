"""GPUs of a node from the driver to the container: a stand-in library, and a stand-in for NVIDIA's runtime hook.

The engine is a real one. It believes in NVIDIA's container toolkit because a program with the name of its hook is
on its path; the program keeps what it is told, and lets the container start.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.hosts import Host, running_hosts
from tests.cluster.platform import Platform, until
from tests.integration.docker_engine import TEST_IMAGE, ensure_test_image, running_engine
from tests.unit.accelerators import driver

pytestmark = [pytest.mark.integration, pytest.mark.docker, pytest.mark.timeout(240)]

MIG = "cuda.device:1g.10gb-mig"
INSTANCES = tuple(f"mig MIG-{n} NVIDIA_H100_80GB_HBM3_MIG_1g.10gb 9856 1" for n in ("a", "b"))
LAST = "GPU-00000002"
HOOK = r"""#!/bin/sh
bundle=$(sed 's/.*"bundle":"\([^"]*\)".*/\1/')
grep -o 'NVIDIA_VISIBLE_DEVICES=[^"]*' "$bundle/config.json" | sort -u > "$(mktemp FOLDER/told.XXXXXX)"
"""
GPUS = (driver.gpu(0, mig=1), *INSTANCES, driver.gpu(1), driver.gpu(2))


class Rack(Platform):
    """One host with three GPUs: one is in two instances, the last is not this agent's but of ``another``."""

    hook: Path

    @property
    def host(self) -> Host:
        (host,) = self.hosts.all
        return host

    def start_agent(
        self,
        host: Host,
        more: dict[str, str] | None = None,
        *,
        another: str = "",
        given: Sequence[str] = (),
    ) -> None:
        config = self.state / f"config{another}.py"
        cuda = {"library": driver.library(), "exclude" if not another else "include": [LAST]}
        settings = {"cuda": cuda, "cpu": {"total": "4"}, "mem": {"total": "2g", "reserved": "1g"}}
        config.write_text(f"c.AgentConfig.accelerators = {settings!r}\n")
        super().start_agent(host, more, another=another, given=("-f", str(config), *given))

    def submit(self, name: str, slot: str, command: str = "") -> str:
        """A session with one GPU or instance; a batch session where there is a command."""
        kind = {"type": "batch", "startupCommand": command} if command else {}
        resources = {"cpu": "0.1", "mem": "48m", slot: 1}
        config = {"resources": resources, "resource_opts": {"shmem": "8m"}}
        return self.create(name, TEST_IMAGE, 1, clusterMode="single-node", config=config, **kind)

    def devices(self) -> dict[str, dict[str, Any]]:
        """GPUs and instances as rows have them, by agent and id."""
        return {
            f"{agent['id']}/{device['device_id']}": device
            for agent in self.call("GET", "/agents", user="admin")["agents"]
            for device in agent["devices"]
            if device["slot"].startswith("cuda")
        }

    def used(self) -> set[str]:
        return {name for name, device in self.devices().items() if device["used"] != "0"}


def hooked(folder: Path) -> list[str]:
    """Which devices the hook was to give, container by container."""
    return [path.read_text().strip() for path in sorted(folder.glob("told.*"))]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rack]:
    folder = tmp_path_factory.mktemp("hook")
    driver.library()
    hook = folder / "nvidia-container-runtime-hook"
    hook.write_text(HOOK.replace("FOLDER", str(folder)))
    hook.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch, running_engine():
        patch.setenv("PATH", str(folder), prepend=":")
        patch.setenv("FAKE_NVML", "")
        driver.describe(folder, *GPUS)
        ensure_test_image()
        with running_hosts([TEST_IMAGE], 1) as hosts:
            made = Rack(hosts)
            made.hook = folder
            try:
                made.start()
                until(
                    made.agents,
                    lambda found: all(TEST_IMAGE in a["images"] for a in found.values()),
                )
                yield made
            finally:
                made.stop()


@pytest.fixture
def clean(platform: Rack) -> Rack:
    """The rack, whose hook was told nothing yet."""
    for told in platform.hook.glob("told.*"):
        told.unlink()
    return platform


def test_an_instance_goes_by_its_uuid_from_the_form_to_the_runtime(clean: Rack) -> None:
    told = clean.call("GET", "/internal/spawn-options")["groups"][0]["slots"]
    assert {"name": MIG, "human_name": "MIG 1g.10gb", "unit": "MIG 1g.10gb", "type": "unique",
            "quantum": "1"} in told  # fmt: skip
    assert set(clean.devices()) == {
        "h1/MIG-a", "h1/MIG-b", "h1/GPU-00000001", f"h1/{LAST}"
    }, "a GPU in MIG mode is there as its instances only"  # fmt: skip
    refs = [clean.submit(f"job-{n}", MIG, "env; sleep 2") for n in range(2)]
    whole = clean.submit("whole", "cuda.device", "env")
    logs = [
        clean.call("GET", f"/session/{ref}/logs")["result"]["logs"]
        for ref in (*refs, whole)
        if clean.wait(ref, "TERMINATED")
    ]
    seen = [line for log in logs for line in log.splitlines() if "NVIDIA_VISIBLE_DEVICES" in line]
    expected = ["GPU-00000001", "MIG-a", "MIG-b"]
    assert sorted(seen) == sorted(hooked(clean.hook))
    assert sorted(seen) == [f"NVIDIA_VISIBLE_DEVICES={each}" for each in expected]
    plain = clean.submit("plain", "cpu", "env | grep NVIDIA_VISIBLE")
    clean.wait(plain, "TERMINATED")
    log = clean.call("GET", f"/session/{plain}/logs")["result"]["logs"]
    assert log.strip() == "NVIDIA_VISIBLE_DEVICES=void"


def test_devices_are_known_again_after_a_crash_and_agents_have_a_part_each(clean: Rack) -> None:
    first = clean.submit("first", MIG)
    clean.wait(first, "RUNNING")
    (held,) = clean.used()
    clean.kill("h1")
    clean.start_agent(clean.host)
    clean.start_agent(clean.host, another="b")
    until(clean.agents, lambda found: set(found) == {"h1", "h1b"})
    assert clean.used() == {held}
    offers = {name for name, device in clean.devices().items() if device["capacity"] != "0"}
    assert offers == {"h1/MIG-a", "h1/MIG-b", "h1/GPU-00000001", f"h1b/{LAST}"}
    refs = [clean.submit(f"gpu-{n}", "cuda.device") for n in range(2)]
    second = clean.submit("second", MIG)
    for ref in (*refs, second):
        clean.wait(ref, "RUNNING")
    assert clean.used() == offers
    assert clean.session(first)["status"] == "RUNNING"
    clean.end_all()
    clean.processes["h1b"].terminate()
    clean.processes["h1b"].wait(20)
    until(lambda: "h1b" in clean.agents(), lambda there: not there)
    clean.call("DELETE", "/agents/h1b", user="admin")


def test_a_gpu_that_breaks_is_told_of_and_given_to_nobody(clean: Rack) -> None:
    first = clean.submit("first", "cuda.device")
    clean.wait(first, "RUNNING")
    broken = [line if line != GPUS[3] else f"{line}\nlost" for line in GPUS]
    driver.describe(clean.hook, *broken)
    try:
        told = until(lambda: clean.session(first)["statusInfo"], lambda s: "out of order" in s)
        assert told.startswith("GPU of it is out of order: it does not answer")
        device = clean.devices()["h1/GPU-00000001"]
        assert device["attributes"]["fault"].startswith("it does not answer")
        listed = clean.command("node", "list")
        assert "h1: cuda.device GPU-00000001 is out of order: it does not answer" in listed
        assert clean.session(first)["status"] == "RUNNING"
        clean.call("DELETE", f"/session/{first}")
        clean.wait(first, "TERMINATED")
        waits = clean.submit("waits", "cuda.device")
        until(lambda: clean.call("GET", f"/session/{waits}/why")["message"], bool)
        assert clean.session(waits)["status"] == "PENDING"
    finally:
        driver.describe(clean.hook, *GPUS)
    clean.wait(waits, "RUNNING")
