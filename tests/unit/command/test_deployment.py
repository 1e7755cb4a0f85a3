"""The state folder: secrets are written once, addresses remembered, damage named."""

import json
import socket
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from traitlets import TraitError

from hub.config.deployment import (
    FREE_PORTS,
    Deployment,
    DeploymentError,
    Secrets,
    can_bind,
    free_port,
    write_atomically,
)


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    made = Deployment(state_dir=str(tmp_path / "state"))
    made.prepare()
    return made


def test_secrets_are_private_and_stay(deployment):
    first = deployment.secrets(create=True)
    path = deployment.state / "secrets.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert deployment.secrets(create=True).environ() == first.environ()
    assert len(set(first.environ().values())) == 5
    assert all(len(value) == 64 for value in first.environ().values())


def test_of_many_writers_one_wins(deployment):
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda _: deployment.secrets(create=True).environ(), range(16)))
    assert all(each == read[0] for each in read)
    assert [each.name for each in deployment.state.glob(".secrets*")] == []


def test_secrets_never_show():
    secrets = Secrets.generate()
    assert secrets.hub_secret not in repr(secrets) + str(secrets)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"hub_secret": "x"}', "\x00"])
def test_damaged_secrets_are_not_replaced(deployment, content):
    path = deployment.state / "secrets.json"
    path.write_text(content)
    with pytest.raises(DeploymentError, match=r"secrets.json is damaged"):
        deployment.secrets(create=True)
    assert path.read_text() == content


def test_missing_secrets_say_who_writes_them(deployment):
    with pytest.raises(DeploymentError, match="perijove up"):
        deployment.secrets()


def test_a_file_in_the_way_of_the_state_folder(tmp_path):
    (tmp_path / "state").write_text("")
    with pytest.raises(DeploymentError, match="cannot be used"):
        Deployment(state_dir=str(tmp_path / "state")).prepare()


def test_inner_ports_are_remembered(deployment):
    first = deployment.choose_addresses("127.0.0.1")
    moved = Deployment(state_dir=deployment.state_dir, port=9123, ip="0.0.0.0")
    second = moved.choose_addresses("127.0.0.1")
    assert (second.ip, second.port) == ("0.0.0.0", 9123)
    assert second.public_url == "http://127.0.0.1:9123/"
    for name in ("hub_port", "manager_port", "proxy_api_port"):
        assert getattr(second, name) == getattr(first, name)
    assert Deployment(state_dir=deployment.state_dir).addresses() == second


def test_ports_differ_from_each_other_and_from_the_public_one(deployment):
    clash = Deployment(state_dir=deployment.state_dir, port=8090)
    a = clash.choose_addresses("127.0.0.1")
    assert len({a.port, a.hub_port, a.manager_port, a.proxy_api_port}) == 4


@pytest.mark.parametrize("content", ["{", "[]", '{"ip": "127.0.0.1"}'])
def test_damaged_addresses(deployment, content):
    (deployment.state / "deployment.json").write_text(content)
    with pytest.raises(DeploymentError, match=r"deployment.json is damaged"):
        deployment.addresses()


def test_addresses_form_urls(deployment):
    under = Deployment(state_dir=deployment.state_dir, base_url="/lab/", ip="::1")
    a = under.choose_addresses("127.0.0.1")
    assert a.public_url == "http://[::1]:8000/lab/"
    assert a.hub_api_url == f"http://127.0.0.1:{a.hub_port}/lab/hub/api"
    assert a.service_prefix == "/lab/services/perijove/"


def test_base_url_needs_slashes():
    with pytest.raises(TraitError, match="'lab'"):
        Deployment(base_url="lab")


def test_free_port_avoids_what_is_taken():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        assert not can_bind("127.0.0.1", taken)
        assert free_port("127.0.0.1", taken, set()) in FREE_PORTS


def test_environment_names_state_and_database(monkeypatch, tmp_path):
    monkeypatch.setenv("PERIJOVE_STATE", str(tmp_path))
    assert Deployment().db_url == f"sqlite+aiosqlite:///{tmp_path}/perijove.sqlite"
    monkeypatch.setenv("PERIJOVE_DB_URL", "postgresql://perijove@db/perijove")
    assert Deployment().db_url == "postgresql://perijove@db/perijove"


def test_writing_replaces_whole_files(tmp_path):
    path = tmp_path / "record"
    write_atomically(path, "one", 0o600)
    write_atomically(path, json.dumps({"two": 2}), 0o644)
    assert json.loads(path.read_text()) == {"two": 2}
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [each.name for each in tmp_path.iterdir()] == ["record"]
