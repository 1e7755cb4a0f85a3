"""Records of administrators: ``perijove domain``, ``project``, ``policy``, ``resource-group``, ``preset``, ...

All work alike, on the database, on the manager's host; the manager notices at once on PostgreSQL,
within half a minute on SQLite.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from authenticator.principals import Principal, Role, Via
from hub.commands.base import Command, Group, UsageError, say, table
from hub.commands.records import with_store
from hub.config.deployment import Deployment
from hub.first_start import now
from spawner.sessions import ledger
from spawner.sessions.administration import Administration
from spawner.sessions.events import EventBus
from spawner.sessions.plugins import load_policies
from spawner.sessions.transitions import Journal
from store.database import Store

T = TypeVar("T")
REQUEST_ID = "perijove-command"


def operator() -> Principal:
    """Whoever may run commands on the manager's host."""
    return Principal(uuid.UUID(int=0), "operator", "", Role.SUPERADMIN, "", "", Via.HUB)


def with_administration(
    deployment: Deployment, work: Callable[[Administration, Principal], Awaitable[T]]
) -> T:
    """Run ``work`` with the administrators' use cases, as the deployment's operator."""

    async def run(store: Store) -> T:
        journal = Journal(store, EventBus(), now)

        async def repair() -> ledger.Repair:
            return await journal.write(
                REQUEST_ID, lambda change: ledger.repair(change.db, change.now)
            )

        return await work(Administration(journal, load_policies(), repair), operator())

    return with_store(deployment, run)


def fields_from(words: list[str], before: dict[str, Any] | None = None) -> dict[str, Any]:
    """Fields of ``KEY=VALUE`` words. A value is JSON where it can be, ``none`` is null, else text.

    ``password=@FILE`` takes the content of a file. ``KEY.SUB=VALUE`` changes one entry of an object: what
    ``before`` has of it stays.
    """
    fields: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise UsageError(f"{word!r} is not KEY=VALUE")
        name, *path = key.split(".", 1)
        if not path:
            fields[name] = _secret(value) if name == "password" else _value(value)
            continue
        held = fields.setdefault(name, _object((before or {}).get(name)))
        *parents, last = path[0].split(".") if name == "options" else [path[0]]
        for parent in parents:
            held[parent] = held = _object(held.get(parent))
        held[last] = _value(value)
    return fields


def _object(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, dict) else {}


def _secret(written: str) -> str:
    """The content of ``@FILE``, for what must not stand on a command line; other texts as they are."""
    if not written.startswith("@"):
        return written
    try:
        return Path(written[1:]).read_text(encoding="utf-8").rstrip("\n")
    except OSError as error:
        raise UsageError(f"password={written}: {error.strerror}") from error


def _value(written: str) -> Any:
    if written.lower() in ("none", "null", "unlimited"):
        return None
    try:
        return json.loads(written)
    except ValueError:
        return written


def _plain(value: Any) -> str:
    if value is None:
        return "unlimited"
    if isinstance(value, dict | list):
        return json.dumps(value)
    return str(value)


class RecordCommand(Command):
    """Base of the commands below; ``plural`` is the kind of records."""

    plural: ClassVar[str] = ""
    more: ClassVar[bool] = False
    """Whether KEY=VALUE words may follow."""

    def positional(self) -> list[str]:
        """The names, then any number of KEY=VALUE words if the command takes some."""
        given = list(self.extra_args)
        count = len(self.arguments)
        if len(given) < count or (len(given) > count and not self.more):
            usage = " ".join([*self.arguments, *(["KEY=VALUE..."] if self.more else [])])
            raise UsageError(f"usage: {self.name} {usage}".rstrip())
        return given


class RecordList(RecordCommand):
    """List all of them."""

    def act(self, *arguments: str) -> None:
        """One line each: the name and what was set."""
        found = with_administration(
            self.deployment(), lambda admin, who: admin.list(who, self.plural)
        )
        rows = [
            (
                str(record["name"]),
                ", ".join(
                    f"{key}={_plain(value)}"
                    for key, value in record.items()
                    if key not in ("name", "id") and value not in (None, "", {}, [])
                ),
            )
            for record in found
        ]
        say(table(("NAME", "FIELDS"), rows))


class RecordShow(RecordCommand):
    """Show one with all its fields."""

    arguments = ("NAME",)

    def act(self, *arguments: str) -> None:
        """One field a line."""
        record = with_administration(
            self.deployment(), lambda admin, who: admin.get(who, self.plural, arguments[0])
        )
        say(table(("FIELD", "VALUE"), [(key, _plain(value)) for key, value in record.items()]))


class RecordAdd(RecordCommand):
    """Make one."""

    arguments = ("NAME",)
    more = True

    def act(self, *arguments: str) -> None:
        """Fields left out get their defaults."""
        name, *words = arguments
        fields = {"name": name, **fields_from(words)}
        made = with_administration(
            self.deployment(), lambda admin, who: admin.create(who, self.plural, fields, REQUEST_ID)
        )
        say(f"Added {made['name']}")


class RecordSet(RecordCommand):
    """Change one."""

    arguments = ("NAME",)
    more = True

    def act(self, *arguments: str) -> None:
        """Only the given fields."""
        name, *words = arguments
        if not words:
            raise UsageError(f"usage: {self.name} NAME KEY=VALUE...")

        async def work(admin: Administration, who: Principal) -> None:
            before = await admin.get(who, self.plural, name)
            await admin.update(who, self.plural, name, fields_from(words, before), REQUEST_ID)

        with_administration(self.deployment(), work)
        say(f"Changed {name}")


class RecordRemove(RecordCommand):
    """Delete one that nothing uses."""

    arguments = ("NAME",)

    def act(self, *arguments: str) -> None:
        """Refused while something uses it."""
        with_administration(
            self.deployment(),
            lambda admin, who: admin.delete(who, self.plural, arguments[0], REQUEST_ID),
        )
        say(f"Removed {arguments[0]}")


class MemberAdd(RecordCommand):
    """Take a user into a project."""

    arguments = ("PROJECT", "USER")
    member = True

    def act(self, *arguments: str) -> None:
        """Harmless when repeated."""
        project, user = arguments
        record = with_administration(
            self.deployment(),
            lambda admin, who: admin.set_member(who, project, user, self.member, REQUEST_ID),
        )
        say(f"Members of {record['name']}: {', '.join(record['members']) or 'nobody'}")


class MemberRemove(MemberAdd):
    """Take a user out of a project; sessions that run go on."""

    member = False


def _commands(word: str, plural: str, what: str) -> type[Group]:
    """The group of commands of one kind of records."""
    offered: dict[str, tuple[type[RecordCommand], str]] = {
        "list": (RecordList, f"List {what}."),
        "show": (RecordShow, "Show one with all its fields."),
        "set": (RecordSet, "Change fields of one: KEY=VALUE..."),
        "add": (RecordAdd, "Make one; KEY=VALUE... for its fields."),
        "remove": (RecordRemove, "Delete one that nothing uses."),
    }
    title = word.title().replace("-", "")
    commands: dict[str, type[Command]] = {}
    for verb, (base, text) in offered.items():
        members = {"__module__": __name__, "__doc__": text, "plural": plural}
        commands[verb] = type(f"{title}{verb.title()}", (base,), members)
    if plural == "projects":
        commands |= {"join": MemberAdd, "leave": MemberRemove}
    group = {
        "__module__": __name__,
        "__doc__": f"Administer {what}. Works on the manager's host.",
        "name": f"perijove {word}",
        "commands": commands,
    }
    return type(f"{title}Group", (Group,), group)


DomainGroup = _commands("domain", "domains", "domains")
ProjectGroup = _commands("project", "projects", "projects and their members")
PolicyGroup = _commands("policy", "keypair-policies", "policies of key pairs")
UserPolicyGroup = _commands("user-policy", "user-policies", "resource policies of users")
ProjectPolicyGroup = _commands(
    "project-policy", "project-policies", "resource policies of projects"
)
ResourceGroupGroup = _commands("resource-group", "resource-groups", "resource groups")
PresetGroup = _commands("preset", "presets", "presets")
RegistryGroup = _commands("registry", "registries", "registries of images")
