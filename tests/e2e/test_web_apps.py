"""Web apps of sessions in containers, through the hub's proxy: streams, WebSockets, owners only, a real browser."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.e2e.lab import SLOW, Person
from tests.e2e.platform import Platform, until
from tests.e2e.web_image import BACKEND_AI, SCALAR, ensure_backend_ai_image, ensure_web_image
from tests.harness.apart import apart
from tests.integration.docker_engine import ensure_session_image, running_engine

pytestmark = [pytest.mark.e2e, pytest.mark.docker, pytest.mark.timeout(400)]

PROBE = "0123456789abcdef" * 2
CONFIG = f"""
c.JupyterHub.services.append({{"name": "probe", "api_token": "{PROBE}"}})
c.JupyterHub.load_roles.append({{
    "name": "probe", "services": ["probe"],
    "scopes": ["admin:users", "tokens", "list:users", "custom:perijove:admin",
        "access:services", "custom:perijove:sessions", "custom:perijove:vfolder:write"],
}})
"""
APP = Path(__file__).with_name("web_app.py").read_text()
FORGET = "rm -rf /home/work/.jupyter/lab\n"
"""The home folder remembers what an earlier session had open, and JupyterLab would open that again."""
MEGABYTES = 200
MOST_GROWTH = 64 * 1024 * 1024


@dataclass
class Answer:
    status: int
    headers: Message
    body: bytes


@dataclass
class Client:
    """A person's programs, with a token of the hub."""

    platform: Platform
    token: str

    @contextmanager
    def open(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> Iterator[http.client.HTTPResponse]:
        """An answer whose body is read inside the block."""
        connection = http.client.HTTPConnection("127.0.0.1", self.platform.port, timeout=60)
        raw = isinstance(body, bytes | Iterator) or body is None
        try:
            connection.request(
                method,
                path,
                body if raw else json.dumps(body).encode(),
                {
                    "Authorization": f"token {self.token}",
                    "Content-Type": "application/json",
                    "Connection": "close",
                    **headers,
                },
                encode_chunked=isinstance(body, Iterator),
            )
            with connection.getresponse() as answer:
                yield answer
        finally:
            connection.close()

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        with self.open(method, path, body, **headers) as answer:
            return Answer(answer.status, answer.headers, answer.read())

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status, and what the JSON of the answer says if it is that."""
        answer = self.call(method, path, body)
        is_json = answer.body.startswith((b"{", b"["))
        return answer.status, json.loads(answer.body) if is_json else answer.body


def client(platform: Platform, user: str) -> Client:
    """Add a person, if need be, and make them a token."""
    probe = Client(platform, PROBE)
    platform.add_user(user)
    assert probe.ask("POST", f"/hub/api/users/{user}")[0] in (201, 409)
    status, token = probe.ask("POST", f"/hub/api/users/{user}/tokens", {})
    assert status == 201, token
    return Client(platform, token["token"])


def session(
    owner: Client, name: str, script: str, image: str = "", mounts: tuple[str, ...] = ()
) -> str:
    """A session that runs; ``script`` is run at its start."""
    body = {
        "name": name,
        "image": image or ensure_session_image(),
        "enqueueOnly": True,
        "bootstrap_script": script,
        "config": {
            "resources": {"cpu": "0.5", "mem": "1g"},
            "preopen_ports": [9000],
            "mounts": mounts,
        },
    }
    status, made = owner.ask("POST", "/services/perijove/session", body)
    assert status == 201, made
    made_id = str(made["sessionId"])

    def runs() -> bool:
        _, told = owner.ask("GET", f"/services/perijove/session/{made_id}")
        assert told["status"] not in ("ERROR", "TERMINATED", "CANCELLED"), told
        return bool(told["status"] == "RUNNING")

    until(runs, "the session never ran")
    until(network_is_quiet, "an interface has no address yet")
    return made_id


def network_is_quiet() -> bool:
    """Whether no interface is about to get its address: a container's does two seconds after its start (IPv6,
    duplicate address detection), and Chromium drops all that it loads whenever an address comes or goes."""
    shown = subprocess.run(
        ["ip", "-6", "-o", "addr", "show", "tentative"], check=True, capture_output=True
    )
    return not shown.stdout


def started(port: int) -> str:
    """A script that starts the small app."""
    return (
        f"cat > /tmp/app.py <<'END'\n{APP}\nEND\n"
        f"nohup python3 /tmp/app.py {port} >/tmp/app.log 2>&1 &\n"
    )


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with running_engine():
        ensure_web_image()  # before the agent lists its images
        ensure_backend_ai_image()
        state = tmp_path_factory.mktemp("web") / "state"
        platform = Platform(state, "docker", config=CONFIG)
        platform.start(timeout=600)
        try:
            yield platform
        finally:
            print(platform.logs())
            platform.end()


@pytest.fixture(scope="module")
def ada(platform: Platform) -> Client:
    return client(platform, "ada")


@pytest.fixture(scope="module")
def app(platform: Platform, ada: Client) -> str:
    """Path of the small app of a session of ada's."""
    made = session(ada, "small-app", started(9000))
    path = f"/services/perijove-apps/{made}/9000/"
    until(lambda: ada.ask("GET", f"{path}headers")[0] == 200, "the app never answered")
    return path


def test_requests_reach_the_app_and_say_nothing_of_ours(app: str, ada: Client) -> None:
    status, told = ada.ask("GET", f"{app}headers?a=%2F&b=ä".replace("ä", "%C3%A4"))
    assert status == 200
    assert told["path"] == "/headers?a=%2F&b=%C3%A4"
    assert "Authorization" not in told
    assert ada.token not in json.dumps(told)
    assert told["X-Forwarded-Prefix"] == app.rstrip("/")
    assert told["X-Forwarded-Host"] == told["Host"] == f"127.0.0.1:{ada.platform.port}"
    redirect = ada.call("GET", f"{app}redirect")
    assert (redirect.status, redirect.headers["Location"]) == (302, f"{app}headers")
    page = ada.call("GET", app)
    assert page.headers["Set-Cookie"] == f"mine=1; Path={app}"
    assert page.headers["ETag"], "headers of the app come through"
    again = ada.call("GET", app, **{"If-None-Match": page.headers["ETag"]})
    assert (again.status, again.body) == (304, b"")
    assert ada.call("HEAD", app).headers["Content-Length"] == page.headers["Content-Length"]
    slashless = ada.call("GET", app.rstrip("/"))
    assert (slashless.status, slashless.headers["Location"]) == (302, app)


def test_others_do_not_get_in(app: str, platform: Platform, ada: Client) -> None:
    eve, admin = client(platform, "eve"), client(platform, "admin")
    for stranger in (eve, admin):
        assert stranger.ask("GET", f"{app}headers")[0] == 404
    assert Client(platform, "wrong").ask("GET", f"{app}headers")[0] == 401
    narrow = Client(platform, PROBE).ask(
        "POST", "/hub/api/users/ada/tokens", {"scopes": ["read:users:name!user"]}
    )
    assert Client(platform, narrow[1]["token"]).ask("GET", f"{app}headers")[0] == 403
    session_id = app.split("/")[3]
    for name, status in (("sshd", 404), ("terminal", 404), ("nothing", 404), ("9000:x", 404)):
        assert ada.ask("GET", f"/services/perijove-apps/{session_id}/{name}/")[0] == status, name


def test_bodies_are_carried_as_they_come(app: str, platform: Platform, ada: Client) -> None:
    manager = psutil.Process(platform.pid_of("manager"))
    before = manager.memory_info().rss
    piece = bytes(range(256)) * 4096
    digest = hashlib.sha256()
    for _ in range(MEGABYTES):
        digest.update(piece)

    begun = time.monotonic()
    up = ada.call("PUT", f"{app}stream", iter([piece] * MEGABYTES))
    assert json.loads(up.body) == [MEGABYTES * len(piece), digest.hexdigest()]
    middle = time.monotonic()
    got, most = hashlib.sha256(), manager.memory_info().rss
    with ada.open("GET", f"{app}stream?megabytes={MEGABYTES}") as down:
        while data := down.read(1 << 20):
            got.update(data)
            most = max(most, manager.memory_info().rss)
    assert got.digest() == digest.digest()
    both = ada.call("POST", f"{app}stream", iter([piece] * 4))
    assert both.body == piece * 4
    print(
        f"{MEGABYTES} MiB up in {middle - begun:.1f} s, down in {time.monotonic() - middle:.1f} s;"
        f" the manager grew by {(most - before) >> 20} MiB"
    )
    assert most - before < MOST_GROWTH


def test_nothing_is_held_back(app: str, ada: Client) -> None:
    with ada.open("GET", f"{app}gate") as slow:
        assert slow.readline() == b"one\n"
        assert ada.ask("POST", f"{app}gate")[0] == 200
        assert slow.read() == b"two\n"


def test_websockets_are_carried(app: str, ada: Client) -> None:
    async def talk() -> None:
        headers = {"Authorization": f"token {ada.token}"}
        url = f"{ada.platform.url}{app}ws"
        async with aiohttp.ClientSession(headers=headers) as http_client:
            connecting = http_client.ws_connect(url, protocols=["x", "echo"], max_msg_size=1 << 26)
            async with asyncio.timeout(60), connecting as socket:
                assert socket.protocol == "echo"
                big = b"x" * (8 << 20)
                for said in ("text", big):
                    await (
                        socket.send_bytes(said)
                        if isinstance(said, bytes)
                        else socket.send_str(said)
                    )
                    assert (await socket.receive()).data == said
                await socket.send_str("close")
                closed = await socket.receive()
                assert (closed.type, closed.data) == (aiohttp.WSMsgType.CLOSE, 4001)
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await http_client.ws_connect(f"{ada.platform.url}{app}nothing")
            assert refused.value.status == 404

    apart(lambda: asyncio.run(talk()))


def test_an_image_made_for_backend_ai_runs_and_its_apps_are_started(ada: Client) -> None:
    """Though nobody listens at the port that was asked for, nor starts what its labels name."""
    made = session(ada, "made-for-another", "", BACKEND_AI)
    path = f"/services/perijove-apps/{made}"
    status, page = ada.ask("GET", f"{path}/tensorboard/")
    assert (status, b"Directory listing" in page) == (200, True), page
    assert ada.ask("GET", f"{path}/9000/")[0] == 503
    end(ada, made)


@pytest.fixture
def person(platform: Platform, browser: Browser, shots: Path) -> Iterator[Person]:
    """The administrator, logged in."""
    context = browser.new_context(viewport={"width": 1100, "height": 700})
    context.on("requestfailed", lambda request: print(request.url, request.failure))
    person = Person(context.new_page(), platform.url, shots)
    try:
        person.log_in("admin", platform.password)
        yield person
        for number, page in enumerate(context.pages):
            kept(page, shots, f"apps-last-{number}")
    finally:
        context.close()


def opened(person: Person, link: str) -> Page:
    """The page that a link on the page of sessions opens."""
    person.page.goto(f"{person.url}/services/perijove/")
    with person.page.context.expect_page() as page:
        person.page.get_by_role("link", name=link, exact=True).click()
    page.value.set_default_timeout(SLOW)
    return page.value


def kept(page: Page, shots: Path, name: str) -> None:
    page.screenshot(path=shots / f"{name}.png")


def test_a_port_of_a_program_in_a_browser(platform: Platform, person: Person, shots: Path) -> None:
    admin = client(platform, "admin")
    made = session(admin, "preopened", started(9000))
    path = f"/services/perijove-apps/{made}/9000/"
    until(lambda: admin.ask("GET", f"{path}headers")[0] == 200, "the app never answered")
    page = opened(person, "9000 of preopened")
    expect(page.locator("#said")).to_have_text("echo: hello", timeout=SLOW)
    expect(page).to_have_title("asked")
    assert page.url == f"{platform.url}{path}"
    kept(page, shots, "apps-2-small-app")
    cookies = {each["name"]: each for each in page.context.cookies()}
    assert cookies["mine"]["path"] == path
    assert cookies["service-perijove-apps"]["httpOnly"]
    assert cookies["service-perijove-apps"]["sameSite"] == "Lax"
    told = page.evaluate("fetch('headers', {method: 'POST'}).then((each) => each.json())")
    assert told["Cookie"] == "mine=1", told
    assert page.evaluate("document.cookie") == "mine=1"
    # A page of another site gets nothing, cookie or not.
    other = page.context.request.post(
        f"{platform.url}{path}headers", headers={"Origin": "http://elsewhere.example"}
    )
    assert other.status == 403
    end(admin, made)


def test_apps_of_an_image_in_a_browser(platform: Platform, person: Person, shots: Path) -> None:
    admin = client(platform, "admin")
    write = f"{FORGET}python3 - <<'END'\n{SCALAR}\nEND\n"
    made = session(admin, "many-apps", write, ensure_web_image())

    page = opened(person, "slow of many-apps")
    expect(page.locator("h1")).to_have_text("slow is starting")
    kept(page, shots, "apps-3-starting")
    expect(page.locator("#said")).to_have_text("echo: hello", timeout=SLOW)
    person.shot("apps-1-sessions")

    page = opened(person, "broken of many-apps")
    expect(page.locator("body")).to_contain_text("broken ended with status 4: no licence")
    kept(page, shots, "apps-4-broken")

    page = opened(person, "TensorBoard of many-apps")
    expect(page.locator("body")).to_contain_text(re.compile("loss"), timeout=SLOW)
    page.locator("card-view, scalar-card").first.wait_for(timeout=SLOW)
    kept(page, shots, "apps-5-tensorboard")

    lab = Person(opened(person, "lab of many-apps"), platform.url, shots)
    lab.page.wait_for_url(re.compile(rf"/services/perijove-apps/{made}/lab/lab"), timeout=SLOW)
    lab.page.locator(".jp-LauncherCard").first.wait_for(timeout=SLOW)
    lab.open_notebook()
    lab.run_cell("print(6 * 7)", "42")
    lab.shot("apps-6-jupyterlab")
    end(admin, made)


def test_jupyterlab_of_a_session_that_no_hub_asked_for(
    platform: Platform, person: Person, shots: Path
) -> None:
    admin = client(platform, "admin")
    made = session(admin, "by-program", FORGET, ensure_web_image())
    path = f"/services/perijove-apps/{made}/jupyterlab/"
    lab = Person(opened(person, "JupyterLab of by-program"), platform.url, shots)
    lab.page.wait_for_url(re.compile(rf"{path}lab"), timeout=SLOW)
    lab.page.locator(".jp-LauncherCard").first.wait_for(timeout=SLOW)
    lab.open_notebook()
    lab.run_cell("print(6 * 7)", "42")
    lab.open_terminal("echo $PERIJOVE_SESSION_NAME > named.txt")
    named = f"{platform.url}{path}api/contents/named.txt"
    asked = lab.page.request.get
    until(lambda: "by-program" in asked(named).text(), "nothing was typed into the terminal")
    lab.shot("apps-9-jupyterlab-of-a-program")
    # Its server takes all that comes with its token, which the proxy gives to nobody but the owner's own pages.
    elsewhere = {"Origin": "http://elsewhere.example"}
    refused = lab.page.request.post(f"{platform.url}{path}api/contents", headers=elsewhere)
    assert refused.status == 403
    assert Client(platform, "wrong").ask("GET", f"{path}api/status")[0] == 401
    assert client(platform, "eve").ask("GET", f"{path}api/status")[0] == 404
    assert admin.ask("GET", f"{path}api/status")[0] == 200
    end(admin, made)


PAINTED = {"terminal.integrated.gpuAcceleration": "off"}
"""What VS Code's terminal prints is text of the page then, and not painted."""
CODE = """
import os
print(os.environ["PERIJOVE_SESSION_NAME"], os.listdir("/home/work/numbers"))
"""


def test_vs_code_in_a_browser(platform: Platform, person: Person, shots: Path) -> None:
    admin = client(platform, "admin")
    assert admin.ask("POST", "/services/perijove/folders", {"name": "numbers"})[0] == 201
    script = "cd /home/work; echo '# What is it?' > answer.py; touch numbers/one.csv\n"
    script += f"mkdir .vscode; echo '{json.dumps(PAINTED)}' > .vscode/settings.json\n"
    made = session(admin, "coding", script, ensure_web_image(), ("numbers",))
    page = opened(person, "VS Code of coding")
    page.locator(".monaco-workbench").wait_for()

    page.get_by_text("answer.py").first.dblclick()
    lines = page.locator(".editor-instance .view-lines")
    expect(lines).to_contain_text("What", timeout=SLOW)
    lines.click()
    page.keyboard.press("Control+End")
    page.keyboard.insert_text(CODE)
    expect(lines).to_contain_text("numbers", timeout=SLOW)
    page.keyboard.press("Control+s")
    on_disk = next((platform.state / "volumes").rglob("answer.py"))
    whole = f"# What is it?\n{CODE}"
    until(lambda: on_disk.read_text() == whole, "it was not saved")

    page.keyboard.press("Control+`")
    # The question whether the folder is to be trusted comes when the terminal is there already, and takes the keys.
    page.get_by_role("dialog").get_by_role("button", name=re.compile("^Trust")).click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    # It gives the keys back to whoever had them: the editor, if it came before the terminal had them.
    page.locator(".terminal .xterm-screen").click()
    shell = page.get_by_role("textbox", name=re.compile("^Terminal 1"))
    expect(shell).to_be_focused(timeout=SLOW)
    page.keyboard.type("python3 answer.py\n")
    expect(page.locator(".xterm-rows")).to_contain_text("coding ['one.csv']", timeout=SLOW)
    assert on_disk.read_text() == whole, "no key went to the editor"
    kept(page, shots, "apps-7-vscode")
    page.emulate_media(color_scheme="dark")
    expect(page.locator(".monaco-workbench.vs-dark")).to_be_visible(timeout=SLOW)
    kept(page, shots, "apps-8-vscode-dark")
    end(admin, made)


def end(owner: Client, session_id: str) -> None:
    """End a session, and see its container and its interface go."""
    path = f"/services/perijove/session/{session_id}"
    assert owner.ask("DELETE", path)[0] == 200
    until(lambda: owner.ask("GET", path)[1].get("status") == "TERMINATED", "it never ended")
