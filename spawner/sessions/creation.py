"""From a request for a session to rows: every field is checked, and all errors are told at once."""

from __future__ import annotations

import datetime as dt
import re
import secrets
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from authenticator.principals import Principal, Via
from authenticator.problems import (
    AuthFailed,
    Forbidden,
    InvalidParameters,
    NotFound,
    QuotaExceeded,
)
from authenticator.tables import KeyPairPolicyRow, KeyPairRow, MembershipRow, ProjectRow
from spawner.scheduler.model import SessionGroup
from spawner.scheduler.slots import KINDS, human_amount, human_bytes, parse_amount
from spawner.sessions.apps import PORTS_LABEL, apps_of, labelled_services
from spawner.sessions.durations import moment, seconds_of
from spawner.sessions.registration import architecture
from spawner.sessions.requests import NewSession
from spawner.sessions.states import Status, Target
from spawner.sessions.tables import (
    AgentDeviceRow,
    AgentRow,
    ImageRow,
    KernelRow,
    ResourceGroupRow,
    SessionRow,
)
from spawner.sessions.wishes import (
    DESIGNATIONS,
    FAILED_PARENTS,
    GROUP_RULES,
    Wishes,
    find_parents,
)
from vfolder.folders import FolderMount

NAME = re.compile(r"(?=.{4,64}$)[A-Za-z0-9_][A-Za-z0-9_.-]*[A-Za-z0-9_]")
NAME_RULE = (
    "4 to 64 letters, digits, '_', '-' and '.', beginning and ending with none of '-' and '.'"
)
IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,254}")
SLOT_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}([.:][a-z0-9._-]{1,31})*")
ENVIRON_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
TYPES = ("interactive", "batch")
CLUSTER_MODES = ("single-node", "multi-node")
REQUIRED = {"cpu": "1", "mem": "1g"}
"""Slots that every session has, with the amounts when neither image nor group says otherwise."""
DEFAULT_SHMEM = "64m"
RESOURCE_OPTS = ("shmem", "allow_fractional_resource_fragmentation")
FORBIDDEN_ENVIRON = ("JUPYTERHUB_", "LD_", "PERIJOVE_")
MAX_ENVIRON = 256
MAX_VALUE = 32 * 1024
MAX_ENVIRON_BYTES = 128 * 1024
MAX_COMMAND = 64 * 1024
DEFAULT_PRIORITY = 10
RESERVED_PORTS = frozenset({2000, 2001, 2200, 7681})
HUB_PORT_NAME = "jupyterlab"
_SHOWN = 80


@dataclass(frozen=True, slots=True)
class Facts:
    """What the database says about the things that a request names."""

    groups: Mapping[str, ResourceGroupRow]
    images: Sequence[ImageRow]
    """Rows of the requested image, one for each architecture."""
    slots: frozenset[str]
    policy: KeyPairPolicyRow
    projects: Sequence[ProjectRow]
    parents: tuple[str, ...] = ()
    """Ids of the sessions it depends on."""
    bad_parents: Mapping[str, str] = field(default_factory=dict)
    """A sentence for each dependency that cannot be one."""

    @property
    def default_group(self) -> ResourceGroupRow | None:
        """The group for requests that name none."""
        ranked = sorted(self.groups.values(), key=lambda g: (not g.is_default, g.name))
        return ranked[0] if ranked else None


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
    wishes: Wishes = field(default_factory=Wishes)


async def read_facts(
    db: AsyncSession, owner: Principal, image: str, parents: Iterable[str] = ()
) -> Facts:
    """One read of all that ``check`` needs. Raises ``AuthFailed`` when the key pair is gone."""
    groups = await db.scalars(select(ResourceGroupRow).where(ResourceGroupRow.is_active))
    names = [image] if ":" in image.rpartition("/")[2] else [image, f"{image}:latest"]
    images = await db.scalars(select(ImageRow).where(ImageRow.name.in_(names), ImageRow.is_enabled))
    slots = await db.scalars(select(AgentDeviceRow.slot).distinct())
    policy = await db.scalar(
        select(KeyPairPolicyRow)
        .join(KeyPairRow, KeyPairRow.policy == KeyPairPolicyRow.name)
        .where(KeyPairRow.access_key == owner.access_key)
    )
    if policy is None:
        raise AuthFailed(f"{owner.username} has no active key pair")
    projects = await db.scalars(
        select(ProjectRow)
        .join(MembershipRow, MembershipRow.project_id == ProjectRow.id)
        .where(MembershipRow.user_id == owner.user_id, ProjectRow.is_active)
        .order_by(ProjectRow.name != "default", ProjectRow.name)
    )
    found = sorted(images, key=lambda row: (row.name != image, row.architecture))
    ids, bad = await find_parents(db, owner.user_id, parents)
    return Facts(
        {group.name: group for group in groups},
        [row for row in found if row.name == found[0].name],
        frozenset(slots) | frozenset(KINDS),
        policy,
        list(projects),
        tuple(dict.fromkeys(ids)),
        bad,
    )


def check(
    actor: Principal, owner: Principal, new: NewSession, facts: Facts, now: dt.datetime
) -> Draft:
    """The checked request. Raises ``InvalidParameters`` with every wrong field, or another ``Problem``."""
    checker = Checker(actor, owner, new, facts, now)
    return checker.check()


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
        self._batch()
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
            if not SLOT_NAME.fullmatch(slot) or slot not in self.facts.slots:
                known = ", ".join(sorted(self.facts.slots))
                self._fault(f"config.resources.{slot[:_SHOWN]}", f"unknown slot: known are {known}")
                continue
            try:
                self.draft.slots[slot] = parse_amount(slot, value)
            except ValueError as error:
                self._fault(f"config.resources.{slot}", str(error))
        group = self.facts.groups.get(self.draft.group)
        defaults = {**REQUIRED, **(group.options.get("default_slots", {}) if group else {})}
        for slot, text in defaults.items():
            if slot in REQUIRED and not self.draft.slots.get(slot):
                if self.new.slots.get(slot) is not None:
                    if f"config.resources.{slot}" not in self.errors:
                        self._fault(f"config.resources.{slot}", "every session needs more than 0")
                    continue
                self.draft.slots[slot] = max(parse_amount(slot, text), least.get(slot, 0))
        for slot, amount in least.items():
            if (
                self.draft.slots.get(slot, 0) < amount
                and f"config.resources.{slot}" not in self.errors
            ):
                asked = self.new.slots.get(slot, 0)
                self._fault(
                    f"config.resources.{slot}",
                    f"{asked} is less than this image needs: at least {human_amount(slot, amount)}",
                )
        self.draft.slots = {slot: amount for slot, amount in self.draft.slots.items() if amount}
        self._shmem(group)

    def _shmem(self, group: ResourceGroupRow | None) -> None:
        for name in self.new.resource_opts:
            if name not in RESOURCE_OPTS:
                allowed = ", ".join(RESOURCE_OPTS)
                self._fault(f"config.resource_opts.{name[:_SHOWN]}", f"unknown: one of {allowed}")
        default = group.options.get("shmem", DEFAULT_SHMEM) if group else DEFAULT_SHMEM
        asked = self.new.resource_opts.get("shmem")
        where = "config.resource_opts.shmem"
        try:
            self.draft.shmem = parse_amount("mem", default if asked is None else asked)
        except ValueError as error:
            self._fault(where, str(error).replace("mem is", "shmem is", 1))
            return
        memory = self.draft.slots.get("mem", 0)
        if asked is None:
            self.draft.shmem = min(self.draft.shmem, memory // 2)
        elif memory and self.draft.shmem >= memory:
            self._fault(
                where,
                f"{human_bytes(self.draft.shmem)} of shared memory is part of the memory and must be"
                f" less than {human_bytes(memory)}",
            )

    def _plain_fields(self) -> None:
        new = self.new
        if not NAME.fullmatch(new.name):
            self._fault("name", f"{new.name[:_SHOWN]!r}: {NAME_RULE}")
        if new.type not in TYPES:
            self._fault("type", f"{new.type[:_SHOWN]!r}: one of {', '.join(TYPES)}")
        if new.tag is not None and len(new.tag) > 64:
            self._fault("tag", f"{len(new.tag)} characters: at most 64")
        if new.domain is not None and new.domain != self.owner.domain:
            self._fault("domain", f"{new.domain[:_SHOWN]!r}: yours is {self.owner.domain}")
        most = self.facts.policy.max_priority
        self.draft.priority = min(DEFAULT_PRIORITY, most) if new.priority is None else new.priority
        if not 0 <= self.draft.priority <= most:
            self._fault("priority", f"{new.priority}: a number from 0 to {most}")
        if new.callback_url:
            self._fault("callback_url", "callbacks are not offered here: leave it out")
        if new.bootstrap_script:
            self._fault("bootstrap_script", "bootstrap scripts are not offered here: leave it out")
        if new.hub is not None and self.actor.via is not Via.HUB:
            self._fault("perijove", "only the hub may start its servers")

    def _image(self) -> None:
        rows = self.facts.images
        asked = self.new.image
        if not IMAGE.fullmatch(asked):
            self._fault("image", f"{asked[:_SHOWN]!r} is not the name of an image")
            return
        wanted = architecture(self.new.architecture) if self.new.architecture else None
        group = self.facts.groups.get(self.new.resource_group or "") or self.facts.default_group
        if not rows:
            if group is not None and group.options.get("allow_pull", False):
                self.draft.image, self.draft.architecture = asked, wanted or "x86_64"
                return
            self._image_missing = True
            self._fault("image", f"{asked!r} is not known here")
            return
        fitting = [row for row in rows if wanted is None or row.architecture == wanted]
        if not fitting:
            there = ", ".join(sorted(row.architecture for row in rows))
            self._fault("architecture", f"{wanted!r}: this image is there for {there}")
            return
        chosen = fitting[0]
        self.draft.image, self.draft.labels = chosen.name, chosen.labels
        self.draft.architecture = chosen.architecture

    def _group(self) -> None:
        asked = self.new.resource_group
        group = self.facts.default_group if asked is None else self.facts.groups.get(asked)
        if group is None:
            known = ", ".join(sorted(self.facts.groups)) or "none"
            self._fault("config.scalingGroup", f"{(asked or '')[:_SHOWN]!r}: one of {known}")
            return
        self.draft.group = group.name
        allowed = group.options.get("allowed_session_types", TYPES)
        if self.new.type in TYPES and self.new.type not in allowed:
            told = f"{self.new.type!r}: {group.name} takes {', '.join(allowed)} sessions"
            self._fault("type", told)

    def _project(self) -> None:
        asked, mine = self.new.project, self.facts.projects
        fitting = [p for p in mine if asked is None or asked in (p.name, str(p.id))]
        if not fitting:
            known = ", ".join(project.name for project in mine) or "none"
            self._fault("group", f"{(asked or '')[:_SHOWN]!r}: you belong to {known}")
            return
        self.draft.project = fitting[0]

    def _environ(self) -> None:
        environ = self.new.environ
        if len(environ) > MAX_ENVIRON:
            self._fault("config.environ", f"{len(environ)} variables: at most {MAX_ENVIRON}")
        size = sum(len(name) + len(value.encode()) for name, value in environ.items())
        if size > MAX_ENVIRON_BYTES:
            self._fault("config.environ", f"{size} bytes in all: at most {MAX_ENVIRON_BYTES}")
        for name, value in environ.items():
            where = f"config.environ.{name[:_SHOWN]}"
            if not ENVIRON_NAME.fullmatch(name):
                self._fault(where, "a name has letters, digits and '_', and begins with no digit")
            elif self.actor.via is not Via.HUB and name.startswith(FORBIDDEN_ENVIRON):
                kept = ", ".join(f"{prefix}*" for prefix in FORBIDDEN_ENVIRON)
                self._fault(where, f"names like {kept} are set by the platform")
            elif "\0" in value or len(value.encode()) > MAX_VALUE:
                self._fault(where, f"a value has at most {MAX_VALUE} bytes, and no NUL")
        self.draft.environ = dict(environ)

    def _batch(self) -> None:
        new = self.new
        command = (new.startup_command or "").strip()
        if len(command) > MAX_COMMAND:
            self._fault("startupCommand", f"{len(command)} characters: at most {MAX_COMMAND}")
        if new.type == "batch":
            if not command:
                self._fault("startupCommand", "a batch session needs a command")
            self.draft.command = ["sh", "-c", command]
        elif command:
            self._fault("startupCommand", "only batch sessions have a startup command")
        elif new.hub is not None:
            self.draft.command = list(new.hub.command)
        if new.starts_at is None:
            return
        if new.type != "batch":
            self._fault("starts_at", "only batch sessions can start later")
            return
        self.draft.starts_at = moment(new.starts_at, self.now)
        if self.draft.starts_at is None:
            self._fault(
                "starts_at", f'{new.starts_at[:_SHOWN]!r}: an ISO 8601 time or a duration as "90s"'
            )

    def _ports(self) -> None:
        ports: list[dict[str, Any]] = []
        if self.new.hub is not None:
            ports.append(_port(HUB_PORT_NAME, self.new.hub.port))
        elif self.new.type != "batch":
            ports += labelled_ports(self.draft.labels)
        taken = {port["container_port"] for port in ports} | RESERVED_PORTS
        for value in self.new.preopen_ports:
            number = int(value) if isinstance(value, int | str) and str(value).isdecimal() else 0
            if not 1024 <= number <= 65535 or number in taken:
                self._fault(
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
            self._fault("clusterMode", f"{mode[:_SHOWN]!r}: one of {', '.join(CLUSTER_MODES)}")
        if size < 1:
            self._fault("clusterSize", f"{size}: 1 or more")
        elif size > self.facts.policy.max_containers_per_session and not self.errors:
            most = self.facts.policy.max_containers_per_session
            raise QuotaExceeded(f"you may have at most {most} containers in a session, not {size}")
        elif size > 1:
            self._fault("clusterSize", f"{size}: sessions of one container are offered so far")

    def _wishes(self) -> None:
        """What it asks of the scheduler; dependencies were looked up by ``read_facts``."""
        new, facts = self.new, self.facts
        for name, sentence in facts.bad_parents.items():
            self._fault(f"dependencies.{name}", sentence)
        for where, value, allowed in (
            ("failedDependencies", new.failed_parents, FAILED_PARENTS),
            ("config.agentSelectionPolicy", new.designation, DESIGNATIONS),
        ):
            if value not in allowed:
                self._fault(where, f"{value[:_SHOWN]!r}: one of {', '.join(allowed)}")
        longest = facts.policy.max_session_lifetime
        limit = None if longest is None else float(longest)
        if new.run_time is not None:
            try:
                asked = seconds_of(new.run_time)
            except ValueError as error:
                self._fault("runTime", str(error))
                asked = 1.0
            if asked < 1:
                self._fault("runTime", f"{new.run_time}: 1 second or more")
            elif limit is not None and asked > limit:
                self._fault("runTime", f"{new.run_time}: you may run at most {limit:g} seconds")
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
        if not isinstance(name, str) or not NAME.match(name):
            self._fault("config.sessionGroup.name", f"{str(name)[:_SHOWN]!r}: {NAME_RULE}")
        if rule not in GROUP_RULES:
            allowed = ", ".join(GROUP_RULES)
            self._fault("config.sessionGroup.rule", f"{str(rule)[:_SHOWN]!r}: one of {allowed}")
        if strict not in (None, True, False):
            self._fault("config.sessionGroup.strict", f"{str(strict)[:_SHOWN]!r}: true or false")
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

    def _fault(self, where: str, sentence: str) -> None:
        self.errors.setdefault(where, sentence)


def labelled_ports(labels: Mapping[str, str]) -> list[dict[str, Any]]:
    """Ports of the label ``ai.backend.service-ports``: ``name:protocol:port[,...]``, the main one first."""
    ports: list[dict[str, Any]] = []
    for part in labels.get("ai.backend.service-ports", "").split(","):
        name, _, rest = part.strip().partition(":")
        protocol, _, number = rest.partition(":")
        if name and number.isdecimal() and 0 < int(number) < 65536:
            ports.append(_port(name, int(number), protocol or "http"))
    return ports


async def check_counts(
    db: AsyncSession, owner: Principal, policy: KeyPairPolicyRow, slots: Mapping[str, int]
) -> None:
    """Raise ``QuotaExceeded`` when the owner's queue has too many sessions, or asks for too much.

    ``slots`` is what one more session asks for.
    """
    most, cap = policy.max_pending_sessions, policy.max_pending_resource_slots
    if most is None and cap is None:
        return
    query = select(SessionRow.requested_slots).where(
        SessionRow.access_key == owner.access_key, SessionRow.status == Status.PENDING.value
    )
    queue = list(await db.scalars(query))
    if most is not None and len(queue) >= most:
        raise QuotaExceeded(
            f"you have {len(queue)} sessions waiting and may have {most}:"
            " wait for one to start, or cancel one"
        )
    for slot, limit in (cap or {}).items():
        waiting = sum(int(asked.get(slot, 0)) for asked in queue)
        amount = slots.get(slot, 0)
        if amount and waiting + amount > int(limit):
            raise QuotaExceeded(
                f"your waiting sessions may ask for {human_amount(slot, int(limit))} together:"
                f" {human_amount(slot, waiting)} wait, and this one asks for"
                f" {human_amount(slot, amount)}"
            )


async def check_agents(db: AsyncSession, names: Iterable[str]) -> None:
    """Raise ``InvalidParameters`` for designated agents that do not exist."""
    wanted = set(names)
    known = set(await db.scalars(select(AgentRow.id).where(AgentRow.id.in_(wanted))))
    unknown = sorted(wanted - known)
    if unknown:
        raise InvalidParameters(
            {"config.agentList": f"there is no agent {', '.join(unknown)[:200]}"}
        )


def rows(
    owner: Principal,
    new: NewSession,
    draft: Draft,
    mounts: Iterable[FolderMount],
    request_id: str,
    now: dt.datetime,
) -> tuple[SessionRow, KernelRow]:
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
        cluster_size=1,
        priority=draft.priority,
        image=draft.image,
        architecture=draft.architecture,
        requested_slots=draft.slots,
        resource_opts={**new.resource_opts, "shmem": str(draft.shmem)},
        designated_agents=list(new.designated_agents),
        status=Status.PENDING.value,
        target=Target.RUNNING.value,
        forced=False,
        status_info="waiting for the scheduler",
        status_data={},
        result="undefined",
        tag=new.tag,
        origin={"hub": new.hub.hub, "server": new.hub.server} if new.hub else {},
        request_id=request_id[:64],
        starts_at=draft.starts_at,
        scheduling=draft.wishes.row(),
        created_at=now,
    )
    kernel = KernelRow(
        id=uuid.uuid4(),
        session_id=session.id,
        cluster_role="main",
        cluster_index=1,
        hostname="main1",
        epoch=0,
        status=Status.PENDING.value,
        image=draft.image,
        slots=draft.slots,
        spec=_spec(new, draft, mounts),
        ports=[],
        status_info="",
        last_stat={},
        last_log="",
        created_at=now,
    )
    return session, kernel


def _spec(new: NewSession, draft: Draft, mounts: Iterable[FolderMount]) -> dict[str, Any]:
    environ = dict(draft.environ)
    if (
        new.hub is None and draft.ports
    ):  # a server of its own must not be open to whoever finds the port
        environ.setdefault("JUPYTER_TOKEN", secrets.token_urlsafe(32))
    return {
        "command": draft.command,
        "environ": environ,
        "mounts": [
            {"volume": m.volume, "path": m.path, "target": m.target, "read_only": m.read_only}
            for m in mounts
        ],
        "ports": draft.ports,
        "shm_bytes": draft.shmem,
        "labels": {},
        "apps": _apps(draft),
    }


def _apps(draft: Draft) -> list[dict[str, Any]]:
    """What can be opened in the session; its own command listens on the first port."""
    main = draft.ports[0]["container_port"] if draft.ports else 0
    opened = [port["container_port"] for port in draft.ports if port["protocol"] == "preopen"]
    named = {name for name, *_ in labelled_services(draft.labels.get(PORTS_LABEL, ""))[0]}
    return apps_of(draft.labels, (n for n in opened if str(n) not in named), main)


def _port(name: str, number: int, protocol: str = "http") -> dict[str, Any]:
    return {"name": name, "container_port": number, "protocol": protocol}
