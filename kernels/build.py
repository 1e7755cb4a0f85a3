"""Building images from recipes: a folder with a ``Dockerfile``, on a base image, through a Docker engine.

An image is tagged with the hash of everything that went into it, so the same recipe is built once.
The host's pip settings and CA bundle are used during the build only: recipes copy them in a stage with
the label ``ai.perijove.build=${BUILD_ID}``, which is no part of the image and deleted after the build.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
from docker.errors import APIError, DockerException, ImageNotFound

from kernels.session_wheel import session_files

RECIPES = Path(__file__).parent
INSIDE = "inside"
"""Folder beside the recipes with what all of them compile; part of every context."""
REPOSITORY = "perijove"
DEFAULT_BASE = "debian:bookworm-slim"
RECIPE_LABEL = "ai.perijove.recipe"
SOURCES_LABEL = "ai.perijove.sources"
STAGE_LABEL = "ai.perijove.build"
VSCODE_LABEL = "ai.perijove.app.vscode"
VSCODE = {
    "argv": [
        *("code-server", "--bind-addr", "{bind_host}:{bind_port}", "--auth", "none"),
        *("--disable-telemetry", "--disable-update-check", "{home}"),
    ],
    "protocol": "http",
    "port": 8180,
}
"""How VS Code is started where the image has it; who may open it is the proxy's business."""
_IGNORED = {"__pycache__", ".git"}
_STEP = re.compile(r"^Step (\d+)/(\d+) : (\w+) ?(.*)")
_KEPT_LINES = 15
_ABANDONED = "3h"
"""Age of a stage whose build cannot be running any more."""

Progress = Callable[[str], None]


class BuildError(Exception):
    """The image could not be built; a sentence with the last lines of the build."""


@dataclass(frozen=True, slots=True)
class BuildInputs:
    """What goes into an image besides its recipe.

    ``wheels`` are installed without their dependencies; ``ca_bundle`` and ``pip_conf`` serve the build
    only; ``network`` is the build's network mode (``host`` where the bridge has no way out).
    """

    base: str = DEFAULT_BASE
    wheels: tuple[Path, ...] = ()
    ca_bundle: Path | None = None
    pip_conf: Path | None = None
    network: str | None = None
    code_server: Path | None = None
    """A release archive of code-server: VS Code in the browser becomes part of the image."""


def recipes() -> list[str]:
    """Names of the recipes that come with Perijove."""
    return sorted(path.parent.name for path in RECIPES.glob("*/Dockerfile"))


def recipe_hash(recipe: Path, inputs: BuildInputs) -> str:
    """12 hexadecimal digits over the recipe's files, the base's name and the wheels' content."""
    digest = hashlib.sha256(f"base {inputs.base}\n".encode())
    extras = [] if inputs.code_server is None else [inputs.code_server]
    for path in [*_files(recipe), *_shared(recipe), *sorted(inputs.wheels), *extras]:
        digest.update(f"{path.name} {path.stat().st_mode & 0o111:o}\n".encode())
        digest.update(hashlib.sha256(_stable_content(path)).digest())
    return digest.hexdigest()[:12]


def sources_hash(recipe: Path) -> str:
    """12 hexadecimal digits over what this release puts into the image, whatever base it is built on.

    These are the recipe's files and those of Perijove that run in sessions.
    """
    digest = hashlib.sha256(recipe_hash(recipe, BuildInputs(base="")).encode())
    for name, path in sorted(session_files().items()):
        digest.update(f"{name}\n".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def image_tag(recipe: Path, inputs: BuildInputs) -> str:
    """``perijove/<recipe>:<hash>``."""
    return f"{REPOSITORY}/{recipe.name}:{recipe_hash(recipe, inputs)}"


def build_image(
    client: docker.DockerClient, recipe: Path, inputs: BuildInputs, progress: Progress
) -> str:
    """Build ``recipe`` unless its image is there; returns its tag. Raises ``BuildError``."""
    tag = image_tag(recipe, inputs)
    latest = f"{REPOSITORY}/{recipe.name}:latest"
    try:
        present = client.images.get(tag)
        progress(f"{tag} is there already")
    except ImageNotFound:
        progress(f"building {tag} on {inputs.base}")
        _run_build(client, recipe, inputs, tag, progress)
        present = client.images.get(tag)
    except DockerException as error:
        raise BuildError(f"the Docker engine cannot be used: {error}") from error
    present.tag(latest)
    return tag


def _run_build(
    client: docker.DockerClient, recipe: Path, inputs: BuildInputs, tag: str, progress: Progress
) -> None:
    options: dict[str, Any] = {"network_mode": inputs.network} if inputs.network else {}
    build_id = uuid.uuid4().hex
    try:
        lines = client.api.build(
            fileobj=_context(recipe, inputs),
            custom_context=True,
            tag=tag,
            rm=True,
            forcerm=True,
            decode=True,
            buildargs={"BASE": inputs.base, "BUILD_ID": build_id},
            labels={
                RECIPE_LABEL: tag.rpartition(":")[2],
                SOURCES_LABEL: sources_hash(recipe),
                **({VSCODE_LABEL: json.dumps(VSCODE)} if inputs.code_server else {}),
            },
            **options,
        )
        _follow(lines, progress)
    except APIError as error:
        raise BuildError(f"the Docker engine refused the build: {error.explanation}") from error
    except DockerException as error:
        raise BuildError(f"the Docker engine cannot be used: {error}") from error
    finally:
        _forget_stage(client, build_id, progress)


def _forget_stage(client: docker.DockerClient, build_id: str, progress: Progress) -> None:
    """Delete the stage that saw the host's settings, and those of builds that were killed long ago."""
    label = f"{STAGE_LABEL}={build_id}"
    try:
        client.images.prune(filters={"dangling": True, "label": label})
        client.images.prune(filters={"dangling": True, "label": STAGE_LABEL, "until": _ABANDONED})
    except (DockerException, OSError) as error:
        progress(f"the build's stage {label} could not be deleted: {error}")


def _follow(lines: Iterator[dict[str, Any]], progress: Progress) -> None:
    """Turn the engine's build output into progress sentences; raises ``BuildError`` where it fails."""
    tail: list[str] = []
    for line in lines:
        text = str(line.get("stream", line.get("status", ""))).strip()
        if text:
            tail = [*tail, text][-_KEPT_LINES:]
        if step := _STEP.match(text):
            number, total, instruction, rest = step.groups()
            if words := _in_words(instruction, rest):
                progress(f"step {number}/{total}: {words}")
        elif text.startswith("Collecting ") and len(text) < 120:
            progress(text.lower())
        if "error" in line:
            raise BuildError(f"{str(line['error']).strip()}\n" + "\n".join(tail))


def _in_words(instruction: str, rest: str) -> str:
    """What a step does; empty for those that take no time."""
    if instruction in ("FROM", "COPY"):
        return f"{instruction.lower()} {rest}"[:80]
    if instruction == "RUN" and "apt-get install" in rest:
        return "installing system packages"
    if instruction == "RUN" and "pip install" in rest:
        return "installing JupyterLab (this takes a while)"
    return f"run {rest}"[:80] if instruction == "RUN" else ""


def _context(recipe: Path, inputs: BuildInputs) -> io.BytesIO:
    """The build context as a tar archive; what serves the build only lies in ``build/``."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for path in _files(recipe):
            tar.add(path, arcname=str(path.relative_to(recipe)), filter=_anonymous)
        for path in _shared(recipe):
            tar.add(path, arcname=f"{INSIDE}/{path.name}", filter=_anonymous)
        extras = {path.name: path for path in inputs.wheels}
        if inputs.ca_bundle is not None:
            extras["ca-bundle.pem"] = inputs.ca_bundle
        if inputs.pip_conf is not None:
            extras["pip.conf"] = inputs.pip_conf
        if inputs.code_server is not None:
            extras["code-server.tar.gz"] = inputs.code_server
        folder = tarfile.TarInfo("build")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(folder)
        for name, path in extras.items():
            tar.add(path, arcname=f"build/{name}", filter=_anonymous)
    archive.seek(0)
    return archive


def _files(recipe: Path) -> list[Path]:
    found = (path for path in recipe.rglob("*") if path.is_file())
    return sorted(path for path in found if not _IGNORED & set(path.parts))


def _shared(recipe: Path) -> list[Path]:
    """What lies beside all recipes."""
    folder = recipe.parent / INSIDE
    return _files(folder) if folder.is_dir() else []


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Owner, time and exact mode do not matter; who may execute does."""
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    member.mode = 0o755 if member.mode & 0o111 else 0o644
    return member


def _stable_content(path: Path) -> bytes:
    """A file's bytes; of a wheel its members' names and checksums, since archives carry times."""
    if path.suffix != ".whl":
        return path.read_bytes()
    import zipfile

    with zipfile.ZipFile(path) as wheel:
        return repr(sorted((m.filename, m.CRC) for m in wheel.infolist())).encode()
