"""Health checks of inference kernels: one HTTP request at an interval, and when it counts as a failure."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from spawner.agent.engines.base import Endpoint
from spawner.agent.protocol import HealthCheck

LONGEST_LINE = 4096


async def probe(endpoint: Endpoint | None, check: HealthCheck) -> str | None:
    """What is wrong with the service behind ``endpoint``; None when it is well."""
    if endpoint is None:
        return "its port is not open"
    what = f"GET {check.path}"
    try:
        async with asyncio.timeout(check.timeout):
            answered = await status(endpoint, check.path)
    except TimeoutError:
        return f"{what} is not answered within {check.timeout:g} s"
    except (OSError, EOFError, ValueError) as error:
        return f"{what} fails: {error or type(error).__name__}"
    return None if answered == check.expected_status else f"{what} is answered with {answered}"


async def status(endpoint: Endpoint, path: str) -> int:
    """The status of one request. Raises ``OSError``, ``EOFError`` or ``ValueError``.

    Written by hand: many starting kernels are asked several times a second, and a client library's
    session costs more CPU time than all the rest of the agent.
    """
    reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port, limit=LONGEST_LINE)
    try:
        host = f"{endpoint.host}:{endpoint.port}"
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: perijove\r\n"
            "Connection: close\r\n\r\n".encode()
        )
        words = (await reader.readuntil(b"\n")).split()
        if len(words) < 2 or not words[0].startswith(b"HTTP/"):
            raise ValueError("the answer is not HTTP")
        return int(words[1])
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        raise ValueError("the answer is not HTTP") from error
    finally:
        writer.close()


async def follow(
    where: Callable[[], Awaitable[Endpoint | None]],
    check: HealthCheck,
    tell: Callable[[bool, str], None],
    patience: float = 0.0,
) -> None:
    """Probe for ever what ``where`` finds; tell each time what is known: after ``max_failures`` in a row
    it is not well. For ``patience`` seconds a service that never was well is starting, and no failure counts."""
    loop = asyncio.get_running_loop()
    failures, endpoint, started_by = 0, None, loop.time() + patience
    while True:
        endpoint = endpoint or await where()
        wrong = await probe(endpoint, check)
        if wrong is None:
            failures, started_by = 0, loop.time()
            tell(True, "")
        elif loop.time() >= started_by:
            failures += 1
        if failures >= check.max_failures:
            times = "once" if check.max_failures == 1 else f"{check.max_failures} times in a row"
            tell(False, f"its health check failed {times}: {wrong}")
        await asyncio.sleep(check.interval)
