"""Sessions over HTTP: from creation to the end, in Backend.AI's shapes, and the streams of events."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from authenticator.keypairs import NewKeyPair
from hub.api import views
from spawner.sessions.states import FINAL
from spawner.sessions.tables import HistoryRow
from spawner.sessions.telling import ATTEMPT
from tests.harness.agent import IMAGE
from tests.harness.plane import until
from tests.unit.api.server import HUB_SECRET, Api

RESOURCES = {"resources": {"cpu": "1", "mem": "512m"}}


async def create(api: Api, pair: NewKeyPair, name: str, **more: Any) -> Any:
    body = {"image": IMAGE, "name": name, "config": RESOURCES} | more
    answer = await api.signed(pair, "POST", "/session", body)
    assert answer.status == 201, answer.body
    return answer.body


async def end(api: Api, pair: NewKeyPair, name: str) -> None:
    answer = await api.signed(pair, "DELETE", f"/session/{name}")
    assert answer.status == 200, answer.body

    async def alive() -> int:
        listing = await api.signed(pair, "GET", "/sessions?limit=1000")
        found = (each for each in listing.body["sessions"] if each["name"] == name)
        return sum(each["status"] not in FINAL for each in found)

    await until(alive, lambda count: count == 0)


async def test_a_session_from_creation_to_its_end(api: Api, ada: NewKeyPair) -> None:
    made = await create(api, ada, "first-one")
    assert made["created"] is True
    assert made["status"] == "RUNNING"
    again = await create(api, ada, "first-one")
    assert again["created"] is False
    assert again["sessionId"] == made["sessionId"]

    for ref in (made["sessionId"], "first-one"):
        info = (await api.signed(ada, "GET", f"/session/{ref}")).body
        assert info["status"] == "RUNNING"
        assert json.loads(info["occupiedSlots"])["cpu"] == "1"
    assert (await api.signed(ada, "GET", "/session/first-one/logs")).body["result"]["logs"] != ""
    history = (await api.signed(ada, "GET", "/session/first-one/status-history")).body["result"]
    assert {"PENDING", "RUNNING", "running"} <= set(history)
    matches = (await api.signed(ada, "GET", "/session/_/match?id=first")).body["matches"]
    assert [each["id"] for each in matches] == [made["sessionId"]]

    renamed = await api.signed(ada, "POST", "/session/first-one/rename?name=second-one")
    assert renamed.status == 204
    assert (await api.signed(ada, "GET", "/session/first-one")).status == 404
    await end(api, ada, "second-one")
    listing = (await api.signed(ada, "GET", "/sessions?status=TERMINATED")).body
    assert made["sessionId"] in [each["id"] for each in listing["sessions"]]


async def test_without_reuse_a_live_name_is_taken(api: Api, ada: NewKeyPair) -> None:
    await create(api, ada, "only-one")
    body = {"image": IMAGE, "name": "only-one", "config": RESOURCES, "reuseIfExists": False}
    answer = await api.signed(ada, "POST", "/session", body)
    assert (answer.status, answer.problem) == (400, "session-already-exists")
    await end(api, ada, "only-one")


async def test_sessions_of_others_do_not_exist(api: Api, ada: NewKeyPair) -> None:
    made = await create(api, ada, "private-one")
    stranger = await api.user("eve")
    for ref in ("private-one", made["sessionId"]):
        for method, rest in (
            ("GET", ""),
            ("DELETE", ""),
            ("GET", "/logs"),
            ("GET", "/why"),
            ("GET", "/status-history"),
            ("GET", "/progress"),
            ("POST", "/rename?name=mine-now"),
            ("POST", "/extend"),
        ):
            answer = await api.signed(stranger, method, f"/session/{ref}{rest}")
            assert (answer.status, method, rest) == (404, method, rest)
    assert (await api.signed(stranger, "GET", "/sessions")).body["total"] == 0
    assert (await api.signed(stranger, "GET", "/sessions?all=1")).status == 403
    await end(api, ada, "private-one")


async def test_owners_extend_sessions(api: Api, ada: NewKeyPair) -> None:
    made = await create(api, ada, "goes-on", runTime="1h")
    assert made["status"] == "RUNNING"
    answer = await api.signed(ada, "POST", "/session/goes-on/extend?by=30m")
    assert (answer.status, answer.body["extensions"]) == (200, 1)
    assert dt.datetime.fromisoformat(answer.body["ends_at"]) > dt.datetime.now(
        dt.UTC
    ) + dt.timedelta(minutes=80)
    wrong = await api.signed(ada, "POST", "/session/goes-on/extend?by=soon")
    assert (wrong.status, wrong.problem) == (400, "invalid-api-params")
    for _ in range(2):
        assert (
            await api.signed(ada, "POST", "/session/goes-on/extend", {"by": "1m"})
        ).status == 200
    more = await api.signed(ada, "POST", "/session/goes-on/extend")
    assert (more.status, more.problem) == (412, "quota-exceeded")
    await end(api, ada, "goes-on")


async def test_a_session_that_waits_says_why_and_is_cancelled(api: Api, ada: NewKeyPair) -> None:
    await create(api, ada, "holds-all", config={"resources": {"cpu": "4", "mem": "1g"}})
    made = await create(api, ada, "has-to-wait", enqueueOnly=True)
    assert made["status"] == "PENDING"
    late = await create(api, ada, "has-to-wait", maxWaitSeconds=0.05)
    assert late["status"] == "TIMEOUT"

    async def told() -> str:
        return str((await api.signed(ada, "GET", "/session/has-to-wait/why")).body["message"])

    assert "waiting for 1 CPU" in await until(told, lambda text: "CPU" in text)
    gone = await api.signed(ada, "DELETE", "/session/has-to-wait")
    assert gone.body == {"stats": {"status": "cancelled"}}
    await end(api, ada, "holds-all")


async def test_a_dry_run_takes_a_creation_and_makes_nothing(api: Api, ada: NewKeyPair) -> None:
    async def check(cpu: str, **more: Any) -> Any:
        config = {"resources": {"cpu": cpu, "mem": "512m"}}
        body = {"image": IMAGE, "name": "only-a-thought", "config": config} | more
        answer = await api.signed(ada, "POST", "/session/_/check", body)
        assert answer.status == 200, answer.body
        return answer.body

    await create(api, ada, "takes-three", config={"resources": {"cpu": "3", "mem": "1g"}})
    before = (await api.signed(ada, "GET", "/sessions")).body["total"]
    assert (await check("1"))["verdict"] == "now"
    waits = await check("2")
    assert waits["verdict"] == "wait"
    assert waits["would_fit"]["cpu"] == "1"
    assert set(waits) == {"verdict", "message", "errors", "starts_at", "would_fit"}
    wrong = await check("2", priority=101, clusterSize=0)
    assert wrong["verdict"] == "never"
    assert set(wrong["errors"]) == {"priority", "clusterSize"}
    assert (await api.signed(ada, "GET", "/sessions")).body["total"] == before
    nothing = await api.signed(ada, "POST", "/session/_/check", {"image": IMAGE})
    assert (nothing.status, nothing.problem) == (400, "invalid-api-params")
    await end(api, ada, "takes-three")


async def test_attempts_to_schedule_are_counted_in_the_history(api: Api, ada: NewKeyPair) -> None:
    await create(api, ada, "in-the-way", config={"resources": {"cpu": "4", "mem": "1g"}})
    made = await create(api, ada, "tried-often", enqueueOnly=True)

    async def told() -> str:
        return str((await api.signed(ada, "GET", "/session/tried-often/why")).body["message"])

    said = await until(told, lambda text: "CPU" in text)
    path = f"/session/{made['sessionId']}/status-history"
    assert (await api.signed(ada, "GET", path)).body["attempts"] == []
    await end(api, ada, "in-the-way")

    async def history() -> Any:
        return (await api.signed(ada, "GET", path)).body

    found = await until(history, lambda body: "RUNNING" in body["result"])
    (tried,) = found["attempts"]
    assert tried["message"] == said
    assert tried["count"] >= 1
    assert tried["first_at"] <= tried["last_at"]
    assert [each["step"] for each in tried["steps"]][:2] == ["order", "checks"]
    await end(api, ada, "tried-often")


def test_alike_attempts_in_a_row_are_one() -> None:
    def row(message: str, count: int, at: str, kind: str = ATTEMPT) -> HistoryRow:
        data = {"attempts": count, "first_at": at, "last_at": f"{at}!", "steps": [at]}
        return HistoryRow(kind=kind, cause=message, data=data)

    rows = [
        row("full", 2, "1"),
        row("x", 9, "2", "progress"),
        row("full", 3, "3"),
        row("off", 1, "4"),
    ]
    assert views.tries(rows) == [
        {"message": "full", "count": 5, "first_at": "1", "last_at": "3!", "steps": ["3"]},
        {"message": "off", "count": 1, "first_at": "4", "last_at": "4!", "steps": ["4"]},
    ]


async def test_factors_are_for_administrators(api: Api, ada: NewKeyPair, root: NewKeyPair) -> None:
    path = "/resource/fair-share?group="
    assert (await api.signed(ada, "GET", f"{path}default")).status == 403
    otherwise = await api.signed(root, "GET", f"{path}default")
    assert (otherwise.status, otherwise.problem) == (400, "generic-bad-request")
    options = {"options": {"sequencer": "fair-share"}}
    assert (
        await api.signed(root, "PATCH", "/admin/resource-groups/default", options)
    ).status == 200
    found = (await api.signed(root, "GET", f"{path}default")).body
    assert found["group"] == "default"
    assert isinstance(found["factors"], list)
    await api.signed(root, "PATCH", "/admin/resource-groups/default", {"options": {}})


@asynccontextmanager
async def following(api: Api, path: str, user: str = "ada") -> AsyncIterator[asyncio.StreamReader]:
    """An open stream of events, after its head."""
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(
        f"GET {path} HTTP/1.1\r\nHost: {api.host}\r\nAuthorization: Bearer {HUB_SECRET}\r\n"
        f"X-Perijove-User: {user}\r\nConnection: close\r\n\r\n".encode()
    )
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    assert b"200 OK" in head
    assert b"text/event-stream" in head
    try:
        yield reader
    finally:
        writer.close()
        await writer.wait_closed()


async def names(reader: asyncio.StreamReader, last: str) -> list[str]:
    """Names of events until ``last`` came."""
    found: list[str] = []
    while last not in found:
        line = (await asyncio.wait_for(reader.readline(), 10)).decode().strip()
        assert not reader.at_eof() or line, found
        if line.startswith("event: "):
            found.append(line.removeprefix("event: "))
    return found


async def test_events_of_sessions_are_told_and_unheard_ones_cost_nothing(
    api: Api, ada: NewKeyPair
) -> None:
    async with following(api, "/events/session?sessionName=watched-one") as reader:
        await create(api, ada, "watched-one")
        await create(api, ada, "other-one")
        await end(api, ada, "watched-one")
        heard = await names(reader, "session_terminated")
    for name in ("session_enqueued", "session_scheduled", "session_started"):
        assert heard.count(name) == 1, heard
    await end(api, ada, "other-one")


async def test_progress_is_replayed_and_ends(api: Api, ada: NewKeyPair) -> None:
    await create(api, ada, "progressing")
    for _ in range(2):
        async with following(api, "/session/progressing/progress") as reader:
            text = (await asyncio.wait_for(reader.read(), 10)).decode()
        assert text.index("PENDING") < text.rindex("RUNNING")
    await end(api, ada, "progressing")
