"""``perijove audit``: is everything as the database says? On the manager's host; it changes nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import aiohttp
from traitlets import Bool, Float, Unicode

from hub.commands.base import Command, CommandError, say, table
from hub.commands.records import with_store
from spawner.options import hub_id
from spawner.sessions.invariants import violations

PAUSE = 0.5
"""Seconds between looks."""
Row = tuple[str, str, str]
"""Node, what it is about, sentence."""


class Audit(Command):
    """Compare the database with what really runs.

    That is what agents drive, what their engines have (containers, control groups, networks, ports) and where
    the proxy's routes lead. The database is checked by itself as well. Works on the manager's host.

    What is under way may differ for a moment: told is what differed in every look. Ends with status 1 if there
    is anything."""

    name = "perijove audit"
    within = Float(10.0, min=0, help="Seconds within which what differs may come right.").tag(
        config=True
    )
    routes = Bool(True, help="Whether the routes of the deployment's proxy are compared too.").tag(
        config=True
    )
    manager_url = Unicode(help="URL of the manager. Default: the deployment's own.").tag(
        config=True
    )
    flags = {
        **Command.flags,
        "no-routes": ({"Audit": {"routes": False}}, "Do not ask the proxy for its routes."),
    }

    def act(self, *arguments: str) -> None:
        """Say what differs; raise ``CommandError`` if anything does."""
        broken = with_store(self.deployment(), violations)
        rows, told = asyncio.run(self._looks())
        if rows:
            say(table(("NODE", "ABOUT", "DIFFERENCE"), sorted(rows)))
        for sentence in broken:
            say(f"database: {sentence}")
        say(told)
        if rows or broken:
            raise CommandError(f"{len(rows) + len(broken)} differences")

    async def _looks(self) -> tuple[set[Row], str]:
        """What differs in every look until the time is over, and what was compared."""
        timeout = aiohttp.ClientTimeout(total=60)
        deadline = time.monotonic() + self.within
        differing: set[Row] | None = None
        async with aiohttp.ClientSession(timeout=timeout, trust_env=False) as http:
            while True:
                late = time.monotonic() >= deadline
                try:
                    rows, told = await self._look(http)
                    differing = rows if differing is None else differing & rows
                    if late or not differing:
                        return differing, told
                except CommandError:  # somebody may just be starting again
                    if late:
                        raise
                await asyncio.sleep(PAUSE)

    async def _look(self, http: aiohttp.ClientSession) -> tuple[set[Row], str]:
        deployment = self.deployment()
        secrets, addresses = deployment.secrets(), deployment.addresses()
        manager = str(self.manager_url).rstrip("/") or addresses.manager_url
        found = await _get(
            http, "the manager", f"{manager}/agents/audit", f"Bearer {secrets.hub_secret}"
        )
        rows = {(each["node"], each["about"], each["sentence"]) for each in found["differences"]}
        told = [f"{count} runs on {name}" for name, count in sorted(found["compared"].items())]
        told += [f"not {name} ({why})" for name, why in sorted(found["silent"].items())]
        if self.routes:
            url = f"{addresses.proxy_api_url}/api/routes"
            present = await _get(http, "the proxy", url, f"token {secrets.proxy_token}")
            wanted = [each for each in found["routes"] if each["hub"] == hub_id(secrets.hub_secret)]
            rows |= compare_routes(wanted, present)
            told.append(f"{len(wanted)} servers behind the proxy")
        return rows, f"compared: {', '.join(told) or 'nothing'}"


def compare_routes(
    wanted: list[Mapping[str, Any]], present: Mapping[str, Mapping[str, Any]]
) -> set[Row]:
    """What is wrong with the proxy's routes to people's servers."""
    urls = {(each["owner"], each["server"]): each["url"] for each in wanted}
    leads = {
        (str(route["user"]), str(route.get("server_name") or "")): str(route["target"])
        for route in present.values()
        if "user" in route
    }
    rows: set[Row] = set()
    for server in urls.keys() | leads.keys():
        url, target = urls.get(server), leads.get(server)
        if url is None and target is not None:
            rows.add(("proxy", "/".join(server), f"a route leads to {target}, where nothing runs"))
        elif url is not None and (target or "").rstrip("/") != url.rstrip("/"):
            rows.add(("proxy", "/".join(server), f"it runs at {url}, its route is {target}"))
    return rows


async def _get(http: aiohttp.ClientSession, who: str, url: str, credential: str) -> dict[str, Any]:
    """A JSON object. Raises ``CommandError``."""
    try:
        async with http.get(url, headers={"Authorization": credential}) as answer:
            if answer.status == 200:
                found: dict[str, Any] = await answer.json()
                return found
            raise CommandError(f"{who} answers {answer.status} at {url}")
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise CommandError(f"{who} does not answer at {url}: {error}") from error
