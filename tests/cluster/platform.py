"""One manager and an agent on each host, as processes; the session API as people call it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, TypeVar

from hub.config.deployment import Secrets
from tests.cluster.hosts import Host, Hosts
from tests.harness.audit import audit
from tests.integration.up.deployments import free_port

T = TypeVar("T")
PROGRAM = (sys.executable, "-m", "hub.app")
USER = "ada"


def until(look: Callable[[], T], good: Callable[[T], object], seconds: float = 60.0) -> T:
    """The answer of ``look`` as soon as it is ``good``."""
    deadline = time.monotonic() + seconds
    while True:
        answer = look()
        if good(answer):
            return answer
        assert time.monotonic() < deadline, f"still {answer!r}"
        time.sleep(0.2)


class Platform:
    """Everything that is Perijove's on the hosts."""

    def __init__(self, hosts: Hosts) -> None:
        self.hosts, self.state = hosts, hosts.folder / "state"
        self.port = free_port()
        self.url = f"http://{hosts.gateway}:{self.port}"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """The manager, then an agent on each host."""
        self.state.mkdir(mode=0o700)
        kept = self.state / "secrets.json"
        kept.write_text(json.dumps(asdict(Secrets.generate())))
        kept.chmod(0o600)
        self.command("db", "upgrade")
        self.start_manager()
        self.command("user", "add", "admin", "--admin")
        self.command("policy", "set", "default", "max_containers_per_session=8")
        for host in self.hosts.all:
            self.start_agent(host)
        until(self.agents, lambda found: len(found) == len(self.hosts.all))

    def start_manager(self) -> None:
        """The manager, until it answers."""
        self._start("manager", [*PROGRAM, "manager", "--state-dir", str(self.state),
            "--bind", f"{self.hosts.gateway}:{self.port}", "--ManagerConfig.heartbeat_interval=1",
            "--ManagerConfig.agent_timeout=8", "--ManagerConfig.tick=2"])  # fmt: skip
        until(self._answers, bool)

    def start_agent(self, host: Host, more: dict[str, str] | None = None) -> None:
        """An agent inside the host; ``more`` is added to its environment."""
        secret = self._secrets()["agent_token"]
        options = ["--agent-id", host.name, "--address", host.address, "--manager-url", self.url,
            "--engine", "docker", "--state-dir", str(host.folder / "agent"),
            f"--AgentConfig.volumes=local={self.state}/volumes/local",
            "--AgentConfig.relist_interval=1", "--AgentConfig.stop_grace=1"]  # fmt: skip
        environ = {"DOCKER_HOST": host.socket, "PERIJOVE_AGENT_TOKEN": secret, **(more or {})}
        self._start(host.name, host.inside(*PROGRAM, "agent", *options), environ)

    def stop(self) -> None:
        """End all processes."""
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait(10)

    def call(self, method: str, path: str, body: object = None, user: str = USER) -> Any:
        """The session API's answer."""
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": f"Bearer {self._secrets()['hub_secret']}",
                "X-Perijove-User": user,
                "Content-Type": "application/json",
            },
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            raw = response.read()
        return json.loads(raw) if raw else None

    def create(self, name: str, image: str, size: int, **more: object) -> str:
        """A session's id."""
        given = {
            "name": name, "image": image, "clusterSize": size, "clusterMode": "multi-node",
            "enqueueOnly": True, "config": {"resources": {"cpu": "1", "mem": "256m"}}, **more,
        }  # fmt: skip
        return str(self.call("POST", "/session", given)["sessionId"])

    def session(self, ref: str) -> dict[str, Any]:
        """What the API tells of it."""
        found: dict[str, Any] = self.call("GET", f"/session/{ref}")
        return found

    def wait(self, ref: str, *statuses: str, seconds: float = 120.0) -> dict[str, Any]:
        """The session once it has one of these statuses."""
        found = until(
            lambda: self.session(ref), lambda s: s["status"] in (*statuses, "ERROR"), seconds
        )
        assert found["status"] in statuses, found["statusInfo"]
        return found

    def agents(self) -> dict[str, Any]:
        """Connected agents by id."""
        found = self.call("GET", "/agents", user="admin")["agents"]
        return {each["id"]: each for each in found if each["connected"]}

    def audit(self) -> str:
        """What ``perijove audit`` says; nothing differs."""
        return audit(self.state, "--no-routes", "--manager-url", self.url)

    def kill(self, name: str) -> None:
        """``kill -9`` one of the processes."""
        self.processes[name].kill()
        self.processes[name].wait()

    def story(self) -> str:
        """The ends of all logs."""
        logs = sorted(self.state.glob("*.log"))
        return "\n".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in logs)

    def _answers(self) -> bool:
        assert self.processes["manager"].poll() is None, self.story()
        with contextlib.suppress(OSError):
            return bool(self.call("GET", "/health"))
        return False

    def command(self, *words: str) -> str:
        """What a ``perijove`` command prints on the manager's host."""
        command = [*PROGRAM, *words, "--state-dir", str(self.state)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _secrets(self) -> dict[str, str]:
        kept: dict[str, str] = json.loads((self.state / "secrets.json").read_text())
        return kept

    def _start(self, name: str, command: list[str], environ: dict[str, str] | None = None) -> None:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("PERIJOVE_")}
        with (self.state / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command, stdout=log, stderr=log, env={**inherited, **(environ or {})}
            )


@contextlib.contextmanager
def running_platform(hosts: Hosts) -> Iterator[Platform]:
    """A platform inside the block."""
    made = Platform(hosts)
    try:
        made.start()
        yield made
    finally:
        made.stop()
