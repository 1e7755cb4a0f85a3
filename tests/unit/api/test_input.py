"""Bad input: a problem that names the field, the value and what is allowed; nothing is made of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from hub.api.handler import MAX_BODY
from tests.harness.agent import IMAGE
from tests.unit.api.server import HUB_SECRET, Api

AS_ADA = {"Authorization": f"Bearer {HUB_SECRET}", "X-Perijove-User": "ada"}


def creation(**changes: Any) -> dict[str, Any]:
    """A good request with ``changes``; those of resources and options go where they belong."""
    config = {"resources": {"cpu": "1", "mem": "512m"}} | changes.pop("config", {})
    body = {"image": IMAGE, "name": "never-made", "enqueueOnly": True, "reuseIfExists": False}
    return body | {"config": config} | changes


@pytest_asyncio.fixture(autouse=True, loop_scope="session")
async def _nothing_is_made(api: Api) -> AsyncIterator[None]:
    yield
    assert (await api.hub("GET", "/sessions")).body["total"] == 0
    assert {each["name"] for each in (await api.hub("GET", "/folders")).body} <= {"home"}


@pytest.mark.parametrize(
    "raw",
    [
        b"{",
        b'{"name": NaN}',
        b'{"name": Infinity}',
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b'{"name": "a\\u0000b"}',
        b'{"a":' * 40 + b"1" + b"}" * 40,
        b"[" * 200_000,
    ],
)
async def test_bodies_that_are_no_object(api: Api, raw: bytes) -> None:
    answer = await api.send("POST", "/session", raw=raw, headers=AS_ADA)
    assert (answer.status, answer.problem) == (400, "invalid-api-params")
    assert "body" in answer.body["data"] or "body" in str(answer.body)


@pytest.mark.parametrize("size", [MAX_BODY + 1, MAX_BODY + 500_000])
async def test_bodies_that_are_too_large(api: Api, size: int) -> None:
    answer = await api.send("POST", "/session", raw=b" " * size, headers=AS_ADA)
    assert (answer.status, answer.problem) == (413, "request-too-large")
    assert str(MAX_BODY) in answer.body["msg"]


@pytest.mark.parametrize(
    ("changes", "field", "said"),
    [
        ({"name": None}, "name", ""),
        ({"name": 7}, "name", ""),
        ({"name": "abc"}, "name", "'abc'"),
        ({"name": "a name"}, "name", "'a name'"),
        ({"name": "trailing-newline\n"}, "name", ""),
        ({"name": "x" * 201}, "name", "200"),
        ({"image": "no such image"}, "image", "no such image"),
        ({"image": ""}, "image", ""),
        ({"type": "batchy"}, "type", "batchy"),
        ({"clusterSize": 0}, "cluster", "0"),
        ({"clusterSize": "two"}, "cluster", "two"),
        ({"clusterMode": "ring"}, "cluster", "ring"),
        ({"priority": 101}, "priority", "101"),
        ({"priority": -1}, "priority", "-1"),
        ({"maxWaitSeconds": -1}, "max", "-1"),
        (
            {"type": "batch", "startupCommand": "x", "starts_at": "tomorrow-ish"},
            "starts_at",
            "tomorrow-ish",
        ),
        ({"config": {"resources": {"cpu": "-1"}}}, "cpu", "-1"),
        ({"config": {"resources": {"cpu": "1e99"}}}, "cpu", "1e99"),
        ({"config": {"resources": {"cpu": "9" * 40}}}, "cpu", "999"),
        ({"config": {"resources": {"mem": "12 parsecs"}}}, "mem", "parsecs"),
        ({"config": {"resources": {"antimatter": "1"}}}, "antimatter", ""),
        ({"config": {"resources": {"cpu\n": "1"}}}, "cpu", ""),
        ({"config": {"environ": {"A B": "x"}}}, "environ", "A B"),
        ({"config": {"environ": {"A\n": "x"}}}, "environ", ""),
        ({"config": {"environ": {"A": 5}}}, "environ", ""),
        ({"config": {"mounts": ["no-such-folder"]}}, "", "no-such-folder"),
        ({"config": {"mounts": ["../../etc"]}}, "", "../../etc"),
        ({"config": {"scalingGroup": "no-such-group"}}, "", "no-such-group"),
    ],
)
async def test_wrong_fields_are_named(
    api: Api, changes: dict[str, Any], field: str, said: str
) -> None:
    given = creation(**changes)
    answer = await api.hub("POST", "/session", given)
    assert 400 <= answer.status < 500, answer.body
    assert answer.problem
    text = str(answer.body)
    assert field in text, text
    assert said in text, text


@pytest.mark.parametrize(
    "name", ["", "..", "a/b", "a\nb", ".hidden\n", "x" * 300, "con\x7f", "a\u202eb"]
)
async def test_folders_with_absurd_names(api: Api, name: str) -> None:
    answer = await api.hub("POST", "/folders", {"name": name})
    assert 400 <= answer.status < 500, answer.body
    assert answer.problem
    assert "name" in str(answer.body)


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=many", "limit=99999", "offset=-1", "status=sleeping", "limit=%ff"]
)
async def test_wrong_queries(api: Api, query: str) -> None:
    answer = await api.hub("GET", f"/sessions?{query}")
    assert (answer.status, answer.problem) == (400, "invalid-api-params")


async def test_ids_of_other_shapes_are_not_found(api: Api) -> None:
    for ref in (
        "%00",
        "%0a",
        "..%2f..",
        "x" * 400,
        "'; drop table sessions; --".replace(" ", "%20"),
    ):
        for method, rest in (("GET", ""), ("DELETE", ""), ("GET", "/logs"), ("GET", "/why")):
            answer = await api.hub(method, f"/session/{ref}{rest}")
            assert answer.status == 404, (ref, rest, answer.body)
            assert answer.problem
