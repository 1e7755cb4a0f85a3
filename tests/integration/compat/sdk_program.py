"""What a user of ``backend.ai-client`` 23.09 does; run with that client's own Python.

Prints one JSON object: what each call answered. Endpoint and keys come from the environment.
"""

import asyncio
import base64
import contextlib
import json
import os
import subprocess
import sys

from ai.backend.client.config import APIConfig
from ai.backend.client.exceptions import BackendAPIError
from ai.backend.client.request import Request
from ai.backend.client.session import AsyncSession, Session

IMAGE = os.environ["PERIJOVE_TEST_IMAGE"]
RESOURCES = {"cpu": "0.5", "mem": "512m"}


def refused(call):
    """Status and kind of a refusal."""
    try:
        call()
    except BackendAPIError as error:
        return [error.status, error.data["type"].rpartition("/")[2]]
    return None


def ask(session):
    """What there is, and what the caller may have."""
    told = {"hello": session.System.get_versions()}
    told["presets"] = [each["name"] for each in session.Resource.list()["presets"]]
    told["fits"] = {
        each["name"]: each["allocatable"] for each in session.Resource.check_presets()["presets"]
    }
    told["groups"] = [each["name"] for each in session.ScalingGroup.list_available("default")]
    return told


def live(session):
    """Create, take again, look, read, rename, restart, end."""
    told = {}
    made = session.ComputeSession.get_or_create(IMAGE, name="sdk-first", resources=RESOURCES)
    told["created"], told["status"] = made.created, made.status
    again = session.ComputeSession.get_or_create(IMAGE, name="sdk-first", resources=RESOURCES)
    told["reused"] = [again.created, str(again.id) == str(made.id)]
    info = made.get_info()
    told["info"] = [info["status"], json.loads(info["occupiedSlots"])["cpu"]]
    told["logs"] = isinstance(made.get_logs()["result"]["logs"], str)
    told["history"] = sorted(name for name in made.get_status_history()["result"] if name.isupper())
    told["apps"] = [app["name"] for app in made.stream_app_info()]
    made.rename("sdk-second")
    told["renamed"] = session.ComputeSession("sdk-second").get_info()["status"]
    told["taken"] = refused(
        lambda: session.ComputeSession.get_or_create(
            IMAGE, name="sdk-second", resources=RESOURCES, no_reuse=True
        )
    )
    told["missing"] = refused(lambda: session.ComputeSession("no-such-one").get_info())
    told["too_little"] = refused(
        lambda: session.ComputeSession.get_or_create(
            IMAGE, name="sdk-wrong", resources={"cpu": "-1", "mem": "1g"}
        )
    )
    told["destroyed"] = session.ComputeSession("sdk-second").destroy()
    return told


def keep(session):
    """Folders."""
    made = session.VFolder.create("sdk-data")
    told = {"made": made["name"], "hosts": session.VFolder.list_hosts()["default"]}
    told["listed"] = "sdk-data" in [each["name"] for each in session.VFolder.list()]
    told["taken"] = refused(lambda: session.VFolder.create("sdk-data"))
    session.VFolder("sdk-data").delete()
    told["gone"] = "sdk-data" not in [each["name"] for each in session.VFolder.list()]
    return told


async def tunnel(made, app):
    """What an app says to a first line through a tunnel."""
    async with made.stream_pty() as terminal:
        typed = base64.b64encode(b"echo $((40 + 2))\n").decode()
        await terminal.send_str(json.dumps({"type": "stdin", "chars": typed}))
        seen = b""
        async for message in terminal:
            told = json.loads(message.data)
            seen += base64.b64decode(told.get("data", ""))
            if b"42" in seen:
                break
    path = f"/stream/session/{made.id}/tcpproxy"
    request = Request("GET", path, params={"app": app}, content_type="application/octet-stream")
    async with request.connect_websocket() as socket:
        await socket.send_bytes(b"GET /api HTTP/1.0\r\n\r\n")
        answer = b""
        async for message in socket:
            answer += message.data
    return [b"42" in seen, answer.split(b"\r\n")[0].decode()]


async def open_apps():
    """A terminal and a tunnel to the session's server."""
    async with AsyncSession() as session:
        made = await session.ComputeSession.get_or_create(
            IMAGE, name="sdk-apps", resources=RESOURCES
        )
        told = await tunnel(made, "jupyterlab")
        await made.destroy()
        return told


async def watch():
    """Events of a session that is forced to end, through the asynchronous client."""
    async with AsyncSession() as session:
        made = await session.ComputeSession.get_or_create(
            IMAGE, name="sdk-watched", resources=RESOURCES
        )
        heard = []

        async def listen():
            async with made.listen_events() as events:
                async for event in events:
                    heard.append(event.event)
                    if event.event == "session_terminated":
                        return

        listening = asyncio.create_task(listen())
        await asyncio.sleep(0.5)  # the client has no sign of being subscribed
        await made.destroy(forced=True)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(listening, 20)
        return heard


def bring(session):
    """Dotfiles of each kind of owner, through functions."""
    told, dotfile = {}, session.Dotfile
    for name, owner in (
        ("user", {}),
        ("group", {"group": "default", "domain": "default"}),
        ("domain", {"domain": "default"}),
    ):
        made = dotfile.create("one", f".{name}", "644", **owner)
        made.update("two", "600")
        told[name] = [made.get(), dotfile.list_dotfiles(**owner), made.delete()]
    told["twice"] = refused(lambda: [dotfile.create("", ".x", "644") for _ in range(2)])
    dotfile(".x").delete()
    told["missing"] = refused(lambda: dotfile(".x").get())
    told["reserved"] = refused(lambda: dotfile.create("", ".ssh/authorized_keys", "644"))
    told["mine"] = dotfile.list_dotfiles(owner_access_key=os.environ["BACKEND_ACCESS_KEY"])
    return told


def program(session):
    """Code that asks, and a program that it starts."""
    made = session.ComputeSession.get_or_create(IMAGE, name="sdk-code", resources=RESOURCES)
    code = "print('hello', input('who? '))\n!read more; echo and $more"
    answers, told = ["ada", "bob"], {"console": []}
    answer = made.execute(None, code)
    while True:
        told["console"] += answer["console"]
        if answer["status"] == "finished":
            break
        asked = answer["status"] == "waiting-input"
        mode, text = ("input", answers.pop(0)) if asked else ("continue", "")
        answer = made.execute(answer["runId"], text, mode=mode)
    told["code"] = answer["exitCode"]
    told["completions"] = made.complete("prin")["result"]["completions"]
    made.interrupt()
    told["unknown"] = refused(lambda: made.execute("nosuch", "", mode="continue"))
    made.destroy()
    return told


def command(typed, *words):
    """All that the command ``backend.ai`` prints."""
    said = {"input": typed, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.run(
        [sys.executable, "-m", "ai.backend.cli", *words], check=False, **said
    ).stdout


def commands():
    """Dotfiles and code that asks, as people use them; no connection is open meanwhile, it would grow stale."""
    told = {}
    for words in (["create", ".cli"], ["list"], ["get", ".cli"], ["delete", "-f", ".cli"]):
        told[words[0]] = command("set -o vi", "dotfile", *words)
    code = "print(40 + int(input('more? ')))"
    amounts = ("-r", "cpu=0.5", "-r", "mem=512m")
    told["run"] = command("2\n", "run", "-t", "sdk-run", "--rm", *amounts, "-c", code, IMAGE)
    return told


async def send(method, path, body=None):
    """The answer to a request that the client has no function for."""
    async with AsyncSession():
        request = Request(method, path)
        if body is not None:
            request.set_json(body)
        async with request.fetch() as response:
            return await response.json()


async def keys():
    """A key for SSH, and a bootstrap script."""
    path, script = "/auth/ssh-keypair", "/user-config/bootstrap-script"
    made = await send("PATCH", path)
    told = [made, await send("GET", path)]
    told.append(await send("POST", path, {"pubkey": made["ssh_public_key"], "privkey": None}))
    told.append(await send("POST", script, {"script": "echo begun"}))
    told.append(await send("GET", script))
    await send("POST", script, {"script": ""})
    return told


def main():
    told = {}
    for part in (ask, live, keep, bring, program):
        with Session() as session:
            told[part.__name__] = part(session)
    told["commands"] = commands()
    told["apps"] = asyncio.run(open_apps())
    told["watch"] = asyncio.run(watch())
    told["keys"] = asyncio.run(keys())
    with Session(config=APIConfig(secret_key="x" * 40)) as stranger:
        told["wrong_key"] = refused(stranger.Resource.list)
    json.dump(told, sys.stdout, default=str)


main()
