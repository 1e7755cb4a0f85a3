"""The options of a resource group: one parser for the API, the command and the scheduler's snapshot.

What is stored is what was written, once it passed: a text such as ``"7d"`` stays readable. Every option
is optional; the defaults are the scheduler's own (``GroupPolicy``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from spawner.scheduler.model import DeviceRules, GroupPolicy, PreemptionRules
from spawner.scheduler.policies import Policies, PolicyError
from spawner.scheduler.slots import SLOT_NAME, parse_amount
from spawner.sessions.durations import seconds_of
from spawner.sessions.kinds import TYPES, USUAL_TYPES
from spawner.sessions.losses import Rules, read_rules

PROFILE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_SHOWN = 80


class OptionsError(PolicyError):
    """Options that cannot be used; ``errors`` has a sentence for each wrong one."""

    def __init__(self, group: str, errors: Mapping[str, str]) -> None:
        told = "; ".join(f"{name}: {sentence}" for name, sentence in errors.items())
        super().__init__(f"options of resource group {group!r}: {told}")
        self.errors = dict(errors)


@dataclass(frozen=True, slots=True)
class GroupOptions:
    """The checked options: what the scheduler takes, and what concerns the rest."""

    policy: GroupPolicy
    default_slots: Mapping[str, int] = field(default_factory=dict)
    """Base units for slots that a request leaves out."""
    shared_memory: int | None = None
    """Bytes for requests that say nothing."""
    session_types: tuple[str, ...] = USUAL_TYPES
    allow_pull: bool = False
    default_image: str | None = None
    seccomp: str | None = None
    """Seccomp profile of all containers; the one of an image is combined with it, the strictest wins."""
    lost_after: Rules | None = None
    """What becomes of sessions of a lost node, by their type; None: they wait."""
    pending_timeout: float | None = None
    """Seconds after which a session that still waits is cancelled; None: never."""


def read_options(name: str, given: Mapping[str, Any], policies: Policies) -> GroupOptions:
    """Check the options ``given`` of group ``name``. Raises ``OptionsError`` with all that is wrong."""
    reader = _Reader(given)
    default = GroupPolicy(name)
    policy = GroupPolicy(
        name,
        sequencer=reader.get("sequencer", _one_of(policies.sequencers), default.sequencer),
        selector=reader.get("selector", _one_of(policies.selectors), default.selector),
        slot_priority=tuple(reader.get("slot_priority", _slot_names, default.slot_priority)),
        devices=reader.get("devices", _devices, default.devices),
        served_slots=reader.get("served_slots", _slot_set, default.served_slots),
        required_slots=reader.get("required_slots", _slot_set, default.required_slots),
        weights=reader.get("weights", _numbers, default.weights),
        slot_weights=reader.get("slot_weights", _slot_numbers, default.slot_weights),
        half_life=reader.get("half_life", _positive_seconds, default.half_life),
        ageing=reader.get("ageing", _positive_seconds, default.ageing),
        preemption=reader.get("preemption", _preemption, default.preemption),
        rise=reader.get("rise", _seconds_or_never, default.rise),
    )
    options = GroupOptions(
        policy,
        default_slots=reader.get("default_slots", _amounts, {}),
        shared_memory=reader.get("shmem", lambda value: parse_amount("mem", value), None),
        session_types=tuple(reader.get("allowed_session_types", _session_types, USUAL_TYPES)),
        allow_pull=reader.get("allow_pull", _flag, False),
        default_image=reader.get("default_image", _text, None),
        seccomp=reader.get("seccomp", seccomp_profile, None),
        lost_after=reader.get("lost_after", read_rules, None),
        pending_timeout=reader.get("pending_timeout", _positive_seconds, None),
    )
    reader.finish(name)
    return options


class _Reader:
    """Takes options out of a mapping and gathers what is wrong with them."""

    def __init__(self, given: Mapping[str, Any], prefix: str = "") -> None:
        self._given, self._prefix = given, prefix
        self._known: list[str] = []
        self.errors: dict[str, str] = {}

    def get(self, name: str, parse: Callable[[Any], Any], default: Any) -> Any:
        """The parsed option, or ``default`` when it is absent, null or wrong."""
        self._known.append(name)
        value = self._given.get(name)
        if value is None:
            return default
        try:
            return parse(value)
        except OptionsError as error:
            self.errors |= {f"{name}.{inner}": text for inner, text in error.errors.items()}
        except ValueError as error:
            self.errors[name] = str(error)
        return default

    def finish(self, group: str) -> None:
        """Raise ``OptionsError`` if anything was wrong or unknown."""
        for name in self._given:
            if name not in self._known:
                known = ", ".join(sorted(self._known))
                self.errors[str(name)[:_SHOWN]] = f"unknown: known are {known}"
        if self.errors:
            raise OptionsError(group, self.errors)


def _one_of(names: Iterable[str]) -> Callable[[Any], Any]:
    def parse(value: Any) -> Any:
        known = sorted(names)
        if value not in known:
            raise ValueError(f"{str(value)[:_SHOWN]!r}: one of {', '.join(known)}")
        return value

    return parse


def _nested(value: Any) -> _Reader:
    if not isinstance(value, Mapping):
        raise ValueError(f"{str(value)[:_SHOWN]!r}: an object")
    return _Reader(value)


def _devices(value: Any) -> DeviceRules:
    reader, default = _nested(value), DeviceRules()
    rules = DeviceRules(
        fill=reader.get("fill", _one_of(("fill", "evenly")), default.fill),
        unfragmented=reader.get("unfragmented", _flag, default.unfragmented),
        numa=reader.get("numa", _one_of(("none", "prefer", "require")), default.numa),
    )
    reader.finish("")
    return rules


def _preemption(value: Any) -> PreemptionRules | None:
    reader, default = _nested(value), PreemptionRules()
    orders = ("oldest", "newest", "fewest-sessions", "smallest-resources")
    enabled = reader.get("enabled", _flag, True)
    rules = PreemptionRules(
        order=reader.get("order", _one_of(orders), default.order),
        action=reader.get("action", _one_of(("terminate", "requeue")), default.action),
        minimum_run_time=reader.get("minimum_run_time", seconds_of, default.minimum_run_time),
        scope=reader.get("scope", _one_of(("user", "project", "domain", "group")), default.scope),
    )
    reader.finish("")
    return rules if enabled else None


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{str(value)[:_SHOWN]!r}: true or false")
    return value


def seccomp_profile(value: object) -> str:
    """The name of a seccomp profile."""
    if not isinstance(value, str) or not PROFILE.fullmatch(value):
        raise ValueError(f"{str(value)[:80]!r}: default, strict, or the name of an agent's profile")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 255:
        raise ValueError(f"{str(value)[:_SHOWN]!r}: a text of at most 255 characters")
    return value


def _positive_seconds(value: Any) -> float:
    seconds = seconds_of(value)
    if not seconds:
        raise ValueError("0: longer than that")
    return seconds


def _seconds_or_never(value: Any) -> float | None:
    return None if value == "never" else _positive_seconds(value)


def _slot_name(value: Any) -> str:
    if not isinstance(value, str) or not SLOT_NAME.fullmatch(value):
        raise ValueError(f"{str(value)[:_SHOWN]!r} is not the name of a slot, such as cpu")
    return value


def _slot_names(value: Any) -> list[str]:
    if not isinstance(value, list) or len(set(map(str, value))) != len(value):
        raise ValueError(f"{str(value)[:_SHOWN]!r}: a list of different slots or families")
    return [_slot_name(each) for each in value]


def _slot_set(value: Any) -> frozenset[str]:
    return frozenset(_slot_names(value))


def _session_types(value: Any) -> list[str]:
    if not isinstance(value, list) or not value or not set(map(str, value)) <= set(TYPES):
        raise ValueError(f"{str(value)[:_SHOWN]!r}: a list of {', '.join(TYPES)}")
    return value


def _numbers(value: Any) -> dict[str, float]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{str(value)[:_SHOWN]!r}: an object of numbers")
    for name, number in value.items():
        plain = isinstance(number, int | float) and not isinstance(number, bool)
        if not plain or not 0 < number < 1e9:
            raise ValueError(f"{name}: {str(number)[:_SHOWN]!r} is not a number above 0")
    return {str(name): float(number) for name, number in value.items()}


def _slot_numbers(value: Any) -> dict[str, float]:
    return {_slot_name(slot): number for slot, number in _numbers(value).items()}


def _amounts(value: Any) -> dict[str, int]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{str(value)[:_SHOWN]!r}: an object of amounts by slot")
    return {_slot_name(slot): parse_amount(slot, amount) for slot, amount in value.items()}
