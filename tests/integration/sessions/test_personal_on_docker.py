"""What people bring into their sessions, in containers: dotfiles, a bootstrap script, and SSH through the manager."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tornado.httpclient import HTTPRequest
from tornado.websocket import WebSocketClientConnection, websocket_connect

from authenticator.principals import Role
from hub.api.connections import CLOSED_BY_POLICY
from hub.api.execution import MOST_ANSWERS
from spawner.sessions.execution import KEY
from spawner.sessions.states import Status
from tests.integration.docker_engine import ensure_session_image, ensure_test_image, running_engine
from tests.integration.sessions.docker_node import OWNER, USER, Site, site
from tests.unit.api.server import HUB_SECRET

pytestmark = [
    pytest.mark.integration,
    pytest.mark.docker,
    pytest.mark.timeout(300),
    pytest.mark.asyncio(loop_scope="module"),
]


@pytest.fixture(scope="module")
def session_image() -> Iterator[str]:
    with running_engine():
        ensure_test_image()
        yield ensure_session_image()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def _site(
    session_image: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Site]:
    async with site(tmp_path_factory.mktemp("personal")) as made:
        yield made


async def tell(node: Site, method: str, at: str, user: str = OWNER, **body: Any) -> Any:
    answer = await node.api.hub(method, at, body or None, user)
    assert answer.status == 200, answer.body
    return answer.body


async def test_files_of_domain_project_and_user_come_as_asked(node: Site) -> None:
    await node.api.services.identity.create_user("root", role=Role.SUPERADMIN)
    files = (
        ("domain", "root", {"domain": "default"}, {".all": "444", ".two": "644", ".three": "600"}),
        ("group", "root", {"group": "default"}, {".two": "664", ".three": "600"}),
        ("user", OWNER, {}, {".three": "700", ".config/deep/x": "640"}),
    )
    for kind, who, owner, paths in files:
        for path, permission in paths.items():
            body = {"path": path, "permission": permission, "data": f"{kind}\n", **owner}
            await tell(node, "POST", f"/{kind}-config/dotfiles", who, **body)
    await tell(node, "POST", "/user-config/bootstrap-script", script="echo begun >~/begun")
    script = "cd /home/work; for f in .all .two .three .config/deep/x begun; do stat -c '%n %a %u' $f; cat $f; done"
    session = await node.submit("dotfiles", type="batch", startupCommand=script)
    assert (await node.reach(session)).status == Status.TERMINATED
    lines = (await node.logs(session)).splitlines()
    uid = USER[0]
    assert lines[-10:] == [
        *(f".all 444 {uid}", "domain", f".two 664 {uid}", "group"),
        *(f".three 700 {uid}", "user", f".config/deep/x 640 {uid}", "user"),
        *(f"begun 644 {uid}", "begun"),
    ]
    await tell(node, "POST", "/user-config/bootstrap-script", script="")
    await tell(
        node, "PATCH", "/user-config/dotfiles", path=".three", permission="600", data="new\n"
    )
    show = "stat -c %a ~/.three; cat ~/.three"
    again = await node.submit("dotfiles-again", type="batch", startupCommand=show)
    await node.reach(again)
    assert (await node.logs(again)).splitlines()[-2:] == ["600", "new"]


@asynccontextmanager
async def forwarded(node: Site, session: str) -> AsyncIterator[int]:
    """A port of this host behind which the session's SSH server is, through the manager's tunnel."""
    url = f"ws://{node.api.host}/stream/session/{session}/tcpproxy?app=sshd"
    headers = {"Authorization": f"Bearer {HUB_SECRET}", "X-Perijove-User": OWNER}

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        socket = await websocket_connect(HTTPRequest(url, headers=headers, request_timeout=90))

        async def up() -> None:
            while data := await reader.read(65536):
                await socket.write_message(data, binary=True)
            socket.close()

        sending = asyncio.create_task(up())
        try:
            while (data := await socket.read_message()) is not None:
                writer.write(data.encode() if isinstance(data, str) else data)
                await writer.drain()
        finally:
            sending.cancel()
            socket.close()
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    server = await asyncio.start_server(carry, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


class Client:
    """OpenSSH's programs with one key."""

    def __init__(self, folder: Path, port: int, key: Path) -> None:
        options = {
            "IdentityFile": key,
            "IdentitiesOnly": "yes",
            "BatchMode": "yes",
            "UserKnownHostsFile": folder / "known",
            "StrictHostKeyChecking": "accept-new",
            "LogLevel": "ERROR",
            "Port": port,
        }
        self._words = [f"-o{name}={value}" for name, value in options.items()]

    async def run(self, program: str, *words: str, text: str = "") -> tuple[int | None, str]:
        """Exit status, and all that it printed."""
        process = await asyncio.create_subprocess_exec(
            program,
            "-F/dev/null",
            *self._words,
            *words,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate(text.encode())
        return process.returncode, output.decode()


def write_key(path: Path, private: str) -> Path:
    path.write_text(private)
    path.chmod(0o600)
    return path


async def test_ssh_scp_and_sftp_with_the_owners_key(
    node: Site, session_image: str, tmp_path: Path
) -> None:
    private = (await tell(node, "PATCH", "/auth/ssh-keypair"))["ssh_private_key"]
    key = write_key(tmp_path / "key", private)
    session = await node.submit("with-ssh", image=session_image, resources={"mem": "512m"})
    await node.reach(session, Status.RUNNING)
    # Only sessions that start later let the newer key in.
    newer = (await tell(node, "PATCH", "/auth/ssh-keypair"))["ssh_private_key"]
    other = write_key(tmp_path / "other", newer)
    async with forwarded(node, session) as port:
        owner, stranger = (Client(tmp_path, port, each) for each in (key, other))
        here = "work@127.0.0.1"
        told = await owner.run(
            "ssh", here, "whoami; echo $HOME $PERIJOVE_SESSION_NAME; cat; exit 3", text="in"
        )
        assert told == (3, "work\n/home/work with-ssh\nin")
        big = tmp_path / "big"
        big.write_bytes(bytes(range(256)) * 8192)
        assert await owner.run("scp", "-q", str(big), f"{here}:copy") == (0, "")
        assert await owner.run("scp", "-q", f"{here}:copy", str(tmp_path / "back")) == (0, "")
        assert (tmp_path / "back").read_bytes() == big.read_bytes()
        batch = f"put {big} folder/put\nget folder/put {tmp_path / 'got'}\n"
        code, said = await owner.run("sftp", "-b", "-", here, text=f"mkdir folder\n{batch}")
        assert code == 0, said
        assert (tmp_path / "got").read_bytes() == big.read_bytes()
        code, said = await stranger.run("ssh", here, "true")
        assert (code, "Permission denied (publickey)" in said) == (255, True)
    container = await node.container(session)
    found = await asyncio.to_thread(
        container.exec_run, ["sh", "-c", "grep -r PRIVATE /home/config/ssh"]
    )
    assert found.exit_code != 0, "no key of the owner is in the session"


async def test_ssh_into_an_image_without_a_label_for_it(node: Site, tmp_path: Path) -> None:
    """Where the image has no SSH server the refusal says so."""
    session = await node.submit("no-ssh")
    await node.reach(session, Status.RUNNING)
    answer = await node.api.hub("POST", f"/session/{session}/start-service", {"app": "sshd"}, OWNER)
    assert answer.status in (400, 503)
    assert "there is no SSH server in this image" in str(answer.body)


async def test_code_and_its_programs_ask(node: Site, session_image: str) -> None:
    session = await node.submit("with-code", image=session_image, resources={"mem": "512m"})
    await node.reach(session, Status.RUNNING)
    headers = {"Authorization": f"Bearer {HUB_SECRET}", "X-Perijove-User": OWNER}
    code = "name = input('who? ')\n!printf 'more? '; read more; echo got $more; nproc\nprint(name)"
    answers, seen, console = ["ada", "this"], [], ""
    body: dict[str, Any] = {"mode": "query", "code": code, "runId": None}
    while True:
        path = f"/session/{session}"
        answer = await node.api.send("POST", path, body, headers=headers, timeout=120)
        assert answer.status == 200, answer.body
        told = answer.body["result"]
        console += "".join(text for _, text in told["console"])
        if told["status"] != "continued":
            seen.append(told["status"])
        if told["status"] == "finished":
            break
        asked = told["status"] == "waiting-input"
        mode, text = ("input", answers.pop(0)) if asked else ("continue", "")
        body = {"mode": mode, "code": text, "runId": told["runId"]}
    assert seen == ["waiting-input", "waiting-input", "finished"]
    assert console.replace("\r\n", "\n") == "who? more? got this\n1\nada\n"
    answer = await node.api.hub("GET", f"/session/{session}", user=OWNER)
    assert await _execution_key(node, session) not in str(answer.body)
    assert "repl" not in {port["name"] for port in answer.body["servicePorts"]}


async def _execution_key(node: Site, session: str) -> str:
    """What the session's app demands of who asks it."""
    owner = await node.api.principal(OWNER)
    kernel = await node.api.plane.plane.apps.kernel(owner, session)
    return str(kernel.spec["environ"][KEY])


@asynccontextmanager
async def executing(node: Site, session: str) -> AsyncIterator[WebSocketClientConnection]:
    """A WebSocket that runs code."""
    url = f"ws://{node.api.host}/stream/session/{session}/execute"
    headers = {"Authorization": f"Bearer {HUB_SECRET}", "X-Perijove-User": OWNER}
    socket = await websocket_connect(HTTPRequest(url, headers=headers, request_timeout=90))
    try:
        yield socket
    finally:
        socket.close()


async def told_until(socket: WebSocketClientConnection, status: str) -> tuple[str, dict[str, Any]]:
    """What was printed until a frame has ``status``, and that frame."""
    console = ""
    while True:
        message = await socket.read_message()
        assert message is not None, console
        told = json.loads(message)
        console += "".join(text for _, text in told.get("console", ()))
        if told["status"] == status:
            return console, told
        assert told["status"] == "continued", told


async def test_code_is_run_over_a_websocket(node: Site, session_image: str) -> None:
    session = await node.submit("with-socket", image=session_image, resources={"mem": "512m"})
    await node.reach(session, Status.RUNNING)
    async with executing(node, session) as socket:
        await socket.write_message(json.dumps({"mode": "query", "code": "print(input('who? '))"}))
        console, _ = await told_until(socket, "waiting-input")
        assert console == "who? "
        await socket.write_message("ada")
        console, told = await told_until(socket, "finished")
        assert (console, told["exitCode"]) == ("ada\n", 0)
        assert await socket.read_message() is None

    for frame, sentence in (
        ("{", "truncated"),
        ('{"mode": "continue"}', "query or batch"),
        ('{"mode": "batch", "options": ["exec"]}', "`$.options`"),
        ('{"mode": "query", "code": 5}', "`$.code`"),
    ):
        async with executing(node, session) as socket:
            await socket.write_message(frame)
            _, told = await told_until(socket, "error")
            assert sentence in told["msg"]

    waits = "import time\nwhile True: time.sleep(0.1)"
    async with executing(node, session) as socket:
        await socket.write_message(json.dumps({"mode": "query", "code": waits}))
        for number in range(MOST_ANSWERS + 1):
            await socket.write_message(str(number))
        while await socket.read_message() is not None:
            pass
        assert socket.close_code == CLOSED_BY_POLICY
    async with executing(node, session) as socket:  # who was cut off was interrupted
        await socket.write_message(json.dumps({"mode": "query", "code": "print(6 * 7)"}))
        assert (await told_until(socket, "finished"))[0] == "42\n"


async def test_an_image_without_a_kernel_says_so(node: Site) -> None:
    session = await node.submit("no-code")
    await node.reach(session, Status.RUNNING)
    for path in ("", "/complete", "/interrupt"):
        body = {"mode": "query", "code": "1"}
        answer = await node.api.hub("POST", f"/session/{session}{path}", body, OWNER)
        assert (answer.status, answer.problem) == (400, "generic-bad-request")
        assert "it has no app repl" in answer.body["msg"]
    answer = await node.api.hub("POST", f"/session/{session}", {"mode": "continue"}, OWNER)
    assert "runId is required" in answer.body["msg"]
