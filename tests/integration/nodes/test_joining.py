"""Nodes join a real manager over mutual TLS, with tokens made on the command line, and leave again."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import os
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.harness.ports import free_port
from tests.integration.engines.conformance import until

pytestmark = pytest.mark.integration
PERIJOVE = str(Path(sys.executable).parent / "perijove")
HUB_SECRET = "hub-secret-for-tests-0123456789"


class Authority:
    """A certificate authority of the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        self.file = folder / "ca.pem"
        made = self._build(self.name, self.key.public_key()).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        self.file.write_bytes(self._pem(made))

    def issue(self, name: str) -> Path:
        """A file with key and certificate for ``name``, which is also good for the loopback address."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        names = [x509.DNSName(name), x509.DNSName("localhost")]
        made = self._build(subject, key.public_key()).add_extension(
            x509.SubjectAlternativeName(names), critical=False
        )
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        path = self.folder / f"{name}.pem"
        path.write_bytes(private + self._pem(made))
        return path

    def _build(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return x509.CertificateBuilder(
            issuer_name=self.name,
            subject_name=subject,
            public_key=key,
            serial_number=x509.random_serial_number(),
            not_valid_before=now - dt.timedelta(hours=1),
            not_valid_after=now + dt.timedelta(hours=1),
        )

    def _pem(self, builder: x509.CertificateBuilder) -> bytes:
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


class Cluster:
    """A manager process and agents, each with a state folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.authority = folder, Authority(folder)
        self.plain, self.secure = free_port(), free_port()
        self.environ = {
            **os.environ,
            "PERIJOVE_STATE": str(folder / "manager"),
            "PERIJOVE_HUB_SECRET": HUB_SECRET,
            "PERIJOVE_SERVICE_TOKEN": "service-token-for-tests-0123456789",
        }
        self.processes: dict[str, asyncio.subprocess.Process] = {}

    def command(self, *words: str) -> str:
        """What a command of the manager's host prints."""
        done = subprocess.run(
            [PERIJOVE, *words, "--state-dir", str(self.folder / "manager")],
            capture_output=True,
            text=True,
            env=self.environ,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def token(self, *words: str) -> tuple[str, str]:
        """A new agent token and its id."""
        said = self.command("token", "create", "--agent", *words)
        token, identity = re.search(r"only now: (\S+)", said), re.search(r"token (\S+);", said)
        assert token is not None
        assert identity is not None
        return token[1], identity[1]

    async def manager(self) -> None:
        own = self.authority.issue("localhost")
        await self._run(
            "manager",
            *("manager", f"--ManagerConfig.bind=['127.0.0.1:{self.plain}']"),
            f"--ManagerConfig.tls_bind=['127.0.0.1:{self.secure}']",
            f"--ManagerConfig.tls_certificate={own}",
            f"--ManagerConfig.tls_client_ca={self.authority.file}",
            environ=self.environ,
        )
        await until(lambda: self.listens(self.secure), "the manager does not listen")

    async def agent(
        self, name: str, token: str = "", cert: Path | None = None, url: str = ""
    ) -> None:
        """An agent named ``name``; with no token it has to have a credential."""
        file = self.folder / f"{name}.token"
        file.write_text(token)
        shown = [f"--cert-file={cert}"] if cert else []
        await self._run(
            name,
            *(
                "agent",
                "--engine=process",
                f"--manager={url or f'https://localhost:{self.secure}'}",
            ),
            *(f"--ca-file={self.authority.file}", f"--agent-id={name}", *shown),
            *([f"--token-file={file}"] if token else []),
            environ={**os.environ, "PERIJOVE_STATE": str(self.folder / name)},
        )

    async def _run(self, name: str, *words: str, environ: dict[str, str]) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = await asyncio.create_subprocess_exec(
                PERIJOVE, *words, env=environ, stdout=log, stderr=log
            )

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def listens(self, port: int) -> bool:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return True
        return False

    async def agents(self) -> dict[str, dict[str, Any]]:
        """What the manager says of its nodes."""
        url = f"https://localhost:{self.secure}/agents"
        context = ssl.create_default_context(cafile=self.authority.file)
        headers = {"Authorization": f"Bearer {HUB_SECRET}", "X-Perijove-User": "root"}
        async with (
            aiohttp.ClientSession() as http,
            http.get(url, ssl=context, headers=headers) as answer,
        ):
            assert answer.status == 200, await answer.text()
            return {each["id"]: each for each in (await answer.json())["agents"]}

    async def connected(self, name: str, *, alive: bool = True) -> None:
        async def seen() -> bool:
            found = (await self.agents()).get(name)
            return bool(found and found["connected"]) is alive

        try:
            await until(seen, f"{name} is not connected", 60)
        except TimeoutError as error:
            raise AssertionError(self.log(name) + self.log("manager")) from error

    async def end(self, name: str) -> int:
        process = self.processes.pop(name)
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        return await process.wait()


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    cluster = Cluster(tmp_path)
    cluster.command("db", "upgrade")
    cluster.command("user", "add", "root", "--admin")
    await cluster.manager()
    yield cluster
    for name in list(cluster.processes):
        await cluster.end(name)


async def told(cluster: Cluster, name: str, sentence: str) -> None:
    said: Callable[[], bool] = lambda: sentence in cluster.log(name)  # noqa: E731 - named for its type
    try:
        await until(said, sentence, 60)
    except TimeoutError as error:
        raise AssertionError(cluster.log(name) + cluster.log("manager")) from error


async def test_a_node_joins_stays_a_member_and_is_removed(cluster: Cluster) -> None:
    token, _ = cluster.token("--note", "the second node")
    cert = cluster.authority.issue("node-2")
    await cluster.agent("node-2", token, cert)
    await cluster.connected("node-2")
    kept = cluster.folder / "node-2/agent/credential.json"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert token not in kept.read_text()
    assert token not in cluster.log("node-2") + cluster.log("manager")
    # Started again without the token, it is still a member.
    await cluster.end("node-2")
    await cluster.agent("node-2", cert=cert)
    await cluster.connected("node-2")
    assert "closed" in cluster.command("node", "cordon", "node-2")
    assert re.search(r"node-2\s+default\s+ALIVE\s+closed", cluster.command("node", "list"))
    cluster.command("node", "drain", "node-2", "--grace=0s")
    cluster.command("node", "remove", "node-2")
    assert "node-2" not in cluster.command("node", "list")
    await told(cluster, "node-2", "refuses this agent")
    # The token made it a member once; another node cannot use it, and neither can this one again.
    await cluster.agent("node-3", token, cluster.authority.issue("node-3"))
    await told(cluster, "node-3", "refuses this agent")
    assert json.loads(kept.read_text())["credential"] != token


async def test_who_shows_no_certificate_or_another_ones_is_refused(cluster: Cluster) -> None:
    token, _ = cluster.token()
    await cluster.agent("node-9", token, cluster.authority.issue("node-8"))
    await told(cluster, "manager", "agent node-9 shows a certificate of localhost, node-8")
    await cluster.end("node-9")
    (cluster.folder / "elsewhere").mkdir()
    foreign = Authority(cluster.folder / "elsewhere").issue("node-9")
    await cluster.agent("node-9", token, foreign)
    await told(cluster, "node-9", "no connection to the manager")
    await cluster.end("node-9")
    assert await cluster.agents() == {}


async def test_a_revoked_token_closes_the_connection(cluster: Cluster) -> None:
    token, identity = cluster.token("--standing")
    await cluster.agent("node-2", token, cluster.authority.issue("node-2"))
    await cluster.connected("node-2")
    url = f"https://localhost:{cluster.secure}/agents/tokens/{identity}"
    context = ssl.create_default_context(cafile=cluster.authority.file)
    headers = {"Authorization": f"Bearer {HUB_SECRET}", "X-Perijove-User": "root"}
    async with (
        aiohttp.ClientSession() as http,
        http.delete(url, ssl=context, headers=headers) as answer,
    ):
        assert answer.status == 204, await answer.text()
    await told(cluster, "node-2", "refuses this agent")
    await cluster.connected("node-2", alive=False)


async def test_the_managers_own_host_needs_no_certificate(cluster: Cluster) -> None:
    token, _ = cluster.token()
    await cluster.agent("node-1", token, url=f"http://127.0.0.1:{cluster.plain}")
    await cluster.connected("node-1")
