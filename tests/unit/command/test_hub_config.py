"""The ready-made JupyterHub configuration, as JupyterHub reads it."""

import logging
import os
from pathlib import Path

import pytest
from traitlets.config.loader import PyFileConfigLoader

import hub.config
from hub.config.deployment import Deployment, apps_token
from spawner.monitors.registry import Running

CONFIG = Path(hub.config.__file__).with_name("jupyterhub_config.py")


@pytest.fixture
def deployment(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith(("PERIJOVE_", "CONFIGPROXY_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PERIJOVE_STATE", str(tmp_path))
    made = Deployment(port=9876)
    made.prepare()
    made.secrets(create=True)
    made.choose_addresses("127.0.0.1")
    before = dict(os.environ)
    yield made
    for name in set(os.environ) - set(before):
        del os.environ[name]


def load():
    return PyFileConfigLoader(str(CONFIG), path=None).load_config()


def test_the_hub_is_told_everything(deployment):
    c, a = load(), deployment.addresses()
    assert c.JupyterHub.authenticator_class == c.JupyterHub.spawner_class == "perijove"
    assert c.JupyterHub.bind_url == "http://127.0.0.1:9876/"
    assert c.JupyterHub.hub_bind_url == c.JupyterHub.hub_connect_url == a.hub_url
    assert c.ConfigurableHTTPProxy.api_url == a.proxy_api_url
    assert c.ConfigurableHTTPProxy.should_start is False
    assert c.JupyterHub.concurrent_spawn_limit == 0
    assert c.JupyterHub.cleanup_servers is False
    service, apps = c.JupyterHub.services
    assert apps["url"] == a.manager_url
    assert apps["api_token"] not in ("", service["api_token"])
    assert not any("admin" in each for each in apps["oauth_client_allowed_scopes"])
    assert service["url"] == a.manager_url
    assert service["api_token"] == deployment.secrets().service_token
    assert os.environ["PERIJOVE_HUB_SECRET"] == deployment.secrets().hub_secret


def test_the_environment_wins_over_the_secrets_file(deployment, monkeypatch):
    monkeypatch.setenv("PERIJOVE_SERVICE_TOKEN", "from-elsewhere")
    service, apps = load().JupyterHub.services
    assert apps["api_token"] == apps_token("from-elsewhere")
    assert service["api_token"] == "from-elsewhere"


def test_an_operator_adds_and_overrides(deployment, tmp_path, monkeypatch):
    own = tmp_path / "perijove_config.py"
    own.write_text(
        "c = get_config()\n"
        "c.JupyterHub.services.append({'name': 'cull'})\n"
        "c.JupyterHub.load_roles.append({'name': 'cull'})\n"
        "c.JupyterHub.named_server_limit_per_user = 2\n"
        "c.PerijoveSpawner.cpu_limit = 2\n"
    )
    monkeypatch.setenv("PERIJOVE_CONFIG", str(own))
    c = load()
    assert [each["name"] for each in c.JupyterHub.services] == ["perijove", "perijove-apps", "cull"]
    assert [each["name"] for each in c.JupyterHub.load_roles] == ["perijove-routes", "cull"]
    assert c.JupyterHub.named_server_limit_per_user == 2
    assert c.PerijoveSpawner.cpu_limit == 2


def test_every_scope_of_the_manager_is_defined_and_given():
    from authenticator.principals import IMPLIED, Scope
    from hub.config.hub import CUSTOM_SCOPES, USER_SCOPES

    assert set(CUSTOM_SCOPES) == set(Scope)
    for scope, narrower in IMPLIED.items():
        assert set(CUSTOM_SCOPES[scope]["subscopes"]) == set(narrower)
    given = {scope.split("!")[0] for scope in USER_SCOPES}
    implied = {each for scope in given for each in IMPLIED.get(scope, ())}
    assert given | implied >= set(Scope)


def test_monitors_of_errors_get_the_hubs_log(deployment, tmp_path, monkeypatch):
    own = tmp_path / "perijove_config.py"
    own.write_text(
        "c = get_config()\n"
        "c.Monitors.errors = ['sentry']\n"
        "c.SentryMonitor.dsn = 'http://key@127.0.0.1:9/1'\n"
    )
    monkeypatch.setenv("PERIJOVE_CONFIG", str(own))
    ends = []
    monkeypatch.setattr("atexit.register", ends.append)
    (handler,) = load().JupyterHub.extra_log_handlers
    (end,) = (each for each in ends if isinstance(getattr(each, "__self__", None), Running))
    assert handler in logging.getLogger().handlers
    end()
    assert handler not in logging.getLogger().handlers
