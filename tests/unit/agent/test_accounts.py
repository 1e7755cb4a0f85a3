"""Entries of passwd and group for any ids."""

from pathlib import Path

import pytest

from spawner.agent.engines.config_files import write_files
from spawner.agent.engines.docker.accounts import with_groups, with_user
from spawner.agent.protocol import File

DEBIAN = "root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n"
ROOT = "root:x:0:0:root:/root:/bin/ash"
OURS = "work:x:1000:1000::/home/work:/bin/bash\n"


def test_what_is_right_stays() -> None:
    assert with_user(DEBIAN + OURS, 1000, 1000) is None
    assert with_groups("root:x:0:\nwork:x:1000:\n", 1000, []) is None


@pytest.mark.parametrize(
    ("passwd", "uid", "lines"),
    [
        (DEBIAN, 12345, ["work:x:12345:7:work:/home/work:/bin/bash", *DEBIAN.splitlines()]),
        (OURS, 12345, ["work:x:12345:7:work:/home/work:/bin/sh"]),
        ("ubuntu:x:1000:1000::/home/ubuntu:/bin/zsh", 1000, ["work:x:1000:7:work:/home/work:/bin/sh"]),
        ("work:x:1000:1000::/root:/bin/sh\n", 1000, ["work:x:1000:7:work:/home/work:/bin/sh"]),
        (f"{ROOT}\nbroken\n\n", 5, ["work:x:5:7:work:/home/work:/bin/ash", ROOT, "broken", ""]),
        ("", 5, ["work:x:5:7:work:/home/work:/bin/sh"]),
    ],
)  # fmt: skip
def test_a_missing_user_comes_first(passwd: str, uid: int, lines: list[str]) -> None:
    assert with_user(passwd, uid, 7) == "\n".join([*lines, ""])


def test_all_groups_have_names() -> None:
    made = with_groups("root:x:0:\nwork:x:1000:\n", 12345, ["0", "4242", "12345"])
    assert made == "root:x:0:\nwork:x:12345:\ng4242:x:4242:work\n"


def test_names_in_any_encoding_stay(tmp_path: Path) -> None:
    theirs = b"root:x:0:0:root:/root:/bin/sh\njose:x:7:7:Jos\xe9:/:/bin/sh"
    made = with_user(theirs.decode("utf-8", "surrogateescape"), 5, 7)
    assert made is not None
    write_files(tmp_path, [File("passwd", made, 0o644)], None)
    assert theirs in (tmp_path / "passwd").read_bytes()
