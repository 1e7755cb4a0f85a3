"""Containers run under ids that their image does not know: programs find a user of that id, and its home."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from kernels.bootstrap import bootstrap
from kernels.build import RECIPES, BuildInputs, build_image
from spawner.agent.engines.base import BoundMount
from spawner.agent.engines.docker import DockerEngine
from tests.integration.docker_engine import (
    ensure_session_image,
    ensure_test_image,
    running_engine,
)
from tests.integration.engines.conformance import EngineRig

pytestmark = [
    pytest.mark.integration,
    pytest.mark.docker,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root gives folders to other users"),
]
TELL = """
set -e
whoami; id -un; id -gn; getent passwd $(id -u) | cut -d: -f1,3,6; echo $HOME $USER
python3 -c 'import getpass, os, pwd; print(getpass.getuser(), pwd.getpwuid(os.getuid()).pw_dir)'
touch ~/made; stat -c %U:%u:%g ~ ~/made; getent passwd root | cut -d: -f1
"""


@pytest.fixture(scope="module", autouse=True)
def images() -> Iterator[dict[str, str]]:
    with running_engine():
        client = docker.from_env(timeout=300)
        try:
            inputs = BuildInputs(base=bootstrap(client, print))
            yield {
                "plain": build_image(client, RECIPES / "plain", inputs, print),
                "foreign": ensure_test_image(),
                "jupyterlab": ensure_session_image(),
            }
        finally:
            client.close()


class TestAccounts(EngineRig):
    kind = DockerEngine

    @pytest.fixture(params=[1000, 12345])
    def uid(self, request: pytest.FixtureRequest, home: Path) -> int:
        shutil.chown(home, request.param, request.param)
        return int(request.param)

    @pytest.fixture
    def settings(self, tmp_path: Path, uid: int) -> dict[str, Any]:
        return {"state_dir": str(tmp_path / "agent"), "uid": uid, "gid": uid}

    async def said(self, engine: DockerEngine, image: str, mounts: Any, script: str) -> str:
        spec = self.spec(image, ("sh", "-c", script), ports=())
        state = await self.run(engine, spec, mounts)
        ended = await self.ends(engine, state.identity)
        text = await engine.logs(state.identity, 50)
        assert ended.exit_code == 0, text
        await engine.remove(state.identity)
        return text

    @pytest.mark.parametrize("image", ["plain", "foreign", "jupyterlab"])
    async def test_programs_find_their_user(
        self, engine: DockerEngine, images: dict[str, str], image: str, mounts: Any, uid: int
    ) -> None:
        text = await self.said(engine, images[image], mounts, TELL)
        assert text.split() == [
            *("work", "work", "work", f"work:{uid}:/home/work", "/home/work", "work"),
            *("work", "/home/work", f"work:{uid}:{uid}", f"work:{uid}:{uid}", "root"),
        ]

    async def test_git_and_ssh_work(
        self, engine: DockerEngine, images: dict[str, str], mounts: Any, home: Path
    ) -> None:
        shutil.copy(RECIPES / "jupyterlab/perijove-sshd", home)  # this checkout's
        script = """
            set -e; cd ~; git init -q repo; cd repo; git config user.email work@example.org
            git -c user.name=work commit -q --allow-empty -m first; git log --format=%s
            ssh -T -G localhost | grep -x 'user work'
            ssh-keygen -q -t ed25519 -N '' -f ../key; cut -d' ' -f3 ../key.pub
            mkdir ../.ssh; cp ../key.pub ../.ssh/authorized_keys
            sh ~/perijove-sshd 127.0.0.1 2200 2>/dev/null & server=$!
            enter="ssh -Tqi ../key -p 2200 -o StrictHostKeyChecking=no 127.0.0.1"
            until $enter whoami; do kill -0 $server; sleep 0.1; done
            $enter umask
        """
        text = await self.said(engine, images["jupyterlab"], mounts, script)
        first, user, name, comment, entered, umask = text.split()
        assert (first, user, name, entered, umask) == ("first", "user", "work", "work", "0022")
        assert comment.startswith("work@")

    async def test_groups_of_folders_have_names(
        self, engine: DockerEngine, images: dict[str, str], mounts: Any, tmp_path: Path, uid: int
    ) -> None:
        team = tmp_path / "team"
        team.mkdir()
        shutil.chown(team, 0, 4242)
        team.chmod(0o2770)
        both = (*mounts, BoundMount(str(team), "/home/work/team", False))
        assert "g4242" in await self.said(engine, images["plain"], both, "groups")
        client = docker.from_env()
        left = client.api.containers(all=True, filters={"label": engine._accounts._label})
        client.close()
        assert left == []
