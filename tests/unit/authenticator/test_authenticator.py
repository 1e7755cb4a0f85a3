"""The JupyterHub Authenticator against a stand-in for the manager that speaks real HTTP."""

import json
import logging
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application, HTTPError, RequestHandler
from traitlets.config import Config

from authenticator.authenticator import AWAY, MISCONFIGURED, PerijoveAuthenticator
from authenticator.problems import WRONG_CREDENTIALS, AuthFailed, NotFound, Problem, RateLimited

SECRET = "the hub's secret"
ADA = {"username": "ada", "full_name": "Ada L.", "email": "ada@x", "is_admin": False}


class Manager:
    """Answers what the test wants and remembers what it was asked."""

    def __init__(self) -> None:
        self.answer: dict[str, Any] | Problem = ADA
        self.asked: list[tuple[str, str, dict[str, Any]]] = []
        socket, port = bind_unused_port()
        self.url = f"http://127.0.0.1:{port}"
        manager = self

        class Everything(RequestHandler):
            def reply(self) -> None:
                body = json.loads(self.request.body or b"{}")
                manager.asked.append((self.request.method or "", self.request.path, body))
                answer = manager.answer
                if self.request.headers["Authorization"] != f"Bearer {SECRET}":
                    answer = AuthFailed("Unauthorized access")
                if isinstance(answer, Problem):
                    self.set_status(answer.status)
                    self.finish(json.dumps(answer.body()))
                else:
                    self.finish(json.dumps(answer))

            get = post = reply

        self.server = HTTPServer(Application([(r"/.*", Everything)]))
        self.server.add_sockets([socket])


@pytest.fixture
async def manager() -> AsyncIterator[Manager]:
    manager = Manager()
    yield manager
    manager.server.stop()
    await manager.server.close_all_connections()


def authenticator(manager: Manager, **traits: Any) -> PerijoveAuthenticator:
    settings = {"manager_url": manager.url + "/", "hub_secret": SECRET} | traits
    return PerijoveAuthenticator(config=Config(PerijoveAuthenticator=settings))


HANDLER = SimpleNamespace(request=SimpleNamespace(remote_ip="10.0.0.9"))


async def log_in(
    subject: PerijoveAuthenticator, username: str = "ada", password: str = "pw"
) -> Any:
    form = {"username": username, "password": password}
    return await subject.get_authenticated_user(HANDLER, form)  # type: ignore[no-untyped-call] # JupyterHub


def user(name: str = "ada", *, admin: bool = False) -> Any:
    info = {"name": "Ada L.", "display_name": "Ada L.", "email": "ada@x"}
    return SimpleNamespace(name=name, admin=admin, user_info=info)


async def test_a_user_of_the_manager_is_allowed(manager: Manager) -> None:
    model = await log_in(authenticator(manager), " Ada ", " pw ")
    assert (model["name"], model["admin"]) == ("ada", False)
    assert model["user_info"] == user().user_info
    asked = (
        "POST",
        "/internal/login",
        {"username": "ada", "password": " pw ", "remote": "10.0.0.9"},
    )
    assert manager.asked == [asked]


async def test_superadmins_and_configured_admins_are_admins_of_the_hub(manager: Manager) -> None:
    assert (await log_in(authenticator(manager, admin_users={"ada"})))["admin"] is True
    manager.answer = ADA | {"is_admin": True}
    assert (await log_in(authenticator(manager)))["admin"] is True


async def test_allowed_and_blocked_users_narrow_it_down(manager: Manager) -> None:
    assert await log_in(authenticator(manager, allowed_users={"bob"})) is None
    assert await log_in(authenticator(manager, allowed_users={"ada"})) is not None
    assert await log_in(authenticator(manager, blocked_users={"ada"})) is None
    assert authenticator(manager).allow_all
    assert not authenticator(manager, allow_existing_users=True).allow_all


async def test_wrong_credentials_are_a_plain_no(manager: Manager) -> None:
    manager.answer = AuthFailed(WRONG_CREDENTIALS)
    assert await log_in(authenticator(manager)) is None


async def test_a_rate_limit_is_told_in_the_managers_words(manager: Manager) -> None:
    manager.answer = RateLimited("Too many failed log-ins: try again in 8 seconds.", 8)
    with pytest.raises(HTTPError) as refused:
        await log_in(authenticator(manager))
    assert refused.value.status_code == 429
    assert refused.value.log_message == "Too many failed log-ins: try again in 8 seconds."


async def test_a_manager_that_is_away_is_told_as_such(manager: Manager) -> None:
    manager.server.stop()
    with pytest.raises(HTTPError) as refused:
        await log_in(authenticator(manager))
    assert (refused.value.status_code, refused.value.log_message) == (503, AWAY)


@pytest.mark.parametrize("secret", ["", "another"])
async def test_a_wrong_hub_secret_is_not_the_persons_fault(manager: Manager, secret: str) -> None:
    with pytest.raises(HTTPError) as refused:
        await log_in(authenticator(manager, hub_secret=secret))
    assert (refused.value.status_code, refused.value.log_message) == (503, MISCONFIGURED)


async def test_a_broken_manager_is_away(manager: Manager) -> None:
    manager.answer = Problem("a bug")
    with pytest.raises(HTTPError) as refused:
        await log_in(authenticator(manager))
    assert (refused.value.status_code, refused.value.log_message) == (503, AWAY)


async def test_huge_names_and_passwords_reach_neither_manager_nor_log(
    manager: Manager, caplog: pytest.LogCaptureFixture
) -> None:
    subject = authenticator(manager)
    with caplog.at_level(logging.DEBUG):
        assert await log_in(subject, "x" * 100_000) is None
        assert await log_in(subject, "ada", "x" * 100_000) is None
    assert not subject.validate_username("x" * 65)
    assert manager.asked == []
    assert "xxxx" not in caplog.text


@pytest.mark.parametrize("form", [{}, {"username": "ada"}, {"username": " ", "password": "x"}])
async def test_an_incomplete_form_gets_a_sentence(manager: Manager, form: dict[str, str]) -> None:
    with pytest.raises(HTTPError, match="Give a user name and a password"):
        await authenticator(manager).authenticate(None, form)


async def test_refreshing_keeps_changes_or_ends(manager: Manager) -> None:
    subject = authenticator(manager)
    manager.answer = ADA | {"status": "active"}
    assert await subject.refresh_user(user()) is True
    manager.answer = ADA | {"status": "active", "is_admin": True}
    changed = await subject.refresh_user(user())
    assert isinstance(changed, dict)
    assert changed["admin"] is True
    manager.answer = ADA | {"status": "inactive"}
    assert await subject.refresh_user(user()) is False
    manager.answer = NotFound("user")
    assert await subject.refresh_user(user("a/b c")) is False
    assert [path for _, path, _ in manager.asked] == ["/internal/users/ada"] * 3 + [
        "/internal/users/a%2Fb%20c"
    ]


async def test_out_stays_out_while_the_manager_is_away(manager: Manager) -> None:
    subject = authenticator(manager)
    manager.answer = ADA | {"status": "inactive"}
    assert await subject.refresh_user(user()) is False
    manager.answer = Problem("a bug")
    assert await subject.refresh_user(user()) is False
    manager.answer = ADA | {"status": "active"}
    assert await subject.refresh_user(user()) is True
    manager.server.stop()
    assert await subject.refresh_user(user()) is True


async def test_nobody_is_thrown_out_while_the_manager_is_away(manager: Manager) -> None:
    manager.answer = Problem("a bug")
    assert await authenticator(manager).refresh_user(user()) is True
    assert await authenticator(manager, hub_secret="another").refresh_user(user()) is True
    manager.server.stop()
    assert await authenticator(manager).refresh_user(user()) is True


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERIJOVE_MANAGER_URL", "http://manager:1")
    monkeypatch.setenv("PERIJOVE_HUB_SECRET", "s3cret")
    subject = PerijoveAuthenticator()
    assert (subject.manager_url, subject.hub_secret) == ("http://manager:1", "s3cret")
    assert (subject.allow_all, subject.any_allow_config, subject.refresh_pre_spawn) == (
        True,
        True,
        True,
    )
    for name, trait in subject.class_own_traits(config=True).items():
        assert trait.help.strip(), name


def test_a_user_removed_from_the_hub_is_forgotten_by_its_list_alone() -> None:
    subject = PerijoveAuthenticator(config=Config(PerijoveAuthenticator={"allowed_users": {"ada"}}))
    subject.delete_user(user())
    assert subject.allowed_users == set()
