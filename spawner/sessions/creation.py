"""From a request for a session to rows: every field is checked, and all errors are told at once."""

from __future__ import annotations

import datetime as dt
import re
import secrets
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from authenticator.principals import Principal, Via
from authenticator.problems import (
    Forbidden,
    InvalidParameters,
    NotFound,
    QuotaExceeded,
)
from authenticator.tables import ProjectRow
from spawner.agent import seccomp
from spawner.agent.engines.base import EngineError
from spawner.scheduler.model import SessionGroup
from spawner.scheduler.slots import human_amount, human_bytes, parse_amount
from spawner.sessions import clusters, execution
from spawner.sessions.apps import (
    ACCELERATORS_LABEL,
    JUPYTER_TOKEN,
    PORTS_LABEL,
    apps_of,
    idle_command,
    labelled_ports,
    labelled_services,
    own_command,
)
from spawner.sessions.durations import seconds_of
from spawner.sessions.facts import Facts
from spawner.sessions.image_rows import OWN_HOST
from spawner.sessions.kinds import TYPES, USUAL_TYPES, check_kind
from spawner.sessions.registration import architecture
from spawner.sessions.requests import NewSession
from spawner.sessions.states import Status, Target
from spawner.sessions.tables import (
    KernelRow,
    ResourceGroupRow,
    SessionRow,
)
from spawner.sessions.wishes import (
    DESIGNATIONS,
    FAILED_PARENTS,
    GROUP_RULES,
    Wishes,
)
from vfolder.folders import FolderMount

NAME = re.compile(r"(?=.{4,64}$)[A-Za-z0-9_][A-Za-z0-9_.-]*[A-Za-z0-9_]")
NAME_RULE = (
    "4 to 64 letters, digits, '_', '-' and '.', beginning and ending with none of '-' and '.'"
)
IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,254}")
ENVIRON_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
CLUSTER_MODES = ("single-node", "multi-node")
REQUIRED = {"cpu": "1", "mem": "1g"}
"""Slots that every session has, with the amounts when neither image nor group says otherwise."""
DEFAULT_SHMEM = "64m"
RESOURCE_OPTS = ("shmem", "allow_fractional_resource_fragmentation")
FORBIDDEN_ENVIRON = ("JUPYTERHUB_", "LD_", "PERIJOVE_")
MAX_ENVIRON = 256
MAX_VALUE = 32 * 1024
MAX_BOOTSTRAP = 16 * 1024
"""Bytes; an agent is told the scripts of all its starting kernels at once."""
MAX_ENVIRON_BYTES = 128 * 1024
DEFAULT_PRIORITY = 10
RESERVED_PORTS = frozenset({2000, 2001, 2200, 7681})
HUB_PORT_NAME = "jupyterlab"
_SHOWN = 80


@dataclass(slots=True)
class Draft:
    """A checked request; amounts in base units."""

    image: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    architecture: str = ""
    group: str = ""
    project: ProjectRow | None = None
    slots: dict[str, int] = field(default_factory=dict)
    shmem: int = 0
    priority: int = DEFAULT_PRIORITY
    environ: dict[str, str] = field(default_factory=dict)
    starts_at: dt.datetime | None = None
    ports: list[dict[str, Any]] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    recovery: dict[str, Any] | None = None
    service_port: dict[str, Any] | None = None
    health: dict[str, Any] | None = None
    start_timeout: float | None = None
    seccomp: str | None = None
    wishes: Wishes = field(default_factory=Wishes)
    agents: tuple[str, ...] = ()


def check(
    actor: Principal, owner: Principal, new: NewSession, facts: Facts, now: dt.datetime
) -> Draft:
    """The checked request. Raises ``InvalidParameters`` with every wrong field, or another ``Problem``."""
    return Checker(actor, owner, new, facts, now).check()


class Checker:
    """Checks one request field by field and gathers the errors."""

    def __init__(
        self, actor: Principal, owner: Principal, new: NewSession, facts: Facts, now: dt.datetime
    ) -> None:
        self.actor, self.owner, self.new, self.facts, self.now = actor, owner, new, facts, now
        self.errors: dict[str, str] = {}
        self.draft = Draft()
        self._image_missing = False

    def check(self) -> Draft:
        """Run all checks."""
        self._plain_fields()
        self._image()
        self._group()
        self._project()
        self.check_resources()
        self._environ()
        check_kind(self)
        self._ports()
        self._cluster()
        self._wishes()
        if self.new.designated_agents and not self.actor.is_superadmin:
            raise Forbidden("only administrators may choose agents for a session")
        if self._image_missing and len(self.errors) == 1:
            raise NotFound("environment image", self.errors["image"])
        if self.errors:
            raise InvalidParameters(self.errors)
        return self.draft

    def check_offer(self) -> Draft:
        """Image, group and resources only, for a dry run; errors are in ``errors``."""
        self._domain()
        if self.new.image:
            self._image()
        self._group()
        self.check_resources()
        return self.draft

    def check_resources(self) -> None:
        """Slots and options, with defaults for what every session needs."""
        least = self._image_minimum()
        for slot, value in self.new.slots.items():
            if value is None:
                continue
            if slot not in self.facts.slots:
                known = ", ".join(sorted(self.facts.slots))
                self.fault(f"config.resources.{slot[:_SHOWN]}", f"unknown slot: known are {known}")
                continue
            try:
                self.draft.slots[slot] = parse_amount(slot, value)
            except ValueError as error:
                self.fault(f"config.resources.{slot}", str(error))
        group = self.facts.groups.get(self.draft.group)
        defaults = {**REQUIRED, **(group.options.get("default_slots", {}) if group else {})}
        for slot, text in defaults.items():
            if slot not in REQUIRED:
                if self.new.slots.get(slot) is None:
                    self.draft.slots[slot] = max(parse_amount(slot, text), least.get(slot, 0))
            elif not self.draft.slots.get(slot):
                if self.new.slots.get(slot) is not None:
                    if f"config.resources.{slot}" not in self.errors:
                        self.fault(f"config.resources.{slot}", "every session needs more than 0")
                    continue
                self.draft.slots[slot] = max(parse_amount(slot, text), least.get(slot, 0))
        for slot, amount in least.items():
            if (
                self.draft.slots.get(slot, 0) < amount
                and f"config.resources.{slot}" not in self.errors
            ):
                asked = self.new.slots.get(slot, 0)
                self.fault(
                    f"config.resources.{slot}",
                    f"{asked} is less than this image needs: at least {human_amount(slot, amount)}",
                )
        self.draft.slots = {slot: amount for slot, amount in self.draft.slots.items() if amount}
        self._image_accelerators()
        if group is not None:
            self._served(group)
        self._shmem(group)

    def _served(self, group: ResourceGroupRow) -> None:
        """Slots that the group does not serve, and those that it demands."""
        served: list[str] | None = group.options.get("served_slots")
        demanded = group.options.get("required_slots") or ()
        for slot in self.draft.slots if served is not None else ():
            if slot not in (served or ()):
                known = ", ".join(sorted(served or ())) or "nothing"
                told = f"{group.name} does not serve it: it serves {known}"
                self.fault(f"config.resources.{slot}", told)
        for slot in demanded:
            if slot not in self.draft.slots:
                told = f"the resource group {group.name} requires every session to ask for it"
                self.fault(f"config.resources.{slot}", told)

    def _shmem(self, group: ResourceGroupRow | None) -> None:
        for name in self.new.resource_opts:
            if name not in RESOURCE_OPTS:
                allowed = ", ".join(RESOURCE_OPTS)
                self.fault(f"config.resource_opts.{name[:_SHOWN]}", f"unknown: one of {allowed}")
        default = group.options.get("shmem", DEFAULT_SHMEM) if group else DEFAULT_SHMEM
        asked = self.new.resource_opts.get("shmem")
        where = "config.resource_opts.shmem"
        try:
            self.draft.shmem = parse_amount("mem", default if asked is None else asked)
        except ValueError as error:
            self.fault(where, str(error).replace("mem is", "shmem is", 1))
            return
        memory = self.draft.slots.get("mem", 0)
        if asked is None:
            self.draft.shmem = min(self.draft.shmem, memory // 2)
        elif memory and self.draft.shmem >= memory:
            self.fault(
                where,
                f"{human_bytes(self.draft.shmem)} of shared memory is part of the memory and must be"
                f" less than {human_bytes(memory)}",
            )

    def _plain_fields(self) -> None:
        new = self.new
        if not NAME.fullmatch(new.name):
            self.fault("name", f"{new.name[:_SHOWN]!r}: {NAME_RULE}")
        if new.type not in TYPES:
            self.fault("type", f"{new.type[:_SHOWN]!r}: one of {', '.join(TYPES)}")
        if new.tag is not None and len(new.tag) > 64:
            self.fault("tag", f"{len(new.tag)} characters: at most 64")
        if new.domain is not None and new.domain != self.owner.domain:
            self.fault("domain", f"{new.domain[:_SHOWN]!r}: yours is {self.owner.domain}")
        self._domain()
        most = self.facts.policy.max_priority
        self.draft.priority = min(DEFAULT_PRIORITY, most) if new.priority is None else new.priority
        if not 0 <= self.draft.priority <= most:
            self.fault("priority", f"{new.priority}: a number from 0 to {most}")
        callback = self.facts.callbacks.fault(new.callback_url) if new.callback_url else None
        if callback is not None:
            self.fault("callback_url", callback)
        size = len((new.bootstrap_script or "").encode())
        if size > MAX_BOOTSTRAP:
            self.fault("bootstrap_script", f"{size} bytes: at most {MAX_BOOTSTRAP}")
        if new.hub is not None and self.actor.via is not Via.HUB:
            self.fault("perijove", "only the hub may start its servers")

    def _domain(self) -> None:
        if not self.facts.domain_active:
            self.fault("domain", f"{self.owner.domain!r} is switched off: it takes no sessions")

    def _image(self) -> None:
        rows = self.facts.images
        asked = self.new.image
        if not IMAGE.fullmatch(asked):
            self.fault("image", f"{asked[:_SHOWN]!r} is not the name of an image")
            return
        wanted = architecture(self.new.architecture) if self.new.architecture else None
        group = self.facts.groups.get(self.new.resource_group or "") or self.facts.default_group
        if not rows:
            may_pull = not self.facts.withheld and not asked.startswith(f"{OWN_HOST}/")
            if may_pull and group is not None and group.options.get("allow_pull", False):
                self.draft.image, self.draft.architecture = asked, wanted or "x86_64"
                return
            self._image_missing = True
            self.fault("image", f"{asked!r} is not known here")
            return
        fitting = [row for row in rows if wanted is None or row.architecture == wanted]
        if not fitting:
            there = ", ".join(sorted(row.architecture for row in rows))
            self.fault("architecture", f"{wanted!r}: this image is there for {there}")
            return
        chosen = fitting[0]
        self.draft.image, self.draft.labels = chosen.name, chosen.labels
        self.draft.architecture = chosen.architecture
        self.draft.agents = self.facts.image_agents

    def _group(self) -> None:
        asked = self.new.resource_group
        group = self.facts.default_group if asked is None else self.facts.groups.get(asked)
        if group is None:
            known = ", ".join(sorted(self.facts.groups)) or "none"
            self.fault("config.scalingGroup", f"{(asked or '')[:_SHOWN]!r}: one of {known}")
            return
        self.draft.group = group.name
        profiles = group.options.get("seccomp"), self.facts.policy.seccomp
        try:
            self.draft.seccomp = seccomp.combined(*profiles) if any(profiles) else None
        except EngineError as error:
            self.fault("config.scalingGroup", f"{group.name!r} and your policy: {error}")
        allowed = group.options.get("allowed_session_types", USUAL_TYPES)
        if self.new.type in TYPES and self.new.type not in allowed:
            told = f"{self.new.type!r}: {group.name} takes {', '.join(allowed)} sessions"
            self.fault("type", told)

    def _project(self) -> None:
        asked, mine = self.new.project, self.facts.projects
        fitting = [p for p in mine if asked is None or asked in (p.name, str(p.id))]
        if not fitting:
            known = ", ".join(project.name for project in mine) or "none"
            self.fault("group", f"{(asked or '')[:_SHOWN]!r}: you belong to {known}")
            return
        self.draft.project = fitting[0]

    def _environ(self) -> None:
        environ = self.new.environ
        if len(environ) > MAX_ENVIRON:
            self.fault("config.environ", f"{len(environ)} variables: at most {MAX_ENVIRON}")
        size = sum(len(name) + len(value.encode()) for name, value in environ.items())
        if size > MAX_ENVIRON_BYTES:
            self.fault("config.environ", f"{size} bytes in all: at most {MAX_ENVIRON_BYTES}")
        for name, value in environ.items():
            where = f"config.environ.{name[:_SHOWN]}"
            if not ENVIRON_NAME.fullmatch(name):
                self.fault(where, "a name has letters, digits and '_', and begins with no digit")
            elif self.actor.via is not Via.HUB and name.startswith(FORBIDDEN_ENVIRON):
                kept = ", ".join(f"{prefix}*" for prefix in FORBIDDEN_ENVIRON)
                self.fault(where, f"names like {kept} are set by the platform")
            elif "\0" in value or len(value.encode()) > MAX_VALUE:
                self.fault(where, f"a value has at most {MAX_VALUE} bytes, and no NUL")
        self.draft.environ = dict(environ)

    def _ports(self) -> None:
        ports: list[dict[str, Any]] = []
        if self.new.hub is not None:
            ports.append({**_port(HUB_PORT_NAME, self.new.hub.port), "published": True})
        elif self.draft.service_port is not None:
            ports.append(self.draft.service_port)
        elif self.new.type == "inference" or (
            self.new.type != "batch" and not idle_command(self.draft.labels)
        ):
            ports += labelled_ports(self.draft.labels, inference=self.new.type == "inference")
        if self.new.type == "inference" and not ports and not self._image_missing:
            self.fault(
                "service.port", "an inference session needs a port, and this image names none"
            )
        taken = {port["container_port"] for port in ports} | RESERVED_PORTS
        for value in self.new.preopen_ports:
            number = int(value) if isinstance(value, int | str) and str(value).isdecimal() else 0
            if not 1024 <= number <= 65535 or number in taken:
                self.fault(
                    "config.preopen_ports",
                    f"{str(value)[:_SHOWN]!r}: ports from 1024 to 65535 except"
                    f" {', '.join(str(port) for port in sorted(taken))}",
                )
                continue
            taken = taken | {number}
            ports.append(_port(f"preopen-{number}", number, "preopen"))
        self.draft.ports = ports

    def _cluster(self) -> None:
        mode, size = self.new.cluster_mode, self.new.cluster_size
        if mode not in CLUSTER_MODES:
            self.fault("clusterMode", f"{mode[:_SHOWN]!r}: one of {', '.join(CLUSTER_MODES)}")
        if size < 1:
            self.fault("clusterSize", f"{size}: 1 or more")
        elif size > (most := self.facts.most_containers(self.draft.project)) and not self.errors:
            raise QuotaExceeded(f"you may have at most {most} containers in a session, not {size}")
        elif size > 1 and self.draft.group in self.facts.unconnected:
            told = f"the nodes of {self.draft.group} cannot connect containers: 1 is allowed"
            self.fault("clusterSize", f"{size}: {told}")

    def _wishes(self) -> None:
        """What it asks of the scheduler; dependencies were looked up by ``read_facts``."""
        new, facts = self.new, self.facts
        for name, sentence in facts.bad_parents.items():
            self.fault(f"dependencies.{name}", sentence)
        for where, value, allowed in (
            ("failedDependencies", new.failed_parents, FAILED_PARENTS),
            ("config.agentSelectionPolicy", new.designation, DESIGNATIONS),
        ):
            if value not in allowed:
                self.fault(where, f"{value[:_SHOWN]!r}: one of {', '.join(allowed)}")
        longest = facts.policy.max_session_lifetime
        limit = None if longest is None else float(longest)
        if new.run_time is not None:
            try:
                asked = seconds_of(new.run_time)
            except ValueError as error:
                self.fault("runTime", str(error))
                asked = 1.0
            if asked < 1:
                self.fault("runTime", f"{new.run_time}: 1 second or more")
            elif limit is not None and asked > limit:
                self.fault("runTime", f"{new.run_time}: you may run at most {limit:g} seconds")
            limit = asked
        self.draft.wishes = Wishes(
            dependencies=facts.parents,
            failed_parents=cast("Any", new.failed_parents),
            run_time=limit,
            preemptible=new.preemptible,
            designation=cast("Any", new.designation),
            session_group=self._session_group(),
        )

    def _session_group(self) -> SessionGroup | None:
        given = self.new.session_group
        if given is None:
            return None
        name, rule, strict = given.get("name"), given.get("rule", "spread"), given.get("strict")
        if not isinstance(name, str) or not NAME.fullmatch(name):
            self.fault("config.sessionGroup.name", f"{str(name)[:_SHOWN]!r}: {NAME_RULE}")
        if rule not in GROUP_RULES:
            allowed = ", ".join(GROUP_RULES)
            self.fault("config.sessionGroup.rule", f"{str(rule)[:_SHOWN]!r}: one of {allowed}")
        if strict not in (None, True, False):
            self.fault("config.sessionGroup.strict", f"{str(strict)[:_SHOWN]!r}: true or false")
        return SessionGroup(f"{self.owner.user_id}/{name}", cast("Any", rule), strict is True)

    def _image_minimum(self) -> dict[str, int]:
        prefix = "ai.backend.resource.min."
        least: dict[str, int] = {}
        for label, text in self.draft.labels.items():
            slot = label.removeprefix(prefix)
            if label.startswith(prefix) and slot in self.facts.slots:
                try:
                    least[slot] = parse_amount(slot, text)
                except ValueError:
                    continue  # a broken label of an image binds nobody
        return least

    def _image_accelerators(self) -> None:
        text = self.draft.labels.get(ACCELERATORS_LABEL, "*")
        kinds = {each.strip() for each in text.split(",")} - {""}
        for slot in self.draft.slots:
            if slot not in REQUIRED and not kinds & {"*", slot.partition(".")[0]}:
                allowed = ", ".join(sorted(kinds)) or "no accelerator"
                self.fault(f"config.resources.{slot}", f"this image can use {allowed}")

    def fault(self, where: str, sentence: str) -> None:
        """Note what is wrong with a field; the first sentence stays."""
        self.errors.setdefault(where, sentence)


def rows(
    owner: Principal,
    new: NewSession,
    draft: Draft,
    mounts: Iterable[FolderMount],
    request_id: str,
    now: dt.datetime,
) -> tuple[SessionRow, list[KernelRow]]:
    """The rows of a checked request."""
    if draft.project is None:
        raise ValueError("a draft without project has not been checked")
    session = SessionRow(
        id=uuid.uuid4(),
        name=new.name,
        owner_id=owner.user_id,
        access_key=owner.access_key,
        domain=owner.domain,
        project_id=draft.project.id,
        resource_group=draft.group,
        type=new.type,
        cluster_mode=new.cluster_mode,
        cluster_size=new.cluster_size,
        cluster_keys=clusters.new_keys() if new.cluster_size > 1 else None,
        priority=draft.priority,
        image=draft.image,
        architecture=draft.architecture,
        requested_slots={slot: n * new.cluster_size for slot, n in draft.slots.items()},
        resource_opts={**new.resource_opts, "shmem": str(draft.shmem)},
        designated_agents=list(new.designated_agents or draft.agents),
        status=Status.PENDING.value,
        target=Target.RUNNING.value,
        forced=False,
        status_info="waiting for the scheduler",
        status_data={},
        result="undefined",
        tag=new.tag,
        callback_url=new.callback_url or None,
        origin={"hub": new.hub.hub, "server": new.hub.server} if new.hub else {},
        request_id=request_id[:64],
        starts_at=draft.starts_at,
        scheduling=draft.wishes.row(),
        recovery=draft.recovery,
        created_at=now,
    )
    return session, clusters.kernel_rows(session, _spec(new, draft, mounts), draft.slots, now)


def _spec(new: NewSession, draft: Draft, mounts: Iterable[FolderMount]) -> dict[str, Any]:
    environ = dict(draft.environ)
    if (
        new.hub is None and draft.ports
    ):  # a server of its own must not be open to whoever finds the port
        environ.setdefault(JUPYTER_TOKEN, secrets.token_urlsafe(32))
    own = idle = []
    if new.hub is None and not draft.command:
        own = own_command(draft.labels)
        idle = idle_command(draft.labels) if new.type != "inference" else []
    apps = _apps(draft, own=bool(own))
    if any(app["name"] == execution.APP for app in apps):
        environ[execution.KEY] = secrets.token_urlsafe(32)
    more: dict[str, Any] = {} if draft.health is None else {"health": draft.health}
    if draft.start_timeout is not None:
        more["start_timeout"] = draft.start_timeout
    if new.bootstrap_script:
        more["bootstrap"] = new.bootstrap_script
    if draft.seccomp is not None:
        more["seccomp"] = draft.seccomp
    return {
        **more,
        "command": draft.command or own or idle,
        "environ": environ,
        "mounts": [
            {"volume": m.volume, "path": m.path, "target": m.target, "read_only": m.read_only}
            for m in mounts
        ],
        "ports": draft.ports,
        "shm_bytes": draft.shmem,
        "labels": {},
        "apps": apps,
    }


def _apps(draft: Draft, *, own: bool) -> list[dict[str, Any]]:
    """What can be opened in the session; its own command listens on the first port, and may know its path."""
    first = draft.ports[0] if draft.ports else _port("", 0)
    main = first["container_port"] if first["protocol"] != "preopen" else 0
    opened = [port["container_port"] for port in draft.ports if port["protocol"] == "preopen"]
    named = {name for name, *_ in labelled_services(draft.labels.get(PORTS_LABEL, ""))[0]}
    apps = apps_of(draft.labels, (n for n in opened if str(n) not in named), main)
    return [{**app, "own": True} if own and app["port"] == main else app for app in apps]


def _port(name: str, number: int, protocol: str = "http") -> dict[str, Any]:
    return {"name": name, "container_port": number, "protocol": protocol}
