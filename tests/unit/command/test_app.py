"""The command line: help, errors as one sentence, exit statuses, lazy imports, the configuration file."""

import pytest
from traitlets.config import Application

from hub.app import PerijoveApp, main
from hub.commands.base import Command, table


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """No configuration of this machine, no application left over."""
    for name in ("PERIJOVE_CONFIG", "PERIJOVE_STATE", "PERIJOVE_DB_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    yield
    if Application.initialized():
        type(Application.instance()).clear_instance()


def run(capsys, *words: str) -> tuple[int, str, str]:
    """Exit status, output and errors of ``perijove WORDS``."""
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    seen = capsys.readouterr()
    return int(ended.value.code or 0), seen.out, seen.err


def test_help_names_every_subcommand(capsys):
    status, out, _ = run(capsys, "--help")
    assert status == 0
    assert all(f"\n{name}\n" in out for name in PerijoveApp.subcommands)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["frobnicate"], "no subcommand 'frobnicate': choose up, manager"),
        ([], "usage: perijove COMMAND"),
        (["user"], "usage: perijove user COMMAND"),
        (["user", "add"], "usage: perijove user add NAME"),
        (["user", "add", "a", "b"], "usage: perijove user add NAME"),
        (["user", "add", "a", "--pasword=x"], "unknown option --pasword=x"),
        (["token", "create"], "usage: perijove token create NAME"),
        (["token", "revoke", "x", "--agent"], "'x' is no id of an agent token"),
        (["db", "status", "-f", "none.py"], "none.py does not exist"),
    ],
)
def test_wrong_use_is_one_sentence_and_status_2(capsys, words, sentence):
    status, out, err = run(capsys, *words)
    assert (status, out) == (2, "")
    assert sentence in err
    assert err.count("\n") == 1
    assert err.startswith("perijove: ")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["user", "list"], "there is no database"),
        (["db", "status"], "perijove db upgrade"),
        (["db", "status", "--db-url=oracle://x"], "names no supported database"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_status_1(capsys, tmp_path, words, sentence):
    status, _, err = run(capsys, *words, "--state-dir", str(tmp_path / "none"))
    assert status == 1
    assert sentence in err
    assert err.count("\n") == 1
    assert not (tmp_path / "none").exists()


def test_command_line_wins_over_the_configuration_file(tmp_path):
    (tmp_path / "perijove_config.py").write_text(
        "c = get_config()\nc.Deployment.port = 9001\nc.Deployment.ip = '0.0.0.0'\n"
    )
    app = PerijoveApp.instance()
    app.initialize(["up", "--port=9002"])
    deployment = app.subapp.deployment()
    assert (deployment.ip, deployment.port) == ("0.0.0.0", 9002)


def test_table_aligns():
    assert table(("A", "LONG"), [("xyz", "1"), ("", "22")]) == "A    LONG\nxyz  1\n     22"


def test_passwords_are_no_option():
    from hub.commands.user import UserAdd, UserPassword

    for command in (UserAdd, UserPassword):
        words = {*command.flags, *command.aliases, *command.class_trait_names(config=True)}
        assert not any("password" in str(word) for word in words)
    assert issubclass(UserAdd, Command)
