"""Life in a container: its first process, its share of the machine, dotfiles, bootstrap, groups, system calls."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from kernels.bootstrap import bootstrap
from kernels.build import RECIPES, BuildInputs, build_image
from spawner.agent.engines.base import BoundMount, EngineError
from spawner.agent.engines.docker import DockerEngine
from spawner.agent.protocol import File
from tests.integration.docker_engine import ensure_test_image, running_engine, unavailable
from tests.integration.engines.conformance import EngineRig, until

pytestmark = [pytest.mark.integration, pytest.mark.docker, pytest.mark.timeout(600)]


@pytest.fixture(scope="module", autouse=True)
def plain() -> Iterator[str]:
    """The image without Jupyter."""
    with running_engine():
        ensure_test_image()
        client = docker.from_env(timeout=300)
        try:
            inputs = BuildInputs(base=bootstrap(client, print))
            yield build_image(client, RECIPES / "plain", inputs, print)
        finally:
            client.close()


class TestInside(EngineRig):
    kind = DockerEngine

    @pytest.fixture(params=["plain", "foreign"])
    def image(self, request: pytest.FixtureRequest, plain: str) -> str:
        return plain if request.param == "plain" else ensure_test_image()

    async def said(
        self, engine: DockerEngine, image: str, mounts: Any, script: str, **facts: Any
    ) -> tuple[str, int | None]:
        """Output and exit code of a shell script in a container."""
        spec = self.spec(image, ("sh", "-c", script), ports=(), **facts)
        state = await self.run(engine, spec, mounts)
        ended = await self.ends(engine, state.identity)
        return await engine.logs(state.identity, 50), ended.exit_code

    async def test_exit_codes_are_exact(
        self, engine: DockerEngine, image: str, mounts: Any
    ) -> None:
        for script, code in (("exit 7", 7), ("kill -9 $$", 137), ("kill -TERM $$", 143)):
            assert (await self.said(engine, image, mounts, script))[1] == code

    async def test_orphans_are_buried(self, engine: DockerEngine, image: str, mounts: Any) -> None:
        script = (
            "for n in 1 2 3; do (sleep 0.1 &) ; done; sleep 1;"
            " cat /proc/[0-9]*/stat | grep -c ' Z ' || true"
        )
        text, _ = await self.said(engine, image, mounts, script)
        assert text.strip() == "0"

    async def test_the_end_reaches_grandchildren(
        self, engine: DockerEngine, plain: str, mounts: Any, home: Path
    ) -> None:
        inner = (
            "trap 'sleep 0.5; touch saved; exit 0' TERM; touch ready; while :; do sleep 0.05; done"
        )
        spec = self.spec(plain, ("sh", "-c", f'sh -c "{inner}"; true'), ports=())
        state = await self.run(engine, spec, mounts)
        await until((home / "ready").exists, "it never began")
        await engine.stop(state.identity, 10)
        assert (home / "saved").exists(), "the program under the shell had time to save"

    async def test_programs_see_the_share(
        self, engine: DockerEngine, plain: str, mounts: Any
    ) -> None:
        script = (
            "nproc; getconf _NPROCESSORS_ONLN; grep -c ^processor /proc/cpuinfo;"
            " grep MemTotal /proc/meminfo; SHOW_HOST_RESOURCES=1 grep MemTotal /proc/meminfo"
        )
        text, code = await self.said(engine, plain, mounts, script)
        lines = text.split()
        assert code == 0
        assert lines[:3] == ["1", "1", "1"]
        assert lines[4] == str(256 * 1024)
        assert int(lines[7]) > 256 * 1024

    async def test_dotfiles_come_and_own_changes_stay(
        self, engine: DockerEngine, image: str, mounts: Any, home: Path
    ) -> None:
        def files(text: str) -> tuple[File, ...]:
            return (
                File("dotfiles/.profile", text, 0o640),
                File("dotfiles/.config/a b/x", "deep", 0o600),
            )

        show = "cat .profile; stat -c %a .profile; cat '.config/a b/x'"
        first = await self.said(engine, image, mounts, show, files=files("one\n"))
        assert first == ("one\n640\ndeep", 0)
        newer, _ = await self.said(engine, image, mounts, show, files=files("two\n"))
        assert newer.startswith("two\n")
        (home / ".profile").write_text("mine\n")
        kept, _ = await self.said(engine, image, mounts, show, files=files("three\n"))
        assert "changed here and stays as it is" in kept
        assert "mine\n640\n" in kept

    async def test_a_bootstrap_script_runs_first(
        self, engine: DockerEngine, image: str, mounts: Any
    ) -> None:
        given: dict[str, Any] = {"bootstrap": "bootstrap.sh"}
        good = (File("bootstrap.sh", "echo prepared > made; read x || true", 0o500),)
        text, code = await self.said(engine, image, mounts, "cat made", files=good, **given)
        assert text.splitlines()[-1] == "prepared"
        bad = (File("bootstrap.sh", "#!/bin/sh\nexit 9", 0o500),)
        text, code = await self.said(engine, image, mounts, "echo on", files=bad, **given)
        assert code == 0
        assert "failed with status 9" in text
        given["session_type"] = "batch"
        text, code = await self.said(engine, image, mounts, "echo on", files=bad, **given)
        assert (code, "\non\n" in text) == (9, False)

    async def test_files_are_the_kernels_alone_and_go_with_it(
        self, engine: DockerEngine, image: str, mounts: Any, tmp_path: Path
    ) -> None:
        files = (File("ssh/key", "secret-canary"),)
        script = "cat /home/config/ssh/key; stat -c %a-%u /home/config /home/config/ssh/key; echo x >/home/config/y"
        spec = self.spec(image, ("sh", "-c", script), ports=(), files=files)
        state = await self.run(engine, spec, mounts)
        await self.ends(engine, state.identity)
        text = await engine.logs(state.identity, 10)
        assert "secret-canary700-1000\n600-1000\n" in text
        assert "Read-only file system" in text
        client = docker.from_env()
        facts = client.api.inspect_container(state.native_id)
        client.close()
        assert "canary" not in str(facts)
        await engine.remove(state.identity)
        assert list((tmp_path / "agent" / "config").iterdir()) == []

    async def test_the_strict_profile_denies(
        self, engine: DockerEngine, image: str, mounts: Any
    ) -> None:
        script = "unshare -r true 2>/dev/null && echo open || echo denied; (sleep 0.01 & wait); echo works"
        free, _ = await self.said(engine, image, mounts, script)
        held, _ = await self.said(engine, image, mounts, script, seccomp="strict")
        assert held.split() == ["denied", "works"]
        assert free.split()[-1] == "works"

    async def test_an_unknown_profile_is_named(
        self, engine: DockerEngine, image: str, mounts: Any
    ) -> None:
        with pytest.raises(EngineError, match=r"'nosuch' is not known.*default, strict"):
            await self.said(engine, image, mounts, "true", seccomp="nosuch")

    async def test_a_folder_of_a_group_is_open_to_the_kernel(
        self, engine: DockerEngine, image: str, mounts: Any, tmp_path: Path
    ) -> None:
        team = tmp_path / "team"
        team.mkdir()
        shutil.chown(team, 0, 4242)
        team.chmod(0o2770)
        both = (*mounts, BoundMount(str(team), "/home/work/team", False))
        _, code = await self.said(engine, image, both, "echo x > team/made")
        assert code == 0
        assert (team / "made").stat().st_gid == 4242


def test_musl_programs_are_not_broken_by_the_library(plain: str, tmp_path: Path) -> None:
    if shutil.which("musl-gcc") is None:
        unavailable("musl-gcc is not here: apt-get install musl-tools")
    source = tmp_path / "m.c"
    source.write_text('#include <stdio.h>\nint main(void){puts("fine");return 0;}')
    subprocess.run(["musl-gcc", "-static", "-o", tmp_path / "m", source], check=True)
    client = docker.from_env()
    try:
        out = client.containers.run(
            plain,
            ["/m"],
            remove=True,
            environment={"LD_PRELOAD": "/usr/lib/perijove/share.so"},
            volumes={str(tmp_path / "m"): {"bind": "/m", "mode": "ro"}},
        )
    finally:
        client.close()
    assert out == b"fine\n"
