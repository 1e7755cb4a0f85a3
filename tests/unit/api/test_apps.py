"""Apps of sessions over HTTP: for others the session does not exist, and wrong input is named."""

from __future__ import annotations

from authenticator.keypairs import NewKeyPair
from tests.harness.plane import REQUEST
from tests.unit.api.server import Api


async def test_apps_are_for_the_owner_only(api: Api) -> None:
    amy: NewKeyPair = await api.user("amy-of-apps")
    owner = await api.principal("amy-of-apps")
    made = await api.plane.create(owner, name="with-apps")
    detail = await api.plane.wait(made)
    path = f"/session/{detail.session.id}"
    stream = f"/stream{path}"
    try:
        listed = await api.signed(amy, "GET", f"{stream}/apps")
        assert [app["name"] for app in listed.body] == ["jupyterlab", "terminal", "sshd"]
        stranger = await api.user("eve-of-apps")
        for method, place, body in (
            ("GET", f"{stream}/tcpproxy?app=jupyterlab", None),
            ("GET", f"{stream}/httpproxy?app=jupyterlab", None),
            ("GET", f"{stream}/pty", None),
            ("POST", f"{path}/start-service", {"app": "jupyterlab"}),
            ("POST", f"{path}/shutdown-service", {"service_name": "jupyterlab"}),
        ):
            answer = await api.signed(stranger, method, place, body)
            assert (answer.status, answer.problem) == (404, "object-not-found"), place
            assert answer.body["title"] == "No such session."
        unknown = await api.signed(amy, "POST", f"{path}/start-service", {"app": "nothing"})
        assert (unknown.status, unknown.body["title"]) == (404, "No such app service.")
        for given, field in (
            ({"app": "sshd", "envs": "[]"}, "envs"),
            ({"app": "jupyterlab", "arguments": '{"--x": "1"}'}, "arguments"),
            ({}, "app"),
        ):
            wrong = await api.signed(amy, "POST", f"{path}/start-service", given)
            assert (wrong.status, wrong.problem) == (400, "invalid-api-params")
            assert field in wrong.body["data"]
    finally:
        await api.plane.plane.sessions.destroy(
            owner, str(detail.session.id), forced=True, request_id=REQUEST
        )


async def test_the_page_with_a_terminal_is_for_the_owner_and_superadmins(
    api: Api, root: NewKeyPair
) -> None:
    owner_pair = await api.user("amy-of-terminals")
    owner = await api.principal("amy-of-terminals")
    stranger = await api.user("eve-of-terminals")
    made = await api.plane.create(owner, name="with-a-terminal")
    detail = await api.plane.wait(made)
    path = f"/session/{detail.session.id}/terminal"
    try:
        for pair in (owner_pair, root):
            page = await api.signed(pair, "GET", path)
            assert page.status == 200
            assert page.headers["Content-Type"] == "text/html; charset=utf-8"
            policy = page.headers["Content-Security-Policy"]
            assert policy.startswith("default-src 'self';")
            assert "script-src" not in policy
            assert f"stream/session/{detail.session.id}/pty" in page.body
            assert "http" not in page.body
        refused = await api.signed(stranger, "GET", path)
        assert (refused.status, refused.problem) == (404, "object-not-found")
        browser = {"Accept": "text/html,*/*"}
        sent = await api.send("GET", f"/services/perijove{path}", headers=browser)
        assert sent.status == 302
        assert sent.headers["Location"].startswith("/hub/api/oauth2/authorize?")
        assert (await api.send("GET", path, headers=browser)).status == 401
    finally:
        await api.plane.plane.sessions.destroy(
            owner, str(detail.session.id), forced=True, request_id=REQUEST
        )
