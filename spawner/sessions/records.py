"""The records that administrators look after: their fields, what each accepts, and how it is shown.

One description serves the API, the command and the tests.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from authenticator.identity import DEFAULT, STATUSES, email_error, username_error
from authenticator.principals import Role
from authenticator.tables import (
    DomainRow,
    KeyPairPolicyRow,
    ProjectPolicyRow,
    ProjectRow,
    UserPolicyRow,
    UserRow,
)
from spawner.scheduler.policies import Policies
from spawner.scheduler.slots import SLOT_NAME, format_amount, parse_amount
from spawner.sessions.durations import seconds_of
from spawner.sessions.groups import read_options, seccomp_profile
from spawner.sessions.idleness import read_checks
from spawner.sessions.tables import PresetRow, RegistryRow, ResourceGroupRow
from store.base import Base

NAME = re.compile(r"^[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?$")
REGISTRY_HOST = re.compile(
    r"(?=.{3,255}$)(?:localhost|[a-z0-9-]+(?:\.[a-z0-9-]+)+)(?::\d{1,5})?|localhost:\d{1,5}"
)
_SHOWN = 80

Parse = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Field:
    """One field: ``parse`` checks a value (``ValueError`` with a sentence), ``show`` makes it plain."""

    parse: Parse
    help: str
    default: Any = None
    show: Callable[[Any], Any] = lambda value: value
    fixed: bool = False
    """It can be given only when the record is made."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of record. ``plural`` is its name in paths, ``word`` in sentences and commands."""

    plural: str
    word: str
    row: type[Base]
    fields: Mapping[str, Field] = field(default_factory=dict)
    heirs: str = ""
    """Who gets, when new, the record called ``default``, so that this one stays."""
    by_id: bool = False
    """Its key is an id; ``name`` is unique within its domain only."""
    holders: type[UserRow | ProjectRow] | None = None
    """Whose rows name it as their ``resource_policy``."""


def name(value: Any) -> str:
    """The name of a record."""
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise ValueError(
            f"{str(value)[:_SHOWN]!r}: 1 to 64 letters, digits, '.', '_' and '-', beginning and"
            " ending with a letter or digit"
        )
    return value


def registry(value: Any) -> str:
    """The host of a registry as it begins the names of its images."""
    if not isinstance(value, str) or not REGISTRY_HOST.fullmatch(value):
        raise ValueError(
            f"{str(value)[:_SHOWN]!r}: a host with a dot or a port, such as registry.example.org:5000"
        )
    return value


def text(value: Any) -> str:
    """Free text."""
    if not isinstance(value, str) or len(value) > 1000:
        raise ValueError(f"{str(value)[:_SHOWN]!r}: a text of at most 1000 characters")
    return value


def one_of(*allowed: str) -> Parse:
    """One of a few words."""

    def parse(value: Any) -> str:
        if value not in allowed:
            raise ValueError(f"{str(value)[:_SHOWN]!r}: one of {', '.join(allowed)}")
        return str(value)

    return parse


def _username(value: Any) -> str:
    error = username_error(value) if isinstance(value, str) else f"{str(value)[:_SHOWN]!r}: a text"
    if error is not None:
        raise ValueError(error)
    return str(value)


def _email(value: Any) -> str:
    error = email_error(value) if isinstance(value, str) else f"{str(value)[:_SHOWN]!r}: a text"
    if error is not None:
        raise ValueError(error)
    return str(value)


def flag(value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ValueError(f"{str(value)[:_SHOWN]!r}: true or false")
    return value


def whole(least: int, most: int = 2**31 - 1) -> Parse:
    """Whole numbers from ``least`` to ``most``."""

    def parse(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            bound = f"from {least} to {most}" if most < 2**31 - 1 else f"of {least} or more"
            raise ValueError(f"{str(value)[:_SHOWN]!r}: a whole number {bound}")
        return value

    return parse


def or_null(parse: Parse) -> Parse:
    """What ``parse`` takes, or null."""

    def either(value: Any) -> Any:
        return None if value is None else parse(value)

    return either


def seconds(value: Any) -> int:
    """A duration in whole seconds."""
    return int(seconds_of(value))


def amounts(value: Any) -> dict[str, int]:
    """Base units by slot."""
    if not isinstance(value, Mapping):
        raise ValueError(f'{str(value)[:_SHOWN]!r}: an object such as {{"cpu": 4, "mem": "8g"}}')
    parsed: dict[str, int] = {}
    for slot, amount in value.items():
        if not isinstance(slot, str) or not SLOT_NAME.fullmatch(slot):
            raise ValueError(f"{str(slot)[:_SHOWN]!r} is not the name of a slot, such as cpu")
        parsed[slot] = parse_amount(slot, amount)
    return parsed


def _some_amounts(value: Any) -> dict[str, int]:
    parsed = amounts(value)
    if not any(parsed.values()):
        raise ValueError('it asks for nothing: give amounts such as {"cpu": 1, "mem": "1g"}')
    return parsed


def amounts_text(value: Any) -> Any:
    """Amounts as people write them; null stays null (unlimited)."""
    if value is None:
        return None
    return {slot: format_amount(slot, int(amount)) for slot, amount in sorted(value.items())}


def idle_checks(value: Any) -> dict[str, Any]:
    """Checks of idle sessions, kept as written once they pass."""
    if not isinstance(value, Mapping):
        raise ValueError(f'{str(value)[:_SHOWN]!r}: an object such as {{"warn_before": "5m"}}')
    kept = {str(each): given for each, given in value.items()}
    read_checks(kept)
    return kept


def _memory(value: Any) -> int:
    return parse_amount("mem", value)


def _memory_text(value: Any) -> Any:
    return None if value is None else format_amount("mem", int(value))


def group_options(policies: Policies) -> Parse:
    """Options of a resource group, kept as written once they pass."""

    def parse(value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise ValueError(f"{str(value)[:_SHOWN]!r}: an object")
        kept = {str(each): given for each, given in value.items() if given is not None}
        read_options("", kept, policies)
        return kept

    return parse


NAMED = Field(name, "Name; it stays.", fixed=True)
ACTIVE = Field(flag, "Whether it may be used.", True)
TEXT = Field(text, "What it is for.", "")
SLOTS = Field(
    or_null(amounts),
    "Amounts by slot; null, or a slot left out: unlimited; 0: nothing.",
    show=amounts_text,
)


def weight(value: Any) -> float:
    """A share against others."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    if not plain or not 0 < value < 1e9:
        raise ValueError(f"{str(value)[:_SHOWN]!r}: a number above 0")
    return float(value)


WEIGHT = Field(weight, "Share in fair-share, against others beside it.", 1.0)
COUNT = Field(or_null(whole(0)), "Sessions that may run at once; null: unlimited.")
LIFE = Field(or_null(seconds), "Duration; null: unlimited.")


LIMITS = {"total_resource_slots": SLOTS, "max_concurrent_sessions": COUNT}
DOMAIN = {"name": NAMED, "description": TEXT, "is_active": ACTIVE, "weight": WEIGHT, **LIMITS}
PROJECT = {
    "name": NAMED,
    "domain": Field(name, "Its domain.", DEFAULT, fixed=True),
    "description": TEXT,
    "is_active": ACTIVE,
    "weight": WEIGHT,
    **LIMITS,
    "resource_policy": Field(name, "Its project policy, whose limits hold besides.", DEFAULT),
}
QUEUE = {
    "max_pending_sessions": Field(or_null(whole(0)), "Sessions that may wait; null: unlimited."),
    "max_pending_resource_slots": SLOTS,
}
POLICY = {
    "name": NAMED,
    **LIMITS,
    **QUEUE,
    "max_containers_per_session": Field(whole(1, 1000), "Containers.", 1),
    "max_session_lifetime": LIFE,
    "idle_timeout": Field(or_null(seconds), "Without a connection; null or 0: unlimited."),
    "idle_checks": Field(or_null(idle_checks), "Utilisation, warnings and extensions."),
    "max_priority": Field(whole(0, 100), "Highest priority.", 10),
    "seccomp": Field(or_null(seccomp_profile), "Seccomp profile; null: the group's."),
}
PROJECT_POLICY = {
    "name": NAMED,
    **LIMITS,
    **QUEUE,
    "max_containers_per_session": Field(or_null(whole(1, 1000)), "Containers; null: unlimited."),
}
USER_POLICY = {
    **PROJECT_POLICY,
    "max_vfolder_count": Field(or_null(whole(0)), "Folders; null: unlimited."),
    "max_customized_image_count": Field(
        or_null(whole(0)), "Images made of sessions; null: unlimited.", 3
    ),
}
PRESET = {
    "name": NAMED,
    "resource_slots": Field(_some_amounts, "Amounts by slot.", show=amounts_text),
    "shared_memory": Field(
        or_null(_memory), "Shared memory, part of the memory.", show=_memory_text
    ),
    "resource_group": Field(or_null(name), "The only group it is offered in."),
    "rank": Field(whole(0), "Place in lists.", 0),
}
IDENTITY = {
    "name": Field(_username, "Log-in name; it stays.", fixed=True),
    "password": Field(
        or_null(text), "Generated when left out; null: log-in happens elsewhere.", fixed=True
    ),
    "email": Field(_email, "NAME@localhost when left out."),
    "full_name": Field(text, "The person's name.", ""),
    "role": Field(one_of(*Role), "What the user may do.", Role.USER.value),
    "domain": Field(name, "The user's domain.", DEFAULT, fixed=True),
    "project": Field(name, "The first project, of that domain.", DEFAULT, fixed=True),
}
"""What ``IdentityService.create_user`` makes a user of."""
USER = {
    **IDENTITY,
    "status": Field(one_of(*STATUSES), "Whether the user may log in.", "active"),
    **LIMITS,
    "weight": WEIGHT,
    "resource_policy": Field(name, "The user policy, whose limits hold besides.", DEFAULT),
    "policy": Field(name, "Policy of all key pairs of the user.", DEFAULT),
}

REGISTRY = {
    "name": Field(registry, "Its host, with the port if there is one.", fixed=True),
    "username": Field(text, "Who pulls.", ""),
    "password": Field(text, "It is never shown.", "", show=lambda value: "(set)" if value else ""),
    "is_active": ACTIVE,
}


def kinds(policies: Policies) -> dict[str, Kind]:
    """All kinds by their names in paths; ``policies`` are those that resource groups may name."""
    group = {
        "name": NAMED,
        "description": TEXT,
        "is_active": ACTIVE,
        "is_default": Field(flag, "Whether requests without a group go here.", False),
        "options": Field(group_options(policies), "How it schedules.", {}),
    }
    found = (
        Kind("domains", "domain", DomainRow, DOMAIN, "users"),
        Kind("projects", "project", ProjectRow, PROJECT, "users", by_id=True),
        Kind("keypair-policies", "policy", KeyPairPolicyRow, POLICY, "key pairs"),
        Kind("user-policies", "user policy", UserPolicyRow, USER_POLICY, "users", holders=UserRow),
        Kind(
            "project-policies",
            "project policy",
            ProjectPolicyRow,
            PROJECT_POLICY,
            holders=ProjectRow,
        ),
        Kind("resource-groups", "resource group", ResourceGroupRow, group),
        Kind("presets", "preset", PresetRow, PRESET),
        Kind("registries", "registry", RegistryRow, REGISTRY),
        Kind("users", "user", UserRow, USER),
    )
    return {kind.plural: kind for kind in found}
