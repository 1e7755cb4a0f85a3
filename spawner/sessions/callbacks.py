"""Callbacks: what happens to a session is posted to the URL that its owner named, where the operator allows that.

The manager sits inside the network, so an address that a user names is dangerous: only listed networks and hosts
are called, by the very address that was checked (a name may have another one a moment later), without
redirects and proxies. What is to be told is a row of the write that made it happen, and is posted at least once, in
order for each session, until it is taken, refused or too old: a manager that is killed loses nothing.
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
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession
from yarl import URL

from spawner.sessions.metrics import Metrics
from spawner.sessions.tables import CallbackRow, SessionRow
from spawner.sessions.transitions import Change, Journal
from store.database import StoreError

SETTING = "ManagerConfig.callback_allow"
LONGEST_URL = 2048
TIMEOUT = aiohttp.ClientTimeout(total=10, connect=3)
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 600.0
"""Seconds between the first tries, and at most: each pause is twice the one before."""
MOST_TRIES = 50
GIVE_UP_AFTER = dt.timedelta(days=1)
RETRY = 1.0
AT_ONCE = 20
AT_ONCE_PER_HOST = 5
"""So that a server that does not answer holds up its own callbacks only."""
MOST_READ = 1000
REQUEST_ID = "callbacks"
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
            host, _, _ = parts.hostname, parts.port, URL(url)  # whoever calls it reads it so
        except ValueError as error:
            return f"{url[:80]!r}: {str(error)[:200]}"
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


@dataclass(frozen=True, slots=True)
class _Call:
    """A callback to be posted now: the oldest one of its session."""

    number: int
    session_id: uuid.UUID
    url: str
    body: dict[str, Any]
    at: dt.datetime
    tries: int

    def __str__(self) -> str:
        """For people, without what may be secret of the URL."""
        parts = urlsplit(self.url)
        return f"callback {self.body['event']!r} to {parts.scheme}://{parts.netloc}"


class Callbacks:
    """Posts what waits in rows, whoever committed it; one manager does so at a time."""

    def __init__(
        self, journal: Journal, metrics: Metrics, rules: CallbackRules, tick: float
    ) -> None:
        self._journal, self._metrics, self._rules, self._tick = journal, metrics, rules, tick
        self._woken = asyncio.Event()
        self._posting: dict[uuid.UUID, tuple[str, asyncio.Task[None]]] = {}
        """By session: where to, and the task."""

    def wake(self) -> None:
        """Look soon."""
        self._woken.set()

    async def run(self) -> None:
        """Post until cancelled."""
        connector = aiohttp.TCPConnector(
            resolver=_CheckedResolver(self._rules), use_dns_cache=False, force_close=True
        )
        async with aiohttp.ClientSession(
            connector=connector, timeout=TIMEOUT, cookie_jar=aiohttp.DummyCookieJar()
        ) as http:
            try:
                while True:
                    self._woken.clear()
                    pause = await self._look(http)
                    with suppress(TimeoutError):
                        async with asyncio.timeout(pause):
                            await self._woken.wait()
            finally:
                tasks = [task for _, task in self._posting.values()]
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _look(self, http: aiohttp.ClientSession) -> float:
        """Begin to post what is due; returns the seconds until something else is."""
        now = self._journal.now()
        busy = set(
            self._posting
        )  # a post that is over by the time of the answer may still be in it
        calls, next_at = await self._journal.store.read(partial(_due, now=now))
        hosts = Counter(host for host, _ in self._posting.values())
        for call in calls:
            host = urlsplit(call.url).netloc
            if len(self._posting) >= AT_ONCE:
                break
            if call.session_id not in busy and hosts[host] < AT_ONCE_PER_HOST:
                hosts[host] += 1
                task = asyncio.create_task(self._serve(http, call))
                self._posting[call.session_id] = host, task
        if next_at is None:
            return self._tick
        return min(self._tick, max(0.0, (next_at - now).total_seconds()))

    async def _serve(self, http: aiohttp.ClientSession, call: _Call) -> None:
        try:
            problem, passing = await self._post(http, call)
            await self._journal.write(
                REQUEST_ID, partial(self._settle, call=call, problem=problem, passing=passing)
            )
        except (StoreError, SQLAlchemyError) as error:
            log.warning("%s: its outcome is not kept: %s", call, error)
            await asyncio.sleep(RETRY)
        finally:
            del self._posting[call.session_id]
            self.wake()

    async def _post(self, http: aiohttp.ClientSession, call: _Call) -> tuple[str | None, bool]:
        """What kept it from being delivered, if anything did, and whether that may pass."""
        fault = self._rules.fault(call.url)  # rules may have changed since
        if fault is not None:
            return fault, False
        target = URL(call.url)
        host = target.host or ""
        if _address(host) is not None and not self._rules.allows(host, host):
            return f"{host} is not allowed", False
        try:
            async with http.post(target, json=call.body, allow_redirects=False) as answer:
                passing = answer.status >= 500 or answer.status in (408, 425, 429)
                return None if answer.status < 300 else f"it answered {answer.status}", passing
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            return str(error) or type(error).__name__, True

    async def _settle(
        self, change: Change, call: _Call, problem: str | None, passing: bool
    ) -> None:
        """Write down what came of a post."""
        row = await change.db.get(CallbackRow, call.number)
        if row is None:
            return
        row.tries += 1
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** (row.tries - 1))
        row.due_at = change.now + dt.timedelta(seconds=pause)
        late = row.tries >= MOST_TRIES or row.due_at > row.at + GIVE_UP_AFTER
        if problem is not None and passing and not late:
            self._metrics.called("failed")
            if row.tries == 1:
                log.warning("session %s: %s: %s; trying again", call.session_id, call, problem)
            return
        await change.db.delete(row)
        self._metrics.called("delivered" if problem is None else "given-up")
        if problem is not None:
            told = f"{call} was given up after {row.tries} tries: {problem}"
            log.warning("session %s: %s", call.session_id, told)
            session = await change.db.get_one(SessionRow, call.session_id)
            change.record(session, "callback", told, {"id": str(row.id), "event": row.event})


async def _due(db: AsyncSession, now: dt.datetime) -> tuple[list[_Call], dt.datetime | None]:
    """The oldest callback of each session that has one due, and when the next one is."""
    oldest = select(func.min(CallbackRow.number)).group_by(CallbackRow.session_id)
    heads = CallbackRow.number.in_(oldest.scalar_subquery())
    query = (
        select(CallbackRow, SessionRow.callback_url)
        .join(SessionRow, SessionRow.id == CallbackRow.session_id)
        .where(heads, CallbackRow.due_at <= now)
        .order_by(CallbackRow.due_at, CallbackRow.number)
    )
    calls = [
        _Call(row.number, row.session_id, url or "", _body(row), row.at, row.tries)
        for row, url in await db.execute(query.limit(MOST_READ))
    ]
    next_at = select(func.min(CallbackRow.due_at)).where(heads, CallbackRow.due_at > now)
    return calls, await db.scalar(next_at)


def _body(row: CallbackRow) -> dict[str, Any]:
    """As Backend.AI's manager posts it, and by what a repeat is known."""
    return {
        "type": "session_lifecycle",
        "event": row.event,
        "session_id": str(row.session_id),
        "when": row.at.isoformat(),
        "id": str(row.id),
    }
