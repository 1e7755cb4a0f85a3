"""What a proxy changes in the headers between a browser and an app. Pure.

Nothing that proves who somebody is to the hub or to us goes to an app; nothing an app answers takes effect
outside of its own path.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import urlsplit

Headers = list[tuple[str, str]]
HOP_BY_HOP = frozenset((
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te",
    "trailer", "transfer-encoding", "upgrade", "expect",
))  # fmt: skip
PRIVATE = frozenset(
    ("authorization", "host", "cookie", "forwarded", "x-real-ip", "x-perijove-user")
)
"""Of requests: ours, or set anew."""
EVERYWHERE = frozenset((
    "strict-transport-security", "clear-site-data", "alt-svc", "set-cookie", "location",
    "service-worker-allowed", "nel", "report-to", "reporting-endpoints",
))  # fmt: skip
"""Of answers: they take effect beyond the app's path, or name addresses."""
HANDSHAKE = "sec-websocket-"
OUR_COOKIES = ("service-perijove", "jupyterhub-")
"""Beginnings of names of cookies that belong to the hub and to us."""
_PAIR = re.compile(r"\s*([^=;\s]+)\s*=?([^;]*)")


def to_app(given: Iterable[tuple[str, str]], base: str, origin: str, client: str) -> Headers:
    """Headers of a request to an app that browsers reach below ``base`` at ``origin`` (``https://host``)."""
    pairs = list(given)
    named = _named_by_connection(pairs)
    scheme, _, host = origin.partition("://")
    kept = [
        (name, value)
        for name, value in pairs
        if (lower := name.lower()) not in HOP_BY_HOP | PRIVATE | named
        and not lower.startswith((HANDSHAKE, "x-forwarded-"))
    ]
    cookies = "; ".join(
        each for name, value in pairs if name.lower() == "cookie" for each in own(value)
    )
    ours = {
        "Host": host,
        "X-Forwarded-For": client,
        "X-Forwarded-Host": host,
        "X-Forwarded-Proto": scheme,
        "X-Forwarded-Prefix": base.rstrip("/"),
    }
    if cookies:
        ours["Cookie"] = cookies
    return [*kept, *ours.items()]


def own(cookies: str) -> list[str]:
    """The cookies of a header that are the app's."""
    parts = (each.strip() for each in cookies.split(";"))
    return [each for each in parts if each and not each.startswith(OUR_COOKIES)]


def from_app(
    given: Iterable[tuple[str, str]], base: str, origin: str, *, stripped: bool
) -> Headers:
    """Headers of an app's answer; ``stripped``: the app does not know the path ``base`` that it is under."""
    pairs = list(given)
    gone = HOP_BY_HOP | EVERYWHERE | _named_by_connection(pairs)
    kept = [(name, value) for name, value in pairs if name.lower() not in gone]
    for name, value in pairs:
        lower = name.lower()
        if lower == "set-cookie" and (cookie := _confined(value, base)) is not None:
            kept.append((name, cookie))
        elif lower == "location":
            kept.append((name, location(value, base, origin, stripped=stripped)))
        elif lower == "service-worker-allowed":
            kept.append((name, base))
    return kept


def location(target: str, base: str, origin: str, *, stripped: bool) -> str:
    """Where a redirect of an app leads browsers: paths of its own stay below ``base``."""
    host = origin.partition("://")[2]
    parts = urlsplit(target)
    if parts.netloc not in ("", host):
        return target
    if parts.netloc:
        target = target.partition("://")[2].removeprefix(host) or "/"
    if not stripped or not target.startswith("/") or target.startswith(base):
        return target
    return base + target.lstrip("/")


def _confined(cookie: str, base: str) -> str | None:
    """A cookie that browsers send to this app only; None for one that bears a name of ours."""
    name, *attributes = (each.strip() for each in cookie.split(";"))
    if name.startswith(OUR_COOKIES):
        return None
    path = base
    kept: list[str] = []
    for each in attributes:
        found = _PAIR.match(each)
        key = found[1].lower() if found else ""
        if key == "path" and found is not None and found[2].strip().startswith(base):
            path = found[2].strip()
        elif each and key not in ("path", "domain"):
            kept.append(each)
    return "; ".join([name, *kept, f"Path={path}"])


def _named_by_connection(pairs: Iterable[tuple[str, str]]) -> frozenset[str]:
    """Headers that the header Connection says are for the next hop only."""
    return frozenset(
        word.strip().lower()
        for name, value in pairs
        if name.lower() == "connection"
        for word in value.split(",")
    )
