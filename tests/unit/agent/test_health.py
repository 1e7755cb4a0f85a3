"""Health checks against servers that answer well, badly, late, not at all, or not in HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing, suppress

import pytest

from spawner.agent import health
from spawner.agent.engines.base import Endpoint
from spawner.agent.protocol import HealthCheck

CHECK = HealthCheck(path="/health?deep=1", interval=0.0, timeout=5.0, max_failures=2)
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(serve: Serve) -> AsyncIterator[Endpoint]:
    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        finally:
            writer.close()

    listening = await asyncio.start_server(once, "127.0.0.1", 0)
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        yield Endpoint("service", "http", 8000, "127.0.0.1", port)


def answering(*answers: bytes, asked: list[bytes] | None = None) -> Serve:
    """Gives these answers, the last one for ever."""
    left = list(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer), suppress(asyncio.IncompleteReadError):  # who asked may be gone
            request = await reader.readuntil(b"\r\n\r\n")
            if asked is not None:
                asked.append(request)
            writer.write(left.pop(0) if len(left) > 1 else left[0])
            await writer.drain()

    return serve


async def test_a_service_that_answers_as_expected_is_well() -> None:
    asked: list[bytes] = []
    async with server(answering(b"HTTP/1.1 200 OK\r\n\r\nfine", asked=asked)) as endpoint:
        assert await health.probe(endpoint, CHECK) is None
    lines = asked[0].decode().split("\r\n")
    assert lines[0] == "GET /health?deep=1 HTTP/1.1"
    assert f"Host: 127.0.0.1:{endpoint.port}" in lines


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", "is answered with 503"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "fails: the answer is not HTTP"),
        (b"HTTP/1.1 fine\r\n\r\n", "fails: invalid literal"),
        (b"\xff\xfe\n", "fails: the answer is not HTTP"),
        (b"", "fails: the answer is not HTTP"),
        (b"x" * 2 * health.LONGEST_LINE, "fails: the answer is not HTTP"),
    ],
)
async def test_what_is_wrong_is_told(answer: bytes, sentence: str) -> None:
    async with server(answering(answer)) as endpoint:
        assert (await health.probe(endpoint, CHECK) or "").startswith(
            f"GET /health?deep=1 {sentence}"
        )


async def test_another_status_can_be_the_expected_one() -> None:
    check = HealthCheck(expected_status=404)
    async with server(answering(b"HTTP/1.1 404 Not Found\r\n\r\n")) as endpoint:
        assert await health.probe(endpoint, check) is None


async def test_a_port_that_is_closed_or_was_never_open() -> None:
    async with server(answering(b"")) as endpoint:
        pass
    assert "Connect call failed" in (await health.probe(endpoint, CHECK) or "")
    assert await health.probe(None, CHECK) == "its port is not open"


async def test_a_service_that_does_not_answer_in_time() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # until the other side gives up

    async with server(silent) as endpoint:
        told = await health.probe(endpoint, HealthCheck(timeout=0.05))
    assert told == "GET / is not answered within 0.05 s"


async def test_only_failures_in_a_row_count_and_recovery_is_told() -> None:
    good, bad = b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 500 Oh\r\n\r\n"
    told: asyncio.Queue[tuple[bool, str]] = asyncio.Queue()
    places: list[Endpoint | None] = [None]

    async def where() -> Endpoint | None:
        return places.pop()

    async with server(answering(good, bad, bad, good)) as endpoint:
        places.insert(0, endpoint)
        following = asyncio.create_task(
            health.follow(where, CHECK, lambda well, why: told.put_nowait((well, why)))
        )
        async with asyncio.timeout(5):
            heard = [await told.get() for _ in range(3)]
        following.cancel()
        await asyncio.wait([following])
    sentence = "its health check failed 2 times in a row: GET /health?deep=1 is answered with 500"
    assert heard == [(True, ""), (False, sentence), (True, "")]
