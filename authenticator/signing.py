"""Request signing as Backend.AI's clients do it: pure functions, no clock and no I/O.

The signature covers method, raw request target, date, ``Host``, media type and API version. The last line of the
signed text is the digest of the empty string whatever the body is (API v4.20181215 and later). Facts from the
wire of ``backend.ai-client`` 23.09 and from the manager's documentation.
"""

import datetime as dt
import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from authenticator.problems import AuthFailed, InvalidAuthParameters

MAX_SKEW = dt.timedelta(minutes=15)
SCHEMES = frozenset({"backendai", "sorna"})
DATE_HEADERS = ("date", "x-backendai-date", "x-sorna-date")
VERSION_HEADERS = ("x-backendai-version", "x-sorna-version")
ABSENT_MEDIA_TYPE = "application/octet-stream"
MAX_HEADER = 1024
"""Longer authorization or date headers are refused unread."""

_NEEDS_LENGTH = frozenset({"shake_128", "shake_256"})
ALGORITHMS = frozenset(hashlib.algorithms_guaranteed - _NEEDS_LENGTH)
"""Hashes that HMAC can use; names in small letters."""

_AUTHORIZATION = re.compile(
    r"(?P<scheme>\w+)\s+signMethod\s*=\s*HMAC-(?P<hash>[\w-]+)\s*,"
    r"\s*credential\s*=\s*(?P<key>[A-Za-z0-9_-]{1,64}):(?P<signature>[0-9A-Fa-f]+)\s*",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Credential:
    """What an ``Authorization`` header of a signed request says."""

    algorithm: str
    """Name of the hash in hashlib."""
    access_key: str
    signature: str
    """Hexadecimal, small letters."""


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """The parts of a request that its signature covers, exactly as they were on the wire."""

    method: str
    target: str
    """Raw path and query, not decoded, with any prefix that the client's endpoint has."""
    host: str
    """The ``Host`` header."""
    date: str | None
    version: str | None
    content_type: str | None
    authorization: str | None

    @classmethod
    def from_headers(cls, method: str, target: str, headers: Mapping[str, str]) -> "SignedRequest":
        """Pick the parts from headers; names are compared without regard to case."""
        low = {name.lower(): value for name, value in headers.items()}

        def first(names: tuple[str, ...]) -> str | None:
            return next((low[name] for name in names if low.get(name)), None)

        return cls(
            method=method,
            target=target,
            host=low.get("host", ""),
            date=first(DATE_HEADERS),
            version=first(VERSION_HEADERS),
            content_type=low.get("content-type"),
            authorization=low.get("authorization"),
        )


def is_signed(authorization: str | None) -> bool:
    """Whether an ``Authorization`` header is of the signing scheme (it may still be wrong)."""
    return authorization is not None and authorization.split(" ", 1)[0].lower() in SCHEMES


def parse_authorization(header: str | None) -> Credential:
    """Read ``BackendAI signMethod=HMAC-SHA256, credential=KEY:HEX``.

    Raises ``AuthFailed`` when there is none, ``InvalidAuthParameters`` when it cannot be read.
    """
    if not header:
        raise AuthFailed("Unauthorized access")
    found = _AUTHORIZATION.fullmatch(header.strip()) if len(header) <= MAX_HEADER else None
    if found is None:
        raise InvalidAuthParameters(
            "The Authorization header cannot be read: it must be "
            "'BackendAI signMethod=HMAC-SHA256, credential=<access key>:<signature>'"
        )
    if found["scheme"].lower() not in SCHEMES:
        raise InvalidAuthParameters("The Authorization header has an unknown scheme: use BackendAI")
    return Credential(_algorithm(found["hash"]), found["key"], found["signature"].lower())


def _algorithm(name: str) -> str:
    """hashlib's name of ``SHA256``, ``SHA-256``, ``sha3-256`` and the like."""
    low = name.lower()
    for candidate in (low, low.replace("-", "_"), low.replace("-", "")):
        if candidate in ALGORITHMS:
            return candidate
    raise InvalidAuthParameters(
        f"The hash {name[:32]!r} is not supported: use one of {', '.join(sorted(ALGORITHMS))}"
    )


def parse_date(text: str | None) -> dt.datetime:
    """The request's date in UTC; ISO-8601 or RFC 1123 form, taken as UTC when it names no zone.

    Raises ``InvalidAuthParameters`` when it is missing or cannot be read.
    """
    if text and len(text) <= MAX_HEADER:
        for parse in (dt.datetime.fromisoformat, parsedate_to_datetime):
            try:
                date = parse(text.strip())
                aware = date if date.tzinfo is not None else date.replace(tzinfo=dt.UTC)
                return aware.astimezone(dt.UTC)
            except (ValueError, OverflowError):
                continue
    raise InvalidAuthParameters("Date/time sync error")


def check_date(request: SignedRequest, now: dt.datetime) -> dt.datetime:
    """The request's date, or ``InvalidAuthParameters`` when it is missing or over 15 minutes off ``now``."""
    date = parse_date(request.date)
    if abs(now - date) > MAX_SKEW:
        raise InvalidAuthParameters("Date/time sync error")
    return date


def media_type(content_type: str | None) -> str:
    """Media type without parameters in small letters; ``application/octet-stream`` when the header is absent."""
    if not content_type:
        return ABSENT_MEDIA_TYPE
    return content_type.split(";", 1)[0].strip().lower() or ABSENT_MEDIA_TYPE


def string_to_sign(request: SignedRequest, algorithm: str) -> bytes:
    """The seven lines that are signed, joined by LF."""
    lines = (
        request.method.upper(),
        request.target,
        request.date or "",
        f"host:{request.host}",
        f"content-type:{media_type(request.content_type)}",
        f"x-backendai-version:{request.version or ''}",
        hashlib.new(algorithm, b"", usedforsecurity=False).hexdigest(),
    )
    return "\n".join(lines).encode("utf-8", "surrogateescape")


def _signature(request: SignedRequest, algorithm: str, secret: str, date: dt.datetime) -> str:
    day = date.astimezone(dt.UTC).strftime("%Y%m%d")
    first = hmac.digest(secret.encode(), day.encode(), algorithm)
    key = hmac.digest(first, request.host.encode("utf-8", "surrogateescape"), algorithm)
    return hmac.new(key, string_to_sign(request, algorithm), algorithm).hexdigest()


def verify(request: SignedRequest, secret: str, now: dt.datetime) -> Credential:
    """The credential of a request whose signature holds for ``secret``.

    Raises ``InvalidAuthParameters`` for a bad date (checked first) or an unreadable header, ``AuthFailed``
    for a wrong signature. The comparison takes the same time wherever the signatures differ.
    """
    date = check_date(request, now)
    credential = parse_authorization(request.authorization)
    expected = _signature(request, credential.algorithm, secret, date)
    if not hmac.compare_digest(expected, credential.signature):
        raise AuthFailed("Signature mismatch")
    return credential


def sign(
    request: SignedRequest, access_key: str, secret: str, algorithm: str = "sha256"
) -> dict[str, str]:
    """Headers that make ``request`` a signed one: ``Authorization``, ``Date``, ``X-BackendAI-Version``.

    ``request`` needs its date and version; whoever sends it sends its ``content_type`` and ``host`` as given.
    """
    if request.date is None or request.version is None:
        raise ValueError("a request needs a date and a version to be signed")
    signature = _signature(request, _algorithm(algorithm), secret, parse_date(request.date))
    method = algorithm.upper()
    return {
        "Authorization": f"BackendAI signMethod=HMAC-{method}, credential={access_key}:{signature}",
        "Date": request.date,
        "X-BackendAI-Version": request.version,
    }
