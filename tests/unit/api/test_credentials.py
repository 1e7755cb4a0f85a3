"""Who somebody is: signatures as Backend.AI's clients make them, the hub's word, tokens, cookies."""

from __future__ import annotations

import datetime as dt

import pytest
from jupyterhub.services.auth import HubAuth
from tornado.web import create_signed_value
from traitlets import TraitError

from authenticator.keypairs import NewKeyPair
from authenticator.principals import Role
from hub.api.authentication import hub_login
from hub.manager import ManagerConfig
from tests.unit.api.server import HUB_SECRET, Api


def test_how_long_the_hub_is_believed() -> None:
    """A token that is revoked works no longer than an administrator says; 0 would mean for ever."""
    assert ManagerConfig().hub_cache_max_age < HubAuth().cache_max_age, "stricter than others"
    login = hub_login("http://127.0.0.1:9/", "/hub/", "/services/x/", "token", cache_max_age=7)
    assert login.cache.max_age == 7
    with pytest.raises(TraitError):
        ManagerConfig(hub_cache_max_age=0)


async def test_a_signature_says_who_it_is(api: Api, ada: NewKeyPair) -> None:
    answer = await api.signed(ada, "GET", "/me")
    assert answer.status == 200
    assert answer.body["username"] == "ada"
    assert int(answer.headers["X-RateLimit-Remaining"]) >= 0


async def test_a_body_and_a_query_go_with_a_signature(api: Api, ada: NewKeyPair) -> None:
    assert (await api.signed(ada, "POST", "/auth", {"echo": "hi"})).body["echo"] == "hi"
    assert (await api.signed(ada, "GET", "/auth?echo=a%20b")).body["echo"] == "a b"


@pytest.mark.parametrize(
    "altered",
    [
        {"X-BackendAI-Version": "v4.20190615"},
        {"Host": "other.example"},
        {"Content-Type": "text/plain"},
    ],
)
async def test_what_was_altered_on_the_way_is_refused(
    api: Api, ada: NewKeyPair, altered: dict[str, str]
) -> None:
    answer = await api.signed(ada, "POST", "/auth", {"echo": "hi"}, altered=altered)
    assert (answer.status, answer.problem) == (401, "auth-failed")


async def test_another_path_or_secret_is_refused(api: Api, ada: NewKeyPair) -> None:
    answer = await api.signed(ada, "GET", "/me", signed_path="/auth/role")
    assert (answer.status, answer.problem) == (401, "auth-failed")
    wrong = NewKeyPair(ada.access_key, ada.secret_key[::-1])
    assert (await api.signed(wrong, "GET", "/me")).status == 401
    unknown = NewKeyPair("AKIANOBODYNOBODYNOBO", ada.secret_key)
    assert (await api.signed(unknown, "GET", "/me")).status == 401


@pytest.mark.parametrize("minutes", [-16, 16])
async def test_clocks_may_differ_by_fifteen_minutes(
    api: Api, ada: NewKeyPair, minutes: int
) -> None:
    now = dt.datetime.now(dt.UTC)
    answer = await api.signed(ada, "GET", "/me", at=now + dt.timedelta(minutes=minutes))
    assert (answer.status, answer.problem) == (400, "invalid-auth-params")
    near = now + dt.timedelta(minutes=minutes * 14 / 16)
    assert (await api.signed(ada, "GET", "/me", at=near)).status == 200


@pytest.mark.parametrize(
    "header", ["Basic YWRhOmFkYQ==", "BackendAI nonsense", "BackendAI", "Digest x"]
)
async def test_unreadable_headers_say_what_is_allowed(api: Api, header: str) -> None:
    headers = {"Authorization": header, "Date": dt.datetime.now(dt.UTC).isoformat()}
    answer = await api.send("GET", "/me", headers=headers)
    assert (answer.status, answer.problem) == (400, "invalid-auth-params")
    assert "BackendAI" in answer.body["msg"]


async def test_the_hub_speaks_for_users_by_encoded_names(api: Api) -> None:
    assert (await api.hub("GET", "/me", user="j%C3%BCrgen")).body["username"] == "jürgen"
    headers = {"Authorization": f"Bearer {HUB_SECRET}"}
    answer = await api.send("GET", "/internal/spawn-options", headers=headers)
    assert (answer.status, answer.problem) == (400, "invalid-auth-params")
    headers["X-Perijove-User"] = "%ff"
    assert (await api.send("GET", "/me", headers=headers)).status == 400


async def test_a_hub_that_is_away_is_said_to_be(api: Api) -> None:
    answer = await api.send("GET", "/me", headers={"Authorization": "token abc"})
    assert (answer.status, answer.problem) == (503, "service-unavailable")
    assert int(answer.headers["Retry-After"]) > 0


async def test_a_disabled_user_is_out_at_once(api: Api) -> None:
    pair = await api.user("mallory")
    assert (await api.signed(pair, "GET", "/me")).status == 200
    await api.services.identity.set_status("mallory", "inactive")
    answer = await api.signed(pair, "GET", "/me")
    assert (answer.status, answer.problem) == (401, "auth-failed")


async def test_only_administrators_act_for_others(
    api: Api, ada: NewKeyPair, root: NewKeyPair
) -> None:
    path = f"/session/none?owner_access_key={root.access_key}"
    answer = await api.signed(ada, "GET", path)
    assert (answer.status, answer.problem) == (403, "generic-forbidden")
    assert (
        await api.signed(root, "GET", f"/session/none?owner_access_key={ada.access_key}")
    ).status == 404
    assert (await api.services.identity.principal_by_access_key(root.access_key))[
        0
    ].role is Role.SUPERADMIN


async def test_the_page_of_sessions_says_that_the_hub_does_not_answer(api: Api) -> None:
    name = "service-perijove"
    signed = create_signed_value(b"0" * 32, name, "token").decode()
    headers = {"Accept": "text/html,*/*", "Cookie": f"{name}={signed}"}
    answer = await api.send("GET", "/services/perijove/", headers=headers)
    assert (answer.status, answer.problem) == (503, "service-unavailable")
    assert answer.headers["Retry-After"] == "2"
