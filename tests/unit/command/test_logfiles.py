"""Logs of daemons: which lines a person sees, and that files stay bounded."""

import pytest

from hub.supervision.logfiles import KEEP, KEY_LINE, LogFollower, last_lines, printable, rotate


@pytest.mark.parametrize(
    "line",
    [
        "[E 2026-11-23 18:00:00.000 JupyterHub app:3901] Failed to bind hub",
        "[W 2026-11-23 18:00:00.000 perijove] the agent is late",
        "18:00:00.000 [ConfigProxy] error: Uncaught Exception: bind EADDRINUSE",
        "18:00:00.000 [ConfigProxy] \x1b[31merror\x1b[39m: 503 GET /user/a/",
        "ModuleNotFoundError: No module named 'x'",
        "sqlalchemy.exc.OperationalError: no such table",
    ],
)
def test_key_lines(line):
    assert KEY_LINE.search(line)


@pytest.mark.parametrize(
    "line",
    [
        "[I 2026-11-23 18:00:00.000 JupyterHub log:192] 200 GET /hub/health",
        "[W 2026-11-23 18:00:00.000 JupyterHub log:192] 404 GET /hub/robots.txt",
        "18:00:00.000 [ConfigProxy] info: Adding route /user/error",
        "Traceback (most recent call last):",
    ],
)
def test_other_lines(line):
    assert not KEY_LINE.search(line)


def test_following_gives_whole_new_lines_once(tmp_path):
    path = tmp_path / "hub.log"
    path.write_text("[E old] before\n")
    seen: list[str] = []
    follower = LogFollower(path, seen.append)
    with path.open("a") as log:
        log.write("[E to day] one\n[I now] two\n[W to day] thr")
        log.flush()
        follower.read_new()
        assert seen == ["[E to day] one"]
        log.write("ee\n")
        log.flush()
        follower.read_new()
        follower.read_new()
    assert seen == ["[E to day] one", "[W to day] three"]


def test_following_goes_on_after_rotation(tmp_path):
    path = tmp_path / "hub.log"
    seen: list[str] = []
    follower = LogFollower(path, seen.append, everything=True)
    with path.open("ab") as log:  # the daemon keeps its handle
        log.write(b"x" * 100 + b"\n")
        log.flush()
        follower.read_new()
        assert rotate(path, limit=50)
        log.write(b"after\n")
        log.flush()
        follower.read_new()
    assert seen[-1] == "after"
    assert path.read_text() == "after\n"
    assert path.with_name("hub.log.1").stat().st_size == 101


def test_rotation_keeps_a_bounded_number(tmp_path):
    path = tmp_path / "hub.log"
    for round_ in range(KEEP + 3):
        path.write_text(f"{round_}" * 20)
        assert rotate(path, limit=10)
    assert not rotate(path, limit=10)
    kept = sorted(each.name for each in tmp_path.iterdir())
    assert kept == ["hub.log", *(f"hub.log.{number}" for number in range(1, KEEP + 1))]
    assert path.with_name("hub.log.1").read_text().startswith(str(KEEP + 2))


def test_a_rotation_that_fails_moves_nothing(tmp_path):
    path = tmp_path / "hub.log"
    path.write_text("now" * 20)
    path.with_name("hub.log.1").write_text("before")
    path.with_name("hub.log.new").mkdir()  # the copy cannot be written
    with pytest.raises(OSError, match=r"hub\.log\.new"):
        rotate(path, limit=10)
    path.with_name("hub.log.new").rmdir()
    assert path.with_name("hub.log.1").read_text() == "before"
    assert path.read_text() == "now" * 20
    assert rotate(path, limit=10)
    assert path.with_name("hub.log.2").read_text() == "before"


def test_control_characters_do_not_reach_the_terminal(tmp_path):
    assert printable("a\x1b[2Jb\tc") == "a?[2Jb\tc"
    path = tmp_path / "x.log"
    path.write_text("\n".join(str(n) for n in range(40)) + "\x07\n")
    assert last_lines(path, 2) == ["38", "39?"]
    assert last_lines(tmp_path / "none") == []
