"""Images of a Docker engine: which there are, what their labels say, getting, removing, making them."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import docker
from docker.utils import parse_repository_tag

from spawner.agent.engines.base import EngineError
from spawner.agent.engines.docker.calls import Calls, Conflict, Missing
from spawner.agent.engines.docker.manifest import (
    COMMAND_LABEL,
    IMAGE_LABEL,
    LABEL,
    RECIPE_LABEL,
)
from spawner.agent.engines.docker.pulls import Pulls
from spawner.agent.protocol import ImagePull, ImageReport

OFFERED = (IMAGE_LABEL, "ai.backend.kernelspec")
"""Images with one of these labels are offered; the second is that of Backend.AI's images."""
OF_A_RUN = ("kernel", "session", "epoch", "session-name", "owner", "ports", "shares", "home")
"""Labels of a container that an image made of it must not have."""
COMMIT_TIMEOUT = 1800
"""Seconds that the engine may take to write an image."""


class Images:
    """Images of one engine."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self.pulls = Pulls(calls)

    async def list(self) -> tuple[ImageReport, ...]:
        """Images with our label, one name each: ``:latest`` where there is one."""
        client = self._calls.client
        architecture = engine_architecture(await self._calls.run(client.version))
        found = await self._calls.run(client.api.images)
        reports = [_report(image, architecture) for image in found]
        return tuple(sorted((r for r in reports if r is not None), key=lambda each: each.name))

    async def ensure(self, name: str, how: ImagePull) -> AsyncIterator[str]:
        """Pull ``name`` unless it is there, under its digest where one is demanded."""
        try:
            known = await self.pulls.digests(name)
        except Missing:
            known = None
        if known is not None and how.digest in (None, *known):
            return
        async for sentence in self.pulls.follow(name, how):
            yield sentence

    async def remove(self, name: str) -> None:
        """Remove a tag. Raises ``EngineError`` while a container uses its image."""
        try:
            await self._calls.run(self._calls.client.api.remove_image, name)
        except Missing:
            return
        except Conflict as error:
            raise EngineError(f"the image {name} is in use on this node: {error}") from error

    async def commit(self, container: str, name: str, labels: Mapping[str, str]) -> ImageReport:
        """Write the container's file system as the image ``name``."""
        client = self._calls.client
        try:
            facts = await self._calls.run(client.api.inspect_container, container)
            origin = await self._calls.run(client.api.inspect_image, facts["Image"])
        except Missing as error:
            raise EngineError("the container is gone") from error
        if facts["HostConfig"]["ReadonlyRootfs"]:
            raise EngineError(
                "nothing can have changed in this session's image: its root is read-only on this node"
                " (setting read_only_root, or the image's label ai.perijove.root=writable)"
            )
        conf = _clean_config(facts["Config"], origin["Config"], labels)
        await self._calls.wait(_commit, facts["Id"], name, conf)
        made = next((each for each in await self.list() if each.name == name), None)
        if made is None:
            raise EngineError(f"the image {name} was made, and is gone")
        return made

    @staticmethod
    def own_command(image: str, labels: Mapping[str, str]) -> tuple[str, ...]:
        """The command that the image's label names; empty where it names none."""
        text = labels.get(COMMAND_LABEL)
        if text is None:
            return ()
        try:
            items = json.loads(text)
        except ValueError:
            items = None
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise EngineError(
                f"image {image}: its label {COMMAND_LABEL} is not a JSON list of texts"
            )
        # The manager names the path; a session that it made before it did so is at the root.
        return tuple(item.replace("{base_path}", "/") for item in items)

    async def config(self, image: str) -> Mapping[str, Any]:
        """Labels, entrypoint and the like of an image that is there. Raises ``EngineError``."""
        try:
            facts = await self._calls.run(self._calls.client.api.inspect_image, image)
        except Missing as error:
            raise EngineError(f"there is no image {image}") from error
        config: Mapping[str, Any] = facts["Config"]
        return config


def _report(image: Mapping[str, Any], architecture: str) -> ImageReport | None:
    """An image as it is offered; None if it is not."""
    labels = image["Labels"] or {}
    tags = sorted(tag for tag in image.get("RepoTags") or [] if tag != "<none>:<none>")
    if not tags or not any(label in labels for label in OFFERED):
        return None
    name = next((tag for tag in tags if tag.endswith(":latest")), tags[0])
    if name.rpartition(":")[2] == labels.get(RECIPE_LABEL):
        return None  # an older build of a recipe: kept by the engine, not offered any more
    digests = [each.rpartition("@")[2] for each in image.get("RepoDigests") or () if "@sha" in each]
    return ImageReport(name, architecture, (digests or [image["Id"]])[0], image["Size"], labels)


def _clean_config(
    config: Mapping[str, Any], origin: Mapping[str, Any], labels: Mapping[str, str]
) -> dict[str, Any]:
    """The new image's configuration: that of the container's image, without anything of the session.

    The engine adds what is missing from the container's own configuration, so the session's variables and
    labels are not left out but made empty.
    """
    ours = dict(entry.partition("=")[::2] for entry in origin.get("Env") or ())
    names = [entry.partition("=")[0] for entry in config.get("Env") or ()]
    environ = [f"{name}={ours.get(name, '')}" for name in dict.fromkeys([*names, *ours])]
    kept: Sequence[str] = ("Cmd", "Entrypoint", "WorkingDir", "ExposedPorts")
    blank = {f"{LABEL}.{name}": "" for name in OF_A_RUN}
    return {
        **{key: origin[key] for key in kept if origin.get(key)},
        "User": origin.get("User") or "root",
        "Env": environ,
        "Labels": {**(origin.get("Labels") or {}), **blank, **labels},
    }


def _commit(container: str, name: str, conf: Mapping[str, Any]) -> None:
    """With a client of its own, for the engine answers only when all is written. Raises ``EngineError``.

    In two steps: the engine puts the container's whole configuration, environment included, beside that of
    the image it makes of it. What is built on top of that image has nothing of it.
    """
    repository, tag = parse_repository_tag(name)
    try:
        client = docker.from_env(timeout=COMMIT_TIMEOUT)
        try:
            before = {each["Id"] for each in client.api.images(name)}
            written = client.api.commit(container, pause=True, conf=conf)["Id"]
            recipe = io.BytesIO(f'FROM {written}\nLABEL {LABEL}.commit.of="{name}"\n'.encode())
            tag = f"{repository}:{tag}"
            try:
                for line in client.api.build(
                    fileobj=recipe, tag=tag, decode=True, rm=True, forcerm=True
                ):
                    if "error" in line:
                        raise EngineError(f"the image could not be made: {line['error']}")
            finally:
                now = {each["Id"] for each in client.api.images(name)}
                for old in (before | {written}) - now:
                    # With what only it is built on; what another image or a container needs stays.
                    with contextlib.suppress(docker.errors.APIError):
                        client.api.remove_image(old)
        finally:
            client.close()
    except docker.errors.APIError as error:
        raise EngineError(f"the Docker engine refused: {error.explanation}") from error
    except (docker.errors.DockerException, OSError) as error:
        raise EngineError(f"the image could not be made: {error}") from error


def engine_architecture(version: Mapping[str, Any]) -> str:
    """The engine's architecture in the kernel's name for it."""
    names = {"amd64": "x86_64", "arm64": "aarch64"}
    return names.get(version["Arch"], str(version["Arch"]))
