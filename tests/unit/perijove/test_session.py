"""What a session learns about itself from its manager, and what it says when it learns nothing."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from perijove.__main__ import main
from perijove.session import (
    Access,
    NotExtended,
    NotInSession,
    SessionUnknown,
    age_text,
    extend,
    fetch,
)
from tests.harness.session_upstream import SESSION_ID, TOKEN, Upstream, description, upstream


@pytest.fixture
def manager() -> Iterator[Upstream]:
    with upstream() as running:
        yield running


def test_a_session_is_asked_for_by_its_id_with_its_token(manager: Upstream) -> None:
    facts = fetch(Access.from_environ(manager.environ()))
    assert manager.asked == [(f"/services/perijove/session/{SESSION_ID}", f"token {TOKEN}")]
    assert (facts.name, facts.owner, facts.project, facts.age) == (
        "ada-lab",
        "ada",
        "research",
        754.0,
    )
    assert list(facts.resources) == ["cpu", "mem", "cuda.device"], "CPU and memory come first"


def test_an_id_cannot_leave_its_place_in_the_url(manager: Upstream) -> None:
    fetch(Access(manager.url, "../agents?x=1", TOKEN))
    assert manager.asked[0][0] == "/services/perijove/session/..%2Fagents%3Fx%3D1"


def test_the_text_leaves_out_what_is_empty_or_said_already(manager: Upstream) -> None:
    manager.tell(resourceGroup=None)
    text = str(fetch(Access.from_environ(manager.environ())))
    assert text.splitlines()[:4] == [
        "Session    ada-lab",
        "Status     RUNNING",
        "Resources  2 CPUs, 4 GiB of memory, 1 GPU",
        "Age        12 min",
    ]
    assert "Resource group" not in text


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"PERIJOVE_SESSION_ID": ""}, "does not run in a session"),
        ({"PERIJOVE_API_URL": ""}, "session ada-lab may not ask about itself.*PERIJOVE_API_URL"),
        ({"JUPYTERHUB_API_TOKEN": ""}, "without JUPYTERHUB_API_TOKEN"),
        ({"PERIJOVE_API_URL": "file:///etc/passwd"}, "must be an http or https URL, not 'file:"),
    ],
)
def test_outside_of_a_session_it_says_what_is_missing(
    changes: dict[str, str], sentence: str
) -> None:
    environ = {**Upstream("http://127.0.0.1:1").environ(), **changes}
    with pytest.raises(NotInSession, match=sentence):
        Access.from_environ(environ)


@pytest.mark.parametrize(
    ("status", "body", "sentence"),
    [
        (401, b"", "refuses this session's token"),
        (403, b"", "refuses this session's token"),
        (404, b"", f"knows no session {SESSION_ID}"),
        (503, b'{"title": "The database is away"}', r"HTTP 503\): The database is away"),
        (500, b"<html>", r"cannot tell \(HTTP 500\)$"),
        (200, b"<html>", "not a session's description"),
        (200, b'{"sessionId": "x"}', "not a session's description"),
        (200, b"[]", "not a session's description"),
    ],
)
def test_a_bad_answer_becomes_a_sentence(
    manager: Upstream, status: int, body: bytes, sentence: str
) -> None:
    manager.status, manager.body = status, body
    with pytest.raises(SessionUnknown, match=sentence) as refused:
        fetch(Access.from_environ(manager.environ()))
    assert TOKEN not in str(refused.value)


def test_a_redirect_is_not_followed_so_the_token_goes_nowhere_else(manager: Upstream) -> None:
    with upstream() as other:
        manager.status, manager.headers = 302, {"Location": other.url}
        with pytest.raises(SessionUnknown, match="HTTP 302"):
            fetch(Access.from_environ(manager.environ()))
        assert other.asked == []


def test_proxy_settings_of_the_session_do_not_matter(
    manager: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert fetch(Access.from_environ(manager.environ())).name == "ada-lab"


def test_a_manager_that_is_away_or_silent_is_not_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(SessionUnknown, match="does not answer"):
            fetch(Access(url, SESSION_ID, TOKEN), timeout=0.05)
    with pytest.raises(SessionUnknown, match="does not answer"):
        fetch(Access(url, SESSION_ID, TOKEN))


def test_the_token_is_not_shown() -> None:
    assert TOKEN not in repr(Access("http://x", "y", TOKEN))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "< 1 min"),
        (59.9, "< 1 min"),
        (60, "1 min"),
        (3599, "59 min"),
        (3600, "1 h 0 min"),
        (86_399, "23 h 59 min"),
        (1_000_000, "11 d 13 h"),
    ],
)
def test_ages(seconds: float, text: str) -> None:
    assert age_text(seconds) == text


def test_the_command_prints_the_session(
    manager: Upstream, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in manager.environ().items():
        monkeypatch.setenv(name, value)
    assert main([]) == 0
    assert "Session         ada-lab" in capsys.readouterr().out
    assert main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out)["resources"]["cpu"] == "2 CPUs"
    manager.status = 404
    assert main([]) == 1
    assert f"perijove: the manager knows no session {SESSION_ID}" in capsys.readouterr().err


def test_importing_it_costs_nothing() -> None:
    heavy = "ipywidgets", "IPython", "tornado", "aiohttp", "spawner", "store"
    program = (
        f"import sys, perijove, perijove.session; print([n for n in {heavy} if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_warning_and_the_time_left_go_on_by_themselves(manager: Upstream) -> None:
    ours = description()["perijove"]
    warning = {"check": "utilization", "message": "it uses too little", "ends_in": 300.0}
    manager.tell(perijove={**ours, "ends_in": 300.0, "warning": warning})
    facts = fetch(Access.from_environ(manager.environ())).later(60)
    assert facts.warning is not None
    assert (facts.age, facts.ends_in, facts.warning.ends_in) == (814.0, 240.0, 240.0)
    assert ("Time left", "4 min") in facts.rows()


def test_a_session_is_extended_or_told_why_not(manager: Upstream) -> None:
    access = Access.from_environ(manager.environ())
    manager.body = b'{"ends_in": 3600.5, "extensions": 1, "ends_at": null}'
    assert extend(access) == 3600.5
    assert manager.asked[-1][0].endswith(f"/session/{SESSION_ID}/extend")
    manager.body = b'{"ends_in": null}'
    assert extend(access) is None
    manager.status, manager.body = 412, b'{"title": "T", "msg": "your policy allows 3"}'
    with pytest.raises(NotExtended, match="your policy allows 3"):
        extend(access)
    for status, body in ((503, b"<html>"), (200, b"[]"), (403, b"{}")):
        manager.status, manager.body = status, body
        with pytest.raises(SessionUnknown, match=f"HTTP {status}"):
            extend(access)
