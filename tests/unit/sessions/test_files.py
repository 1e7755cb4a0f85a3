"""The script that lists, sends and takes files of a session: what it gives, and what it keeps to itself."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from spawner.sessions.files import SCRIPT, pack


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home folder with a file, a folder, a mounted folder, and links that lead out."""
    made = tmp_path / "home"
    (made / "a b").mkdir(parents=True)
    (made / "a b/c\nd").write_text("inside")
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume/shared").write_text("shared")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/key").write_text("secret")
    (made / "data").symlink_to(tmp_path / "volume")
    (made / "out").symlink_to(tmp_path / "secret")
    (made / "key").symlink_to(tmp_path / "secret/key")
    return made


def ask(
    home: Path, action: str, path: str, *, size: int = 0, sent: bytes = b"", tools: str = ""
) -> tuple[int, bytes]:
    done = subprocess.run(
        ["sh", "-c", SCRIPT, "sh", action, "/home/work/data", path, str(size)],
        env={
            "HOME": str(home),
            "PATH": tools or "/usr/bin:/bin",
            "JUPYTER_RUNTIME_DIR": f"{home}.run",
        },
        input=sent,
        stdout=subprocess.PIPE,
        check=False,
    )
    return done.returncode, done.stdout


def archived(home: Path, path: str) -> dict[str, bytes | None]:
    """What is in the archive of a path."""
    code, said = ask(home, "get", path)
    assert (code, said[:3]) == (0, b"ok\n"), said
    with tarfile.open(fileobj=io.BytesIO(said[3:])) as archive:
        found = {}
        for entry in archive:
            file = archive.extractfile(entry) if entry.isfile() else None
            found[entry.name] = file.read() if file else None
    return found


def test_listing(home: Path) -> None:
    for path in (".", "/home/work", "/home/work/", str(home), "a b/.."):
        code, said = ask(home, "list", path)
        where, *entries = said.decode().removeprefix("ok\n").split("\0")[:-1]
        assert (code, where) == (0, str(home))
        assert sorted(entry.split(" ", 5)[5] for entry in entries) == ["a b", "data", "key", "out"]
    names = ask(home, "list", "a b")[1].decode().split("\0")
    assert names[1].startswith("-rw")
    assert names[1].endswith(" c\nd")
    assert b" shared\0" in ask(home, "list", "data")[1], "a mounted folder"


def test_archives(home: Path) -> None:
    assert archived(home, "a b/c\nd") == {"c\nd": b"inside"}
    assert archived(home, "/home/work/a b") == {"a b": None, "a b/c\nd": b"inside"}
    assert archived(home, "data") == {"data": None, "data/shared": b"shared"}
    assert archived(home, "data/shared") == {"shared": b"shared"}
    assert archived(home, "out") == {"out": None}, "a link stays a link"
    assert archived(home, "key") == {"key": None}
    assert set(archived(home, ".")) > {"./out", "./a b"}


@pytest.mark.parametrize("action", ["list", "get", "put"])
@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "..",
        "../secret/key",
        "out/key",
        "out/.",
        "/",
        "out/../secret/key",
    ],
)
def test_what_lies_elsewhere(home: Path, action: str, path: str) -> None:
    code, said = ask(home, action, path, size=1024, sent=bytes(1024))
    assert code == 3, said
    assert said.startswith(b"no ")


def test_writing(home: Path) -> None:
    files = {"new/er/f": b"1", "a b/g": bytes(5000), "data/h": b"2", "key": b"3"}
    packed = pack(files)
    code, said = ask(home, "put", "\n".join(files), size=len(packed), sent=packed + b"more")
    assert (code, said) == (0, b"ok\n")
    assert {name: (home / name).read_bytes() for name in files} == files
    assert (home.parent / "volume/h").read_bytes() == b"2"
    assert (home.parent / "secret/key").read_text() == "secret", "the link was replaced"
    assert ask(home, "put", "a b", size=0)[0] == 3, "a folder"


def test_a_key_is_made_once_and_outside_the_home_folder(home: Path) -> None:
    first = archived(home, "id_container")
    assert b"PRIVATE KEY" in (first["id_container"] or b"")
    assert archived(home, "id_container") == first
    made = Path(f"{home}.run/perijove-sshd")
    assert {each.name for each in made.iterdir()} == {"id_container", "id_container.pub"}
    assert made.stat().st_mode & 0o077 == 0
    (home / "id_container").write_text("mine")
    assert archived(home, "id_container") == {"id_container": b"mine"}


def test_without_the_tools(home: Path, tmp_path: Path) -> None:
    few = tmp_path / "bin"
    few.mkdir()
    for name in ("sh", "mkdir"):
        (few / name).symlink_to(f"/bin/{name}")
    assert ask(home, "get", "a b", tools=str(few)) == (3, b"no there is no tar in this image\n")
