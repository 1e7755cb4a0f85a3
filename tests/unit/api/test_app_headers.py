"""What a proxy changes in headers: nothing of ours reaches an app, nothing of an app leaves its path."""

from __future__ import annotations

import pytest

from hub.api.app_headers import from_app, location, to_app

BASE = "/services/perijove-apps/0e6f/tb/"
ORIGIN = "https://hub.example.org"


def asked(*given: tuple[str, str]) -> dict[str, str]:
    return dict(to_app(given, BASE, ORIGIN, "192.0.2.1"))


def answered(*given: tuple[str, str]) -> list[tuple[str, str]]:
    return from_app(given, BASE, ORIGIN, stripped=True)


def test_nothing_that_proves_who_somebody_is_reaches_an_app() -> None:
    told = asked(
        ("Authorization", "token secret"),
        ("Cookie", "service-perijove-apps=secret; a=1; jupyterhub-session-id=secret"),
        ("Cookie", "service-perijove-apps-oauth-state=secret; _xsrf=theirs"),
        ("X-Perijove-User", "eve"),
        ("Accept", "*/*"),
    )
    assert told["Cookie"] == "a=1; _xsrf=theirs"
    assert told["Accept"] == "*/*"
    assert "secret" not in str(told)
    assert "eve" not in str(told)
    assert "Cookie" not in asked(("cookie", "service-perijove-apps=secret"))


def test_where_a_request_came_from_is_ours_to_say() -> None:
    told = asked(
        ("Host", "evil"), ("X-Forwarded-For", "198.51.100.7"), ("X-Forwarded-Proto", "http")
    )
    assert told == {
        "Host": "hub.example.org",
        "X-Forwarded-For": "192.0.2.1",
        "X-Forwarded-Host": "hub.example.org",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Prefix": "/services/perijove-apps/0e6f/tb",
    }


def test_headers_of_one_hop_end_here() -> None:
    hop = (
        ("Connection", "keep-alive, X-Mine"),
        ("X-Mine", "1"),
        ("Keep-Alive", "5"),
        ("Transfer-Encoding", "chunked"),
        ("Upgrade", "h2c"),
        ("TE", "trailers"),
        ("Sec-WebSocket-Key", "k"),
    )
    assert len(asked(*hop)) == 5
    assert [name for name, _ in answered(*hop)] == ["Sec-WebSocket-Key"]


@pytest.mark.parametrize(
    ("cookie", "kept"),
    [
        ("a=1", f"a=1; Path={BASE}"),
        ("a=1; Path=/; Domain=example.org; HttpOnly", f"a=1; HttpOnly; Path={BASE}"),
        (f"a=1; path={BASE}sub; Secure", f"a=1; Secure; Path={BASE}sub"),
        ("a=1; Path=/services/perijove/", f"a=1; Path={BASE}"),
        ("service-perijove-apps=mine; Path=/", None),
        ("jupyterhub-session-id=mine", None),
    ],
)
def test_cookies_of_an_app_stay_with_it(cookie: str, kept: str | None) -> None:
    expected = [] if kept is None else [("Set-Cookie", kept)]
    assert answered(("Set-Cookie", cookie)) == expected


def test_an_app_changes_nothing_beyond_its_path() -> None:
    told = answered(
        ("Strict-Transport-Security", "max-age=1"),
        ("Clear-Site-Data", '"*"'),
        ("Alt-Svc", 'h3=":443"'),
        ("Service-Worker-Allowed", "/"),
        ("Content-Type", "text/html"),
    )
    assert told == [("Content-Type", "text/html"), ("Service-Worker-Allowed", BASE)]


@pytest.mark.parametrize(
    ("target", "stripped", "expected"),
    [
        ("/login", True, f"{BASE}login"),
        ("login?a=/b", True, "login?a=/b"),
        (f"{ORIGIN}/login", True, f"{BASE}login"),
        (f"{ORIGIN}", True, BASE),
        (f"{BASE}login", True, f"{BASE}login"),
        (f"{BASE}login", False, f"{BASE}login"),
        (f"{ORIGIN}{BASE}login", False, f"{BASE}login"),
        ("https://elsewhere.example/", True, "https://elsewhere.example/"),
        ("//elsewhere.example/x", True, "//elsewhere.example/x"),
    ],
)
def test_redirects_stay_below_the_path(target: str, stripped: bool, expected: str) -> None:
    assert location(target, BASE, ORIGIN, stripped=stripped) == expected
