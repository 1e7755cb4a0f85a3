"""Files of a running session's home folder, for its owner's programs: listed, fetched and put there as they come.

A shell script in the main container does it, with the rights of the session and whatever engine runs it, and sends or
takes ``tar`` archives through the node. Nothing is reached but the home folder and the folders mounted in it. Whoever
works in a session can have other programs in the place of these: what they say is bounded, and nothing is believed.
"""

from __future__ import annotations

import asyncio
import io
import tarfile
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from authenticator.principals import Principal
from authenticator.problems import AgentUnavailable, InvalidParameters
from spawner.agent import preamble
from spawner.sessions.apps import SSH_FOLDER
from spawner.sessions.opening import AppService, Streams
from spawner.sessions.tables import KernelRow

HOME = "/home/work"
MOST_FILES = 20
"""Of one upload or download."""
LONGEST_PATH = 4096
MOST_LISTED = 10_000
LONGEST_ENTRY = 400
"""Bytes of a line of a listing, whose name has 255 at most."""
SILENCE = 120.0
"""Seconds without a word after which a session is given up."""
MODE = 0o644
KEY = "id_container"
"""Backend.AI's clients fetch a key of this name, and log in with it: one is made when they ask first."""
SCRIPT = rf"""
say() {{ printf 'no %s\n' "$1"; exit 3; }}
action=$1 folders=$2 path=$3 size=$4
cd 2>/dev/null && home=$(pwd -P) || say 'the session has no home folder'
real() {{ (cd "$1" 2>/dev/null && pwd -P); }}
inside() {{
    case $1/ in "$home"/*) return 0 ;; esac
    printf '%s\n' "$folders" | {{
        while IFS= read -r each; do
            root=$(real "$HOME${{each#{HOME}}}") && case $1/ in "$root"/*) exit 0 ;; esac
        done
        exit 1
    }}
}}
find_folder() {{
    case $1 in
    {HOME} | {HOME}/*) found=$HOME${{1#{HOME}}} ;;
    /*) found=$1 ;;
    *) found=$HOME/$1 ;;
    esac
    while [ "${{found%/}}" != "$found" ]; do found=${{found%/}}; done
    name=${{found##*/}} folder=${{found%/*}}
    if [ "$name" = . ] || [ "$name" = .. ] || [ "$(real "$found")" = "$home" ]; then folder=$found name=.; fi
    folder=$(real "$folder/") || say 'there is no such file or folder'
    inside "$folder" || say 'it is not in the home folder'
}}
list() {{
    find_folder "$path"
    [ -e "$folder/$name" ] || say 'there is no such file or folder'
    target=$(real "$folder/$name") || say 'it is no folder'
    inside "$target" || say 'it is not in the home folder'
    cd "$target" && [ -r . ] || say 'it cannot be read'
    printf 'ok\n%s\0' "$target"
    if find . -maxdepth 0 -printf '' 2>/dev/null; then
        find . -mindepth 1 -maxdepth 1 -printf '%M %s %C@ %T@ %A@ %P\0'
    else
        find . -mindepth 1 -maxdepth 1 -exec sh -c 'for each; do
            printf "%s %s\0" "$(stat -c "%A %s %Z %Y %X" "$each")" "${{each#./}}"
        done' sh {{}} +
    fi
}}
get() {{
    command -v tar >/dev/null || say 'there is no tar in this image'
    if [ "$path" = {KEY} ] && [ ! -e "$home/{KEY}" ]; then make_key; return; fi
    find_folder "$path"
    [ -e "$folder/$name" ] || [ -L "$folder/$name" ] || say 'there is no such file or folder'
    [ -L "$folder/$name" ] || [ -r "$folder/$name" ] || say 'it cannot be read'
    if [ -L "$folder/$name" ] && target=$(real "$folder/$name") && inside "$target"; then
        as=$(printf %s "$name" | sed 's/[&\\,]/\\&/g')
        echo ok; exec tar -C "$target" -cf - --transform "s,^\.,$as," . 2>/dev/null
    fi
    echo ok; exec tar -C "$folder" -cf - -- "$name" 2>/dev/null
}}
make_key() {{
    {SSH_FOLDER}
    if [ ! -f "$dir/{KEY}.pub" ]; then
        command -v ssh-keygen >/dev/null || say 'there is no SSH in this image'
        made=$(mktemp -d "$dir/new.XXXXXX") &&
            ssh-keygen -q -t ed25519 -N '' -C {KEY} -f "$made/{KEY}" </dev/null >/dev/null 2>&1 &&
            mv "$made/{KEY}" "$made/{KEY}.pub" "$dir" && rmdir "$made" || say 'no key can be made'
    fi
    echo ok; exec tar -C "$dir" -cf - {KEY} 2>/dev/null
}}
put() {{
    command -v tar >/dev/null || say 'there is no tar in this image'
    umask 022
    while IFS= read -r path && [ -n "$path" ]; do
        case $path in */*) mkdir -p "$HOME/${{path%/*}}" 2>/dev/null || say 'its folder cannot be made' ;; esac
        find_folder "$path"
        [ ! -d "$folder/$name" ] || say 'it is a folder'
    done <<END
$path
END
    echo ok
    head -c "$size" | tar -C "$home" -xmf - 2>&1
}}
"$action"
"""


@dataclass(slots=True)
class Transfer:
    """A run of the script that agreed to do what it was asked for."""

    streams: Streams
    what: str
    rest: bytes = b""
    """What it said after its first line."""

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """What it sends, until its end. Raises ``AgentUnavailable`` if that is not all."""
        if self.rest:
            yield self.rest
        code = b""
        while (found := await _frame(self.streams)) is not None:
            kind, payload = found
            if kind == preamble.DATA:
                yield payload
            else:
                code = payload
        if code not in (b"0", b"1"):  # 1: a file changed while it was read
            raise AgentUnavailable(f"{self.what} was not read to its end")

    def close(self) -> None:
        """Leave; what still runs ends for want of a reader."""
        self.streams[1].close()


class SessionFiles:
    """Files of users' sessions. Every method authorizes its principal.

    All raise ``NotFound`` for the session, ``BadRequest`` for one that does not run, ``InvalidParameters`` with
    the path that is wrong, and ``AgentUnavailable``.
    """

    def __init__(self, apps: AppService) -> None:
        self._apps = apps

    async def entries(
        self, principal: Principal, ref: str, path: str
    ) -> tuple[str, list[dict[str, Any]]]:
        """The absolute path of a folder, and what is in it, by name."""
        kernel = await self._apps.kernel(principal, ref)
        transfer = await self._begin(kernel, "list", "path", path)
        data, count = bytearray(), 0
        try:
            async with aclosing(transfer.chunks()) as chunks:
                async for chunk in chunks:
                    data += chunk
                    count += chunk.count(0)
                    if count > MOST_LISTED or len(data) > MOST_LISTED * LONGEST_ENTRY:
                        raise InvalidParameters({"path": f"more than {MOST_LISTED} entries"})
        finally:
            transfer.close()
        try:
            where, *entries = bytes(data).decode("utf-8", "replace").split("\0")[:-1]
            found = [_entry(each) for each in entries]
        except ValueError as error:
            raise AgentUnavailable(f"the session tells what is no list: {error}") from error
        return where, sorted(found, key=lambda entry: str(entry["filename"]))

    async def get(self, principal: Principal, ref: str, paths: Sequence[str]) -> list[Transfer]:
        """A ``tar`` archive of each path, all begun; close them."""
        kernel = await self._apps.kernel(principal, ref)
        if not 1 <= len(paths) <= MOST_FILES:
            raise InvalidParameters({"files": f"give 1 to {MOST_FILES} paths"})
        begun: list[Transfer] = []
        try:
            for number, path in enumerate(paths):
                begun.append(await self._begin(kernel, "get", f"files.{number}", path))
        except BaseException:
            for each in begun:
                each.close()
            raise
        return begun

    async def put(self, principal: Principal, ref: str, files: Mapping[str, bytes]) -> None:
        """Write files, by path relative to the home folder; folders are made as needed."""
        kernel = await self._apps.kernel(principal, ref)
        for path in files:
            parts = PurePosixPath(path).parts
            outside = not parts or parts[0] == "/" or ".." in parts
            if outside or path.endswith("/") or "\n" in path:  # the script reads a path a line
                raise InvalidParameters(
                    {"src": f"{path[:80]!r}: give a path below the home folder, on one line"}
                )
        packed = pack(files)
        transfer = await self._begin(kernel, "put", "src", "\n".join(files), len(packed))
        try:
            transfer.streams[1].writelines(
                preamble.frame(preamble.DATA, packed[at : at + preamble.MAX_TERMINAL_FRAME])
                for at in range(0, len(packed), preamble.MAX_TERMINAL_FRAME)
            )
            said, code = transfer.rest, b""
            while (found := await _frame(transfer.streams)) is not None:
                if found[0] == preamble.DATA:
                    said = (said + found[1])[-LONGEST_PATH:]
                else:
                    code = found[1]
        finally:
            transfer.close()
        if code != b"0":
            told = said.decode("utf-8", "replace").strip()[-300:] or "the session went away"
            raise InvalidParameters({"src": f"the files were not all written: {told}"})

    async def _begin(
        self, kernel: KernelRow, action: str, field: str, path: str, size: int = 0
    ) -> Transfer:
        if not path or len(path) > MOST_FILES * LONGEST_PATH or "\0" in path:
            raise InvalidParameters({field: f"give a path of at most {LONGEST_PATH} characters"})
        folders = "\n".join(str(each["target"]) for each in kernel.spec.get("mounts", ()))
        words = ("sh", "-c", SCRIPT, "sh", action, folders, path, str(size))
        transfer = Transfer(await self._apps.run(kernel, words), path[:80])
        try:
            said = b""
            while b"\n" not in said:
                found = await _frame(transfer.streams)
                if found is None or found[0] != preamble.DATA or len(said) > LONGEST_PATH:
                    raise AgentUnavailable("the session has no shell, or went away")
                said += found[1]
        except BaseException:
            transfer.close()
            raise
        line, _, transfer.rest = said.partition(b"\n")
        if line != b"ok":
            transfer.close()
            told = line.removeprefix(b"no ").decode("utf-8", "replace")
            raise InvalidParameters({field: f"{path[:80]!r}: {told}"})
        return transfer


async def _frame(streams: Streams) -> tuple[bytes, bytes] | None:
    try:
        async with asyncio.timeout(SILENCE):
            return await preamble.read_frame(streams[0])
    except TimeoutError as error:
        raise AgentUnavailable(f"the session said nothing for {SILENCE:g} seconds") from error
    except OSError as error:
        raise AgentUnavailable(f"the connection to the session broke: {error}") from error


def pack(files: Mapping[str, bytes]) -> bytes:
    """A ``tar`` archive of ``files``."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path, content in files.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(content), MODE
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def _entry(line: str) -> dict[str, Any]:
    """One line of the script, in Backend.AI's words."""
    mode, size, changed, modified, accessed, name = line.split(" ", 5)
    return {
        "mode": mode,
        "size": int(size),
        "ctime": float(changed),
        "mtime": float(modified),
        "atime": float(accessed),
        "filename": name,
    }
