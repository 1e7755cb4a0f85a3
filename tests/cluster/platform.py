"""One manager and an agent on each host, as processes; the session API as people call it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from hub.config.deployment import Secrets
from tests.cluster.hosts import Host, Hosts, sh
from tests.harness.audit import audit
from tests.harness.ports import free_port

T = TypeVar("T")
PROGRAM = (sys.executable, "-m", "hub.app")
USER = "ada"
ENDED = ("TERMINATED", "CANCELLED", "ERROR")
OURS = {"ps -aq": "ai.perijove.kernel", "network ls -q": "ai.perijove.network=session"}
"""With which labels engines list what they have of sessions."""


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

    def __init__(self, hosts: Hosts, database: str | None = None) -> None:
        self.hosts, self.state = hosts, hosts.folder / "state"
        self._environ = {} if database is None else {"PERIJOVE_DB_URL": database}
        self.url = f"http://{hosts.gateway}:{free_port()}"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """The manager, then an agent on each host."""
        self.state.mkdir(mode=0o700, exist_ok=True)
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

    def start_manager(self, agent_timeout: float = 8, name: str = "manager") -> None:
        """A manager at ``url``, until it answers."""
        self._start(name, [*PROGRAM, "manager", "--state-dir", str(self.state),
            "--bind", self.url.removeprefix("http://"), "--ManagerConfig.heartbeat_interval=1",
            f"--ManagerConfig.agent_timeout={agent_timeout}", "--ManagerConfig.tick=2"])  # fmt: skip
        until(lambda: self._answers(name), bool)

    def start_agent(
        self,
        host: Host,
        more: dict[str, str] | None = None,
        *,
        another: str = "",
        given: Sequence[str] = (),
    ) -> None:
        """An agent inside the host: ``more`` for its environment, options that are ``given``.

        ``another`` goes into the names of a second one beside the first.
        """
        secret = self._secrets()["agent_token"]
        name = host.name + another
        options = ["--agent-id", name, "--address", host.address, "--manager-url", self.url,
            "--engine", "docker", "--state-dir", str(host.folder / f"agent{another}"),
            f"--AgentConfig.volumes=local={self.state}/volumes/local",
            "--AgentConfig.relist_interval=1", "--AgentConfig.stop_grace=1", *given]  # fmt: skip
        environ = {"DOCKER_HOST": host.socket, "PERIJOVE_AGENT_TOKEN": secret, **(more or {})}
        self._start(name, host.inside(*PROGRAM, "agent", *options), environ)

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
            headers={**self.headers(user), "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            raw = response.read()
        return json.loads(raw) if raw else None

    def headers(self, user: str = USER) -> dict[str, str]:
        """With which a request is one of ``user``."""
        secret = self._secrets()["hub_secret"]
        return {"Authorization": f"Bearer {secret}", "X-Perijove-User": user}

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

    def live(self) -> list[str]:
        """Ids of everybody's sessions that have not ended."""
        found = self.call("GET", "/sessions?all=1", user="admin")["sessions"]
        return [each["id"] for each in found if each["status"] not in ENDED]

    def end_all(self) -> None:
        """End everybody's sessions; engines have nothing of them any more."""
        for ref in self.live():
            self.call("DELETE", f"/session/{ref}", user="admin")
        until(self.live, lambda left: not left, 90)
        until(self._left, lambda left: not left, 90)

    def _left(self) -> list[str]:
        """What engines have of sessions."""
        return [
            f"{host.name} {words}: {each}"
            for host in self.hosts.all
            for words, label in OURS.items()
            for each in sh(
                "docker", "-H", host.socket, *words.split(), "--filter", f"label={label}"
            ).split()
        ]

    def agents(self) -> dict[str, Any]:
        """Connected agents by id."""
        found = self.call("GET", "/agents", user="admin")["agents"]
        return {each["id"]: each for each in found if each["connected"]}

    def audit(self) -> str:
        """What ``perijove audit`` says; nothing differs."""
        where = [f"--db-url={url}" for url in self._environ.values()]
        return audit(self.state, "--no-routes", "--manager-url", self.url, *where)

    def kill(self, name: str) -> None:
        """``kill -9`` one of the processes."""
        self.processes[name].kill()
        self.processes[name].wait()

    def story(self) -> str:
        """The ends of all logs."""
        logs = sorted(self.state.glob("*.log"))
        return "\n".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in logs)

    def _answers(self, name: str) -> bool:
        assert self.processes[name].poll() is None, self.story()
        with contextlib.suppress(OSError):
            return bool(self.call("GET", "/health"))
        return False

    def command(self, *words: str) -> str:
        """What a ``perijove`` command on the manager's host prints."""
        command = [*PROGRAM, *words, "--state-dir", str(self.state)]
        environ = {**os.environ, **self._environ}
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environ)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _secrets(self) -> dict[str, str]:
        kept: dict[str, str] = json.loads((self.state / "secrets.json").read_text())
        return kept

    def _start(self, name: str, command: list[str], environ: dict[str, str] | None = None) -> None:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("PERIJOVE_")}
        with (self.state / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env={**inherited, **self._environ, **(environ or {})},
            )


@contextlib.contextmanager
def running_platform(hosts: Hosts, database: str | None = None) -> Iterator[Platform]:
    """A platform inside the block, on a SQLite file where no ``database`` is given."""
    made = Platform(hosts, database)
    try:
        made.start()
        yield made
    finally:
        made.stop()
