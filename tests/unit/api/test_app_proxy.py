"""Who is let in to apps in the browser, as far as it can be told without a hub; tests/e2e has the rest."""

from __future__ import annotations

import pytest

from tests.unit.api.server import Api

APP = "/services/perijove-apps/0e6f6c1e-1d1c-4b55-8f6e-2f6f6f6f6f6f/tensorboard/"
BROWSER = {"Accept": "text/html,*/*", "Sec-Fetch-Mode": "navigate"}


async def test_browsers_are_sent_to_log_in_and_come_back(api: Api) -> None:
    sent = await api.send("GET", f"{APP}runs?a=1", headers={**BROWSER, "Sec-Fetch-Site": "none"})
    assert sent.status == 302
    assert sent.headers["Location"].startswith("/hub/api/oauth2/authorize?")
    assert "client_id=service-perijove-apps" in sent.headers["Location"]
    state = sent.headers["Set-Cookie"]
    assert "HttpOnly" in state
    assert "Path=/services/perijove-apps/" in state
    # A link on a page of another site leads here like any other.
    linked = await api.send("GET", APP, headers={**BROWSER, "Sec-Fetch-Site": "cross-site"})
    assert linked.status == 302


async def test_programs_are_told(api: Api) -> None:
    for method in ("GET", "PUT", "DELETE", "OPTIONS"):
        refused = await api.send(method, APP)
        assert (refused.status, refused.problem) == (401, "auth-failed"), method
    unknown = await api.send("GET", APP, headers={"Authorization": "token x"})
    assert (unknown.status, unknown.problem) == (503, "service-unavailable")


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://elsewhere.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"},
    ],
)
async def test_pages_of_other_sites_are_refused(api: Api, headers: dict[str, str]) -> None:
    for method in ("GET", "POST"):
        refused = await api.send(method, APP, headers=headers)
        assert (refused.status, refused.problem) == (403, "generic-forbidden"), method
    socket = {"Upgrade": "websocket", "Connection": "Upgrade", **headers}
    assert (await api.send("GET", f"{APP}ws", headers=socket)).status == 403


async def test_the_place_of_all_apps_leads_to_the_sessions(api: Api) -> None:
    for path in ("/services/perijove-apps/", "/services/perijove-apps"):
        answer = await api.send("GET", path)
        assert (answer.status, answer.headers["Location"]) == (302, "/services/perijove/")
