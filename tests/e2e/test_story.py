"""The whole story in a real browser, on the process engine and on the docker engine."""

from __future__ import annotations

import http.client
import json
import re
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.e2e.lab import SLOW, Person
from tests.e2e.platform import Platform
from tests.integration.docker_engine import running_engine

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


@pytest.fixture(params=["process", pytest.param("docker", marks=pytest.mark.docker)])
def platform(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Platform]:
    engine = str(request.param)
    if engine == "docker":
        with running_engine():
            yield from started(tmp_path, engine)
    else:
        yield from started(tmp_path, engine)


def started(tmp_path: Path, engine: str) -> Iterator[Platform]:
    platform = Platform(tmp_path / "state", engine)
    # Building the image, once on a machine, takes a few minutes.
    platform.start(timeout=600 if engine == "docker" else 120)
    try:
        yield platform
    finally:
        if platform.process is not None and platform.process.poll() is None:
            platform.end()


def test_first_light(platform: Platform, browser: Browser, shots: Path) -> None:
    assert platform.password, "the password of the first administrator is shown once"
    assert platform.password not in platform.logs()
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    person = Person(context.new_page(), platform.url, shots)
    try:
        live_the_story(person, platform)
    except BaseException:
        person.shot(f"{platform.engine}-failed")
        print(platform.logs())
        raise
    finally:
        context.close()

    # Ctrl-C ends it all.
    assert platform.end(signal.SIGINT) == 0
    assert platform.leftovers() == []
    assert list((platform.state / "run").glob("*.json")) == []


def live_the_story(person: Person, platform: Platform) -> None:
    person.log_in("admin", platform.password)
    the_form_tells_and_refuses(person, platform)
    a_session_starts_and_works(person, platform)
    nobody_gets_in_past_the_proxy(platform)
    a_second_server_waits_its_turn(person, platform)
    the_notebook_survives(person, platform)
    the_second_server_works_beside_the_first(person, platform)
    an_administrator_sees_who_runs_what(person, platform)


def the_form_tells_and_refuses(person: Person, platform: Platform) -> None:
    page = person.page
    page.goto(f"{platform.url}/hub/spawn")
    page.locator("#perijove-form").wait_for()
    expect(page.locator(".perijove-badge-now").first).to_be_visible()
    person.shot(f"{platform.engine}-1-form")
    page.locator('input[name=preset][value="custom"]').check()
    page.locator("#field-cpu").fill("512")
    page.locator("#field-cpu").dispatch_event("change")
    expect(page.locator("body")).to_contain_text(re.compile(r"512 CPUs|more than"))
    page.get_by_role("button", name=re.compile("^Start")).click()
    expect(page.locator(".invalid-feedback")).to_contain_text(re.compile(r"CPU"))
    expect(page).to_have_url(re.compile(r"/hub/spawn"))
    person.shot(f"{platform.engine}-2-refused")


def a_session_starts_and_works(person: Person, platform: Platform) -> None:
    """It takes nearly all CPUs of the node, so that the next one has to wait."""
    page, engine = person.page, platform.engine
    page.goto(f"{platform.url}/hub/spawn")
    most = page.locator('.perijove-range[data-for="field-cpu"]').get_attribute("max")
    cpus = f"{float(most or 0) - 0.3:g}"
    person.start(cpu=cpus, mem="1")
    page.wait_for_url(re.compile(r"/spawn-pending/|/user/"))
    person.shot(f"{engine}-3-progress")
    person.lands_in_lab()
    told = person.told()
    assert any(sentence.lower().startswith("creating ") for sentence in told), told
    assert any(sentence.lower().startswith("starting ") for sentence in told), told
    person.shot(f"{engine}-4-launcher")
    person.open_notebook()
    person.run_cell("print(40 + 2)", "42")
    person.run_cell("from perijove import SessionInfo; SessionInfo()", f"{cpus} CPU")
    expect(page.locator(".jp-OutputArea-output .widget-html")).to_contain_text("RUNNING")
    person.save()
    person.shot(f"{engine}-5-notebook")
    statusbar = page.locator("#jp-main-statusbar")
    expect(statusbar).to_contain_text(f"{cpus} CPU", timeout=SLOW)
    person.open_terminal("echo from the terminal > terminal.txt")
    expect_file(person, "terminal.txt", "from the terminal")
    person.shot(f"{engine}-6-terminal")
    notebook = person.contents("admin", "Untitled.ipynb")
    assert notebook is not None
    assert "42" in json.dumps(notebook["content"])


def nobody_gets_in_past_the_proxy(platform: Platform) -> None:
    """The server asks for a log-in also at its own port, which others than the proxy may reach."""
    addresses = json.loads((platform.state / "deployment.json").read_text())
    token = json.loads((platform.state / "secrets.json").read_text())["proxy_token"]
    proxy = f"127.0.0.1:{addresses['proxy_api_port']}"
    _, _, routes = get(proxy, "/api/routes", {"Authorization": f"token {token}"})
    server = json.loads(routes)["/user/admin"]["target"].removeprefix("http://")
    for path in ("api/contents", "api/sessions", "perijove/session", "terminals/websocket/1"):
        for headers in ({}, {"Authorization": "token wrong"}):
            assert get(server, f"/user/admin/{path}", headers)[0] == 403, path
    status, location, _ = get(server, "/user/admin/lab", {})
    assert (status, "/hub/api/oauth2/authorize?" in location) == (302, True)


def get(host: str, path: str, headers: dict[str, str]) -> tuple[int, str, bytes]:
    """Status, where it leads, and body."""
    with closing(http.client.HTTPConnection(host, timeout=10)) as connection:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers.get("Location", ""), answer.read()


def a_second_server_waits_its_turn(person: Person, platform: Platform) -> None:
    """It says what it waits for, and starts when the first one is stopped."""
    page = person.page
    person.start(cpu="0.5", mem="0.5", server="/admin/second")
    page.wait_for_url(re.compile(r"/spawn-pending/admin/second"))
    waits = re.compile(r"queued, .*: waiting for 0\.2 CPUs", re.IGNORECASE)
    expect(page.locator("#perijove-state")).to_contain_text(waits, timeout=SLOW)
    person.shot(f"{platform.engine}-7-queued")
    other = Person(page.context.new_page(), platform.url, person.shots)
    other.stop_server()
    other.shot(f"{platform.engine}-8-home")
    other.page.close()
    page.wait_for_url(re.compile(r"/user/admin/second/lab"), timeout=SLOW)
    told = person.told()
    queued = next(n for n, sentence in enumerate(told) if waits.search(sentence))
    assert any(sentence.lower().startswith("starting ") for sentence in told[queued:]), told


def the_notebook_survives(person: Person, platform: Platform) -> None:
    """The first server was stopped; started again, it has what was saved."""
    person.start(cpu="0.5", mem="1")
    person.page.wait_for_url(re.compile(r"/user/admin/lab"), timeout=SLOW)
    person.lands_in_lab()
    again = person.contents("admin", "Untitled.ipynb")
    assert again is not None
    assert "42" in json.dumps(again["content"])


def the_second_server_works_beside_the_first(person: Person, platform: Platform) -> None:
    person.page.goto(f"{platform.url}/user/admin/second/lab/workspaces/fresh")
    person.lands_in_lab()
    person.open_notebook()
    person.run_cell("print(6 * 9 - 12)", "42")
    assert person.contents("admin", "terminal.txt", server="second") is not None
    assert person.contents("admin", "terminal.txt") is not None


def an_administrator_sees_who_runs_what(person: Person, platform: Platform) -> None:
    page = person.page
    with page.expect_response(re.compile("events/session")) as events:
        page.goto(f"{platform.url}/services/perijove/")
    assert events.value.status == 200
    expect(page.locator("#perijove-rows")).to_contain_text("admin-second", timeout=SLOW)
    expect(page.locator("#perijove-rows")).to_contain_text("running")
    expect(page.locator("#perijove-nodes")).to_contain_text(re.compile(r"CPUs?, \d+ % in use"))
    person.shot(f"{platform.engine}-9-sessions")
    page.goto(f"{platform.url}/hub/admin")
    expect(page.locator("body")).to_contain_text("admin")


def expect_file(person: Person, path: str, text: str) -> None:
    """Wait until the session's contents API has ``path`` with ``text`` in it."""
    for _ in range(200):
        file = person.contents("admin", path)
        if file is not None and text in str(file["content"]):
            return
        person.page.wait_for_timeout(100)
    raise AssertionError(f"{path} never appeared")
