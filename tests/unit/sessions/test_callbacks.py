"""Callbacks: told in Backend.AI's words, and only to where the operator allows that."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import socket
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from authenticator.problems import InvalidParameters
from spawner.sessions import callbacks
from spawner.sessions.callbacks import CallbackRules
from spawner.sessions.control import ControlSettings
from spawner.sessions.states import Status
from spawner.sessions.tables import CallbackRow, SessionRow
from store.database import Store
from tests.harness.plane import PATIENCE, Rig, rig, until

LOOPBACK = CallbackRules.read(["127.0.0.0/8"])


@dataclass
class Hook:
    """A server that is called."""

    port: int = 0
    statuses: list[int] = field(default_factory=list)
    """What it answers first; then 204."""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    """Of all posts, also those that it refused."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?token=secret"

    async def events(self, session: uuid.UUID, last: str) -> list[str]:
        """Events of a session until ``last``."""

        async def told() -> list[str]:
            return [each["event"] for each in self.bodies if each["session_id"] == str(session)]

        return await until(told, lambda events: last in events)


@asynccontextmanager
async def hooked() -> AsyncIterator[Hook]:
    hook = Hook()

    class Handler(RequestHandler):
        def post(self) -> None:
            hook.paths.append(self.request.path)
            status = hook.statuses.pop(0) if hook.statuses else 204
            body = json.loads(self.request.body)
            hook.ids.append(body["id"])
            if status < 300:
                hook.bodies.append(body)
            self.set_status(status)
            if status == 302:
                self.set_header("Location", "/elsewhere")

    [listener] = bind_sockets(0, "127.0.0.1")
    server = HTTPServer(Application([(r"/.*", Handler)], log_function=lambda handler: None))
    server.add_socket(listener)
    hook.port = listener.getsockname()[1]
    try:
        yield hook
    finally:
        server.stop()
        await server.close_all_connections()


@asynccontextmanager
async def calling(
    store: Store, folder: Path, rules: CallbackRules = LOOPBACK
) -> AsyncIterator[tuple[Rig, Hook]]:
    async with hooked() as hook, rig(store, folder, ControlSettings(callbacks=rules)) as plane:
        yield plane, hook


async def test_the_life_of_a_session_is_told(store: Store, tmp_path: Path) -> None:
    async with calling(store, tmp_path) as (plane, hook):
        agent = await plane.agent()
        ada = await plane.user()
        batch = {"type": "batch", "startup_command": "true"}
        detail = await plane.run(ada, callback_url=hook.url, **batch)
        quiet = await plane.run(ada)
        agent.end(str(detail.main.id))
        await plane.wait(detail, Status.TERMINATED)
        events = await hook.events(detail.session.id, "terminated")
        expected = ["enqueued", "scheduled", "started", "success"]
        assert [each for each in events if each in expected] == expected
        assert events[-1] == "terminated"
        assert set(hook.bodies[0]) == {"type", "event", "session_id", "when", "id"}
        assert len({each["id"] for each in hook.bodies}) == len(hook.bodies)
        assert hook.bodies[0]["type"] == "session_lifecycle"
        assert {each["session_id"] for each in hook.bodies} == {str(detail.session.id)}
        assert quiet.session.callback_url is None


async def test_a_look_that_takes_long_repeats_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have seen what was posted before it ended."""
    look = callbacks._due
    async with calling(store, tmp_path) as (plane, hook):

        async def slow(db: AsyncSession, now: dt.datetime) -> Any:
            seen = await look(db, now)
            if posts := [task for _, task in plane.plane.callbacks._posting.values()]:
                await asyncio.wait(posts)
            elif seen[0]:
                asyncio.get_running_loop().call_soon(plane.plane.callbacks.wake)
            return seen

        monkeypatch.setattr(callbacks, "_due", slow)
        await plane.agent()
        ada = await plane.user()
        detail = await plane.run(ada, callback_url=hook.url)
        await plane.destroy(ada, detail)
        await hook.events(detail.session.id, "terminated")
    assert len(set(hook.ids)) == len(hook.ids)


async def test_passing_faults_are_tried_again_and_redirects_are_not_followed(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(callbacks, "FIRST_PAUSE", 0.0)
    monkeypatch.setattr(callbacks, "MOST_TRIES", 3)
    async with calling(store, tmp_path) as (plane, hook):
        hook.statuses += [500, 429, 204, 302, 500, 500, 500]
        await plane.agent()
        ada = await plane.user()
        detail = await plane.run(ada, callback_url=hook.url)
        await plane.destroy(ada, detail)
        events = await hook.events(detail.session.id, "terminated")
        await until(lambda: waiting(plane), lambda count: count == 0)
        rows = await plane.plane.sessions.history(ada, str(detail.session.id))
        text = (await plane.plane.render_metrics()).decode()
    assert events[0] == "enqueued", "the third try"
    assert len(set(hook.ids[:3])) == 1, "a repeat has the same id"
    assert "scheduled" not in events, "a redirect is an answer"
    assert "started" not in events, "three tries are all"
    assert set(hook.paths) == {"/hook"}
    assert "it answered 500" in caplog.text
    assert "secret" not in caplog.text
    where = f"http://127.0.0.1:{hook.port}"
    assert [row.cause for row in rows if row.kind == "callback"] == [
        f"callback 'scheduled' to {where} was given up after 1 tries: it answered 302",
        f"callback 'started' to {where} was given up after 3 tries: it answered 500",
    ]
    assert 'perijove_callbacks_total{outcome="given-up"} 2.0' in text
    assert 'perijove_callbacks_total{outcome="failed"} 4.0' in text
    assert "perijove_callbacks_waiting 0.0" in text


async def waiting(plane: Rig) -> int:
    """Callbacks that wait."""
    count = select(func.count(CallbackRow.number))
    return await plane.store.read(lambda db: db.scalar(count)) or 0


async def test_a_manager_that_died_leaves_its_callbacks_to_the_next(
    store: Store, tmp_path: Path
) -> None:
    """They are told in order, and those that nobody takes are given up after a time."""
    async with calling(store, tmp_path) as (plane, hook):
        hook.statuses += [503] * 2
        await plane.agent()
        ada = await plane.user()
        detail = await plane.run(ada, callback_url=hook.url)
        assert await waiting(plane) > 2
        await plane.crash()
        plane.clock.forward(30)
        await plane.restart()
        events = await hook.events(detail.session.id, "started")
        assert events[:2] == ["enqueued", "scheduled"]
        await until(lambda: waiting(plane), lambda count: count == 0)
        hook.statuses += [503] * 99
        await plane.destroy(ada, detail)
        await plane.wait(detail, Status.TERMINATED)
        plane.clock.forward(callbacks.GIVE_UP_AFTER.total_seconds())
        plane.plane.callbacks.wake()
        await until(lambda: waiting(plane), lambda count: count == 0)
        rows = await plane.plane.sessions.history(ada, str(detail.session.id))
        assert len([row for row in rows if row.kind == "callback"]) == 2


async def test_a_name_is_called_by_the_address_that_was_checked(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """Nobody is asked for the address between the check and the call."""
    monkeypatch.setattr(callbacks, "MOST_TRIES", 1)
    loop = asyncio.get_running_loop()
    real, asked = loop.getaddrinfo, dict[str, int]()

    async def rebinding(host: Any, port: Any, **kinds: Any) -> Any:
        if not str(host).endswith(".example"):
            return await real(host, port, **kinds)
        asked[host] = asked.get(host, 0) + 1
        address = "127.0.0.1" if host == "good.example" else "127.0.0.2"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(loop, "getaddrinfo", rebinding)
    rules = CallbackRules.read(["127.0.0.1"])
    async with calling(store, tmp_path, rules) as (plane, hook):
        await plane.agent()
        ada = await plane.user()
        good = await plane.create(ada, callback_url=hook.url.replace("127.0.0.1", "good.example"))
        bad = await plane.create(ada, callback_url=hook.url.replace("127.0.0.1", "bad.example"))
        await hook.events(good.session.id, "started")
        await plane.wait(bad)

        async def refused() -> bool:
            return (
                "bad.example has no address that ManagerConfig.callback_allow allows" in caplog.text
            )

        assert await until(refused, bool)
        assert {each["session_id"] for each in hook.bodies} == {str(good.session.id)}
        assert asked["good.example"] == len(hook.bodies), "asked once for each call"


async def test_an_url_that_nobody_can_read_is_given_up_at_once(
    store: Store, tmp_path: Path
) -> None:
    """One that was taken by an earlier release, say: it would be tried for ever, without a pause."""
    async with calling(store, tmp_path) as (plane, hook):
        await plane.agent()
        ada = await plane.user()
        detail = await plane.create(ada, callback_url=hook.url)
        await hook.events(detail.session.id, "started")
        change = update(SessionRow).values(callback_url="http://some\\name/")
        await plane.store.write(lambda db: db.execute(change))
        await plane.destroy(ada, detail)
        await plane.wait(detail, Status.TERMINATED)
        await until(lambda: waiting(plane), lambda count: count == 0)
        rows = await plane.plane.sessions.history(ada, str(detail.session.id))
    assert any("given up after 1 tries" in row.cause for row in rows if row.kind == "callback")


async def test_without_rules_a_callback_is_refused(plane: Rig) -> None:
    await plane.agent()
    ada = await plane.user()
    with pytest.raises(InvalidParameters) as refused:
        await plane.create(ada, callback_url="http://127.0.0.1/")
    assert refused.value.fields == {
        "callback_url": "no callbacks are allowed here: ManagerConfig.callback_allow lists no"
        " networks or hosts"
    }


async def test_a_server_that_does_not_answer_holds_up_nobody(store: Store, tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        async with calling(store, tmp_path) as (plane, hook):
            await plane.agent()
            ada = await plane.user()
            url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
            await plane.run(ada, callback_url=url)
            other = await plane.run(ada, callback_url=hook.url)
            await hook.events(other.session.id, "started")
            begin = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - begin < PATIENCE, "it ends with the manager"


RULES = CallbackRules.read(["10.1.0.0/16", "192.0.2.7", "fd00::/8", "Hooks.Example.org"])


@pytest.mark.parametrize(
    "url",
    [
        "http://10.1.2.3/x",
        "https://192.0.2.7:8443/",
        "http://[fd00::1]/",
        "http://hooks.example.org/a?b=c",
        "http://[::ffff:10.1.2.3]/",
        "http://some.other.name/",
    ],
)
def test_allowed_urls(url: str) -> None:
    assert RULES.fault(url) is None


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("http://10.2.0.1/", "is not among"),
        ("http://127.0.0.1/", "is not among"),
        ("http://[::1]/", "is not among"),
        ("http://[::ffff:127.0.0.1]/", "is not among"),
        ("http://169.254.169.254/latest", "is not among"),
        ("file:///etc/passwd", "give an http:// or https:// URL"),
        ("gopher://10.1.2.3/", "give an http:// or https:// URL"),
        ("http:///x", "give an http:// or https:// URL"),
        ("http://user:word@10.1.2.3/", "must not hold a user"),
        ("http://10.1.2.3@127.0.0.1/", "must not hold a user"),
        ("http://10.1.2.3:99999/", "ort"),
        ("http://10.1.2.3/\r\nX: y", "printable"),
        ("http://10.1.2.3/" + "x" * 3000, "at most 2048"),
        ("http://[::1", "nvalid"),
        ("http://some\\name/", "backslash"),
    ],
)
def test_refused_urls(url: str, sentence: str) -> None:
    assert sentence in (RULES.fault(url) or "")


def test_addresses_of_names() -> None:
    assert RULES.allows("any.name", "10.1.9.9")
    assert RULES.allows("hooks.example.org", "127.0.0.1"), "a listed name is trusted"
    assert not RULES.allows("any.name", "127.0.0.1")
    assert not RULES.allows("any.name", "::ffff:127.0.0.1")
    assert RULES.allows("any.name", "::ffff:10.1.0.1")


@pytest.mark.parametrize("entry", ["10.1.0.1/16", "10.1", "http://x", "", "a b", "*"])
def test_wrong_rules_are_named(entry: str) -> None:
    with pytest.raises(ValueError, match="give a network such as"):
        CallbackRules.read([entry])
