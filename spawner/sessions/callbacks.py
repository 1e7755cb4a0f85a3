"""Callbacks: what happens to a session is posted to the URL that its owner named, where the operator allows that.

The manager sits inside the network, so an address that a user names is dangerous: only listed networks and hosts
are called, by the very address that was checked (a name may have another one a moment later), without
redirects and proxies. Whoever committed a change posts it: best effort, a few tries, in order for each session.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import errno
import ipaddress
import logging
import re
import socket
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from sqlalchemy import select
from yarl import URL

from spawner.sessions.events import LAGGED, Event, EventBus
from spawner.sessions.tables import SessionRow
from store.database import Store, StoreUnavailable

SETTING = "ManagerConfig.callback_allow"
EVENTS = frozenset({
    "enqueued", "scheduled", "preparing", "started", "cancelled", "terminating", "terminated",
    "success", "failure",
})  # fmt: skip
"""Those that Backend.AI tells, without ``session_``."""
LONGEST_URL = 2048
TIMEOUT = aiohttp.ClientTimeout(total=10, connect=3)
PAUSES = (1.0, 5.0)
"""Seconds before the second and the third try."""
AT_ONCE = 20
MOST_WAITING = 100
"""Events of one session that wait; further ones are dropped."""
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,252}[A-Za-z0-9])?")
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CallbackRules:
    """Where callbacks may go."""

    networks: tuple[Network, ...] = ()
    hosts: frozenset[str] = frozenset()
    """Names, lower case: whatever addresses they have."""

    @classmethod
    def read(cls, entries: Iterable[str]) -> CallbackRules:
        """From networks (``10.1.0.0/16``), addresses and host names. Raises ``ValueError``."""
        networks, hosts = [], set()
        for entry in entries:
            try:
                networks.append(ipaddress.ip_network(entry))
            except ValueError as error:
                if not _HOST.fullmatch(entry) or re.fullmatch(r"[0-9.]+", entry):
                    raise ValueError(
                        f"{entry!r} ({error}): give a network such as 10.1.0.0/16, an address or a host name"
                    ) from error
                hosts.add(entry.lower())
        return cls(tuple(networks), frozenset(hosts))

    def __bool__(self) -> bool:
        return bool(self.networks or self.hosts)

    def fault(self, url: str) -> str | None:
        """Why ``url`` cannot be called, as far as that is known without its address."""
        if not self:
            return f"no callbacks are allowed here: {SETTING} lists no networks or hosts"
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError as error:
            return f"{url[:80]!r}: {error}"
        if len(url) > LONGEST_URL or re.search(r"[^\x21-\x7e]", url):
            return f"give an URL of at most {LONGEST_URL} printable ASCII characters"
        if parts.scheme not in ("http", "https") or not host:
            return f"{url[:80]!r}: give an http:// or https:// URL"
        if parts.username is not None or parts.password is not None:
            return "the URL must not hold a user or a password"
        address = _address(host)
        named = host in self.hosts or bool(self.networks and address is None)
        if not named and not (address is not None and self.allows(host, host)):
            return f"{host[:80]!r} is not among the networks and hosts of {SETTING}"
        return None

    def allows(self, host: str, address: str) -> bool:
        """Whether ``address``, which ``host`` has, may be called."""
        found = _address(address)
        if host.lower() in self.hosts:
            return True
        return found is not None and any(
            found.version == network.version and found in network for network in self.networks
        )


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An address, not disguised as one of IPv6; None for a name."""
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = getattr(found, "ipv4_mapped", None)
    return found if mapped is None else mapped


class _CheckedResolver(AbstractResolver):
    """Gives only addresses that may be called: the connection goes to one of those, and asks nobody again."""

    def __init__(self, rules: CallbackRules) -> None:
        self._rules = rules

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Addresses of ``host`` that are allowed. Raises ``OSError``."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
        results = [
            ResolveResult(
                hostname=host,
                host=str(where[0]),
                port=port,
                family=kind,
                proto=protocol,
                flags=socket.AI_NUMERICHOST,
            )
            for kind, _, protocol, _, where in found
            if self._rules.allows(host, str(where[0]))
        ]
        if not results:
            raise OSError(errno.EACCES, f"{host} has no address that {SETTING} allows")
        return results

    async def close(self) -> None:
        """Nothing is held."""


@dataclass(slots=True)
class _Line:
    """What waits to be posted for one session."""

    waiting: list[tuple[Event, dt.datetime]] = field(default_factory=list)
    task: asyncio.Task[None] | None = None


class Callbacks:
    """Posts events of sessions that this manager commits."""

    def __init__(
        self, store: Store, bus: EventBus, rules: CallbackRules, now: Callable[[], dt.datetime]
    ) -> None:
        self._store, self._bus, self._rules, self._now = store, bus, rules, now
        self._lines: dict[uuid.UUID, _Line] = {}
        self._free = asyncio.Semaphore(AT_ONCE)

    async def run(self) -> None:
        """Post until cancelled."""
        connector = aiohttp.TCPConnector(
            resolver=_CheckedResolver(self._rules), use_dns_cache=False, force_close=True
        )
        async with aiohttp.ClientSession(connector=connector, timeout=TIMEOUT) as http:
            try:
                while not self._bus.closed:
                    with self._bus.subscribe(_told) as subscription:
                        async for event in subscription:
                            self._enqueue(http, event)
            finally:
                tasks = [line.task for line in self._lines.values() if line.task is not None]
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def _enqueue(self, http: aiohttp.ClientSession, event: Event) -> None:
        if event.name == LAGGED:
            log.warning("callbacks of some sessions are lost: too much happened at once")
            return
        line = self._lines.setdefault(event.session_id, _Line())
        if len(line.waiting) < MOST_WAITING:
            line.waiting.append((event, self._now()))
        if line.task is None:
            line.task = asyncio.create_task(self._serve(http, event.session_id, line))

    async def _serve(self, http: aiohttp.ClientSession, session_id: uuid.UUID, line: _Line) -> None:
        try:
            while line.waiting:
                url = await self._url(session_id)
                event, at = line.waiting.pop(0)
                if url is not None:
                    async with self._free:
                        await self._post(http, url, _body(event, at))
        finally:
            del self._lines[session_id]

    async def _url(self, session_id: uuid.UUID) -> str | None:
        query = select(SessionRow.callback_url).where(SessionRow.id == session_id)
        try:
            return await self._store.read(lambda db: db.scalar(query))
        except StoreUnavailable as error:
            log.warning("session %s: no callback, the database is away: %s", session_id, error)
            return None

    async def _post(self, http: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> None:
        """Try a few times; what is not a passing fault is not tried again."""
        told = f"callback {body['event']} of session {body['session_id']}"
        fault, target = self._rules.fault(url), URL(url)  # the rules may be others than at first
        host = target.host or ""
        if fault is None and _address(host) is not None and not self._rules.allows(host, host):
            fault = f"{host} is not allowed"
        if fault is not None:
            log.warning("%s: %s", told, fault)
            return
        for pause in (*PAUSES, None):
            try:
                async with http.post(target, json=body, allow_redirects=False) as answer:
                    problem = f"it answered {answer.status}"
                    if answer.status < 300:
                        return
                    if answer.status < 500 and answer.status != 429:
                        pause = None
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
                problem = str(error) or type(error).__name__
            if pause is None:
                log.warning("%s to %s: %s", told, _shown(url), problem)
                return
            await asyncio.sleep(pause)


def _told(event: Event) -> bool:
    return event.name == LAGGED or (
        event.kernel_id is None and event.name.removeprefix("session_") in EVENTS
    )


def _body(event: Event, at: dt.datetime) -> dict[str, Any]:
    """As Backend.AI's manager posts it."""
    return {
        "type": "session_lifecycle",
        "event": event.name.removeprefix("session_"),
        "session_id": str(event.session_id),
        "when": at.isoformat(),
    }


def _shown(url: str) -> str:
    """Without what may be secret."""
    parts: SplitResult = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"
