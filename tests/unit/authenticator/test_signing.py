"""Signatures against vectors worked out here from the specification, with hmac and hashlib alone."""

import dataclasses
import datetime as dt
import hashlib
import hmac

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from authenticator.problems import AuthFailed, InvalidAuthParameters
from authenticator.signing import (
    ALGORITHMS,
    SignedRequest,
    is_signed,
    media_type,
    parse_authorization,
    sign,
    verify,
)

NOW = dt.datetime(2026, 11, 23, 12, 31, 20, tzinfo=dt.UTC)
DATE = "2026-11-23T12:31:16.386396+00:00"
KEY, SECRET = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
VERSION = "v7.20230615"


def by_the_book(
    method: str, target: str, date: str, day: str, host: str, kind: str, algorithm: str = "sha256"
) -> str:
    """The signature as the specification says, written out."""
    empty = hashlib.new(algorithm).hexdigest()
    text = (
        f"{method}\n{target}\n{date}\nhost:{host}\ncontent-type:{kind}\n"
        f"x-backendai-version:{VERSION}\n{empty}"
    )
    first = hmac.new(SECRET.encode(), day.encode(), algorithm).digest()
    key = hmac.new(first, host.encode(), algorithm).digest()
    return hmac.new(key, text.encode(), algorithm).hexdigest()


def request(
    authorization: str | None,
    *,
    method: str = "POST",
    target: str = "/session",
    host: str = "localhost:8090",
    date: str | None = DATE,
    content_type: str | None = "application/json",
    date_header: str = "Date",
) -> SignedRequest:
    headers = {"Host": host, "X-BackendAI-Version": VERSION}
    for name, value in (
        (date_header, date),
        ("Authorization", authorization),
        ("Content-Type", content_type),
    ):
        if value is not None:
            headers[name] = value
    return SignedRequest.from_headers(method, target, headers)


def header(signature: str, method: str = "HMAC-SHA256") -> str:
    return f"BackendAI signMethod={method}, credential={KEY}:{signature}"


@pytest.mark.parametrize(
    ("content_type", "kind"),
    [
        ("application/json", "application/json"),
        ("Application/JSON; charset=utf-8", "application/json"),
        ("text/plain", "text/plain"),
        ("multipart/form-data; boundary=x", "multipart/form-data"),
        (None, "application/octet-stream"),
        ("", "application/octet-stream"),
    ],
)
def test_the_media_type_is_signed_without_parameters(content_type: str | None, kind: str) -> None:
    assert media_type(content_type) == kind
    signature = by_the_book("POST", "/session", DATE, "20261123", "localhost:8090", kind)
    verify(request(header(signature), content_type=content_type), SECRET, NOW)


RECORDED = [
    (
        *("GET", "/hub/bai/session/_/match?id=%ED%95%9C%EA%B8%80+a%2Bb/c", "127.0.0.1:44809"),
        *("2026-11-23T19:20:57.679783+00:00", "text/plain", "HMAC-SHA256"),
        "3bab4a57bd1bd1511b049eab4179039cd40bf1f4df62a74e43f938a4077b8932",
    ),
    (
        *("GET", "/hub/bai/events/session?x=1", "127.0.0.1:44809"),
        *("2026-11-23T19:20:57.692252+00:00", None, "HMAC-SHA256"),
        "ffdae53db2fb2e9e095fd393bf1085bf1113f2a1cf776d5e1f2aca7b33dc2798",
    ),
    (
        *("POST", "/hub/bai/session", "127.0.0.1:33725"),
        *("2026-11-23T19:21:12.860510+00:00", "application/json", "HMAC-SHA512"),
        "e5e496f71fb4a069a0ec752b6bdef27ce13ccf49cd79f84d6c5aaf59437eb083"
        "372aa1ee7a0c7dee1c6e8753ef2c6a5ba711892955f9975ad5992ac6df95b685",
    ),
]


@pytest.mark.parametrize(
    ("method", "target", "host", "date", "content_type", "algorithm", "signature"), RECORDED
)
def test_signatures_that_the_published_client_made(
    method: str,
    target: str,
    host: str,
    date: str,
    content_type: str | None,
    algorithm: str,
    signature: str,
) -> None:
    """Recorded from ``backend.ai-client`` 23.09.10 as its requests arrived."""
    received = request(
        header(signature, algorithm),
        method=method,
        target=target,
        host=host,
        date=date,
        content_type=content_type,
    )
    verify(received, SECRET, dt.datetime.fromisoformat(date))


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "sha512", "sha3_256", "blake2b", "md5"])
def test_any_hash_of_hashlib_signs(algorithm: str) -> None:
    signature = by_the_book(
        "POST", "/session", DATE, "20261123", "localhost:8090", "application/json", algorithm
    )
    credential = verify(request(header(signature, f"HMAC-{algorithm.upper()}")), SECRET, NOW)
    assert (credential.algorithm, credential.access_key) == (algorithm, KEY)


def test_the_raw_target_is_signed_with_prefix_and_query() -> None:
    target = "/services/perijove/folders/%ED%95%9C?group=a+b%2Bc/x&all="
    signature = by_the_book("GET", target, DATE, "20261123", "hub.example", "text/plain")
    signed = request(
        header(signature),
        method="GET",
        target=target,
        host="hub.example",
        content_type="text/plain",
    )
    verify(signed, SECRET, NOW)
    with pytest.raises(AuthFailed):
        verify(dataclasses.replace(signed, target=target.replace("+", "%20")), SECRET, NOW)


@pytest.mark.parametrize(
    ("date", "now"),
    [
        ("2026-11-23T12:31:16.386Z", NOW),
        ("2026-11-23T12:31:16", NOW),
        ("2026-11-23T14:31:16+02:00", NOW),
        ("Mon, 23 Nov 2026 12:31:16 GMT", NOW),
        ("20261123T123116Z", NOW),
        ("2026-11-24T00:10:00+09:00", dt.datetime(2026, 11, 23, 15, 10, tzinfo=dt.UTC)),
    ],
)
@pytest.mark.parametrize("name", ["Date", "X-BackendAI-Date", "X-Sorna-Date", "date"])
def test_dates_of_all_clients_under_all_names(date: str, now: dt.datetime, name: str) -> None:
    """The signing key's day is that of the request in UTC, the signed line is verbatim."""
    signature = by_the_book(
        "POST", "/session", date, "20261123", "localhost:8090", "application/json"
    )
    verify(request(header(signature), date=date, date_header=name), SECRET, now)


@pytest.mark.parametrize(
    "date",
    [
        None,
        "",
        "yesterday",
        "9" * 5000,
        "2026-11-23T12:16:19+00:00",
        "2026-11-23T12:46:21+00:00",
        "0001-01-01T00:00:00+23:00",
    ],
)
def test_missing_unreadable_and_old_dates_are_refused_before_anything_else(
    date: str | None,
) -> None:
    for authorization in (header("ab"), None, "nonsense"):
        with pytest.raises(InvalidAuthParameters, match="Date/time sync error"):
            verify(request(authorization, date=date), SECRET, NOW)


@pytest.mark.parametrize(
    ("authorization", "reason"),
    [
        ("BackendAI", "cannot be read"),
        ("BackendAI signMethod=HMAC-SHA256", "cannot be read"),
        (f"BackendAI signMethod=HMAC-SHA256, credential={KEY}", "cannot be read"),
        (f"BackendAI signMethod=HMAC-SHA256, credential={KEY}:xyz", "cannot be read"),
        (f"BackendAI signMethod=RSA-SHA256, credential={KEY}:ab", "cannot be read"),
        (f"Basic signMethod=HMAC-SHA256, credential={KEY}:ab", "unknown scheme"),
        (header("ab", "HMAC-WHIRLPOOL"), "'WHIRLPOOL' is not supported"),
        (header("ab", "HMAC-SHAKE_128"), "is not supported"),
        ("BackendAI " + "x" * 5000, "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_a_bad_request(authorization: str, reason: str) -> None:
    with pytest.raises(InvalidAuthParameters, match=reason) as refused:
        parse_authorization(authorization)
    assert (refused.value.status, refused.value.slug) == (400, "invalid-auth-params")


def test_no_credential_is_unauthorized() -> None:
    with pytest.raises(AuthFailed, match="Unauthorized access") as refused:
        verify(request(None), SECRET, NOW)
    assert (refused.value.status, refused.value.slug) == (401, "auth-failed")


def test_the_older_scheme_and_loose_spacing_are_read() -> None:
    for text in (
        f"Sorna signMethod=HMAC-SHA256, credential={KEY}:AB",
        f"backendai signMethod=HMAC-sha256,credential={KEY}:ab",
    ):
        assert is_signed(text)
        assert parse_authorization(text).signature == "ab"
    assert not is_signed("Bearer x")
    assert not is_signed(None)


@pytest.mark.parametrize(
    "change",
    [
        {"method": "PUT"},
        {"target": "/session?x"},
        {"host": "localhost"},
        {"version": "v6.20230315"},
        {"content_type": None},
        {"date": "2026-11-23T12:31:16.386397+00:00"},
    ],
)
def test_whatever_is_changed_breaks_the_signature(change: dict[str, str | None]) -> None:
    signature = by_the_book(
        "POST", "/session", DATE, "20261123", "localhost:8090", "application/json"
    )
    signed = request(header(signature))
    verify(signed, SECRET, NOW)
    with pytest.raises(AuthFailed, match="Signature mismatch"):
        verify(dataclasses.replace(signed, **change), SECRET, NOW)  # type: ignore[arg-type] # as declared
    with pytest.raises(AuthFailed, match="Signature mismatch"):
        verify(signed, SECRET + "x", NOW)


@settings(max_examples=40)
@given(
    method=st.sampled_from(["GET", "DELETE", "PATCH"]),
    target=st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF), max_size=40),
    host=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20),
    content_type=st.none()
    | st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20),
    secret=st.text(min_size=1, max_size=50).filter(lambda text: text.isprintable()),
    algorithm=st.sampled_from(sorted(ALGORITHMS)),
    skew=st.integers(-899, 899),
)
def test_what_sign_signs_verify_accepts(
    method: str,
    target: str,
    host: str,
    content_type: str | None,
    secret: str,
    algorithm: str,
    skew: int,
) -> None:
    date = (NOW + dt.timedelta(seconds=skew)).isoformat()
    draft = SignedRequest(method, target, host, date, VERSION, content_type, None)
    sent = {"Host": host, **sign(draft, KEY, secret, algorithm)}
    if content_type is not None:
        sent["Content-Type"] = content_type
    received = SignedRequest.from_headers(method, target, sent)
    assert verify(received, secret, NOW).access_key == KEY
