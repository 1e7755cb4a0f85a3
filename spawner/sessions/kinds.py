"""The types of sessions, and the fields of a request that depend on the type.

``interactive``: people work in it. ``batch``: a command that succeeds or fails. ``inference``: a service
that answers on a port. ``system``: a tool of the administrators, outside of everybody's limits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from authenticator.problems import Forbidden
from spawner.agent.protocol import HealthCheck
from spawner.sessions.durations import moment, seconds_of
from spawner.sessions.retries import read_policy

if TYPE_CHECKING:
    from spawner.sessions.creation import Checker

INTERACTIVE, BATCH, INFERENCE, SYSTEM = "interactive", "batch", "inference", "system"
TYPES = (INTERACTIVE, BATCH, INFERENCE, SYSTEM)
USUAL_TYPES = (INTERACTIVE, BATCH, INFERENCE)
"""Types that a resource group takes when it says nothing."""
RETRIED = (BATCH, INFERENCE)
WITH_COMMAND = (BATCH, INFERENCE, SYSTEM)
MAX_COMMAND = 64 * 1024
SERVICE = "service"
SERVICE_FIELDS = ("port", "protocol", "start_timeout", "health_check")
PROTOCOLS = ("http", "tcp")
_SHOWN = 80
_OTHER_NAMES = {"max_retries": "max_failures", "max_wait_time": "timeout",
                "expected_status_code": "expected_status"}  # fmt: skip
"""Names that Backend.AI's model definition has for fields of a health check."""


def check_kind(checker: Checker) -> None:
    """Command, start time, retries and service of a request; errors go to ``checker``.

    Raises ``Forbidden`` for a system session of somebody who is no superadmin.
    """
    new = checker.new
    if new.type == SYSTEM and not checker.actor.is_superadmin:
        raise Forbidden("only administrators may start system sessions")
    _command(checker)
    _start(checker)
    _retries(checker)
    _service(checker)


def _command(checker: Checker) -> None:
    new, draft = checker.new, checker.draft
    command = (new.startup_command or "").strip()
    if len(command) > MAX_COMMAND:
        checker.fault("startupCommand", f"{len(command)} characters: at most {MAX_COMMAND}")
    if new.type == BATCH and not command:
        checker.fault("startupCommand", "a batch session needs a command")
    if new.type not in WITH_COMMAND and command:
        told = f"only {', '.join(WITH_COMMAND)} sessions have a startup command"
        checker.fault("startupCommand", told)
    elif command:
        draft.command = ["sh", "-c", command]
    elif new.hub is not None:
        draft.command = list(new.hub.command)


def _start(checker: Checker) -> None:
    text = checker.new.starts_at
    if text is None:
        return
    if checker.new.type != BATCH:
        checker.fault("starts_at", "only batch sessions can start later")
        return
    checker.draft.starts_at = moment(text, checker.now)
    if checker.draft.starts_at is None:
        checker.fault("starts_at", f'{text[:_SHOWN]!r}: an ISO 8601 time or a duration as "90s"')


def _retries(checker: Checker) -> None:
    given = checker.new.retry_policy
    if given is None:
        return
    if checker.new.type not in RETRIED:
        checker.fault("retryPolicy", f"only {' and '.join(RETRIED)} sessions are tried again")
        return
    errors: dict[str, str] = {}
    policy = read_policy(given, errors)
    for name, sentence in errors.items():
        checker.fault(f"retryPolicy.{name}", sentence)
    if policy is not None:
        checker.draft.recovery = {"policy": policy.row()}


def _service(checker: Checker) -> None:
    given = checker.new.service
    if checker.new.type != INFERENCE:
        if given is not None:
            checker.fault(SERVICE, "only inference sessions have one")
        return
    given = given or {}
    for name in given:
        if name not in SERVICE_FIELDS:
            allowed = ", ".join(SERVICE_FIELDS)
            checker.fault(f"{SERVICE}.{str(name)[:_SHOWN]}", f"unknown: one of {allowed}")
    port, protocol = given.get("port"), given.get("protocol", "http")
    if port is None and "protocol" in given:
        checker.fault(f"{SERVICE}.port", "a protocol needs its port")
    elif port is not None and not _is_port(port):
        checker.fault(f"{SERVICE}.port", f"{str(port)[:_SHOWN]!r}: a number from 1 to 65535")
    if protocol not in PROTOCOLS:
        allowed = ", ".join(PROTOCOLS)
        checker.fault(f"{SERVICE}.protocol", f"{str(protocol)[:_SHOWN]!r}: one of {allowed}")
    elif _is_port(port):
        checker.draft.service_port = {
            "name": SERVICE, "container_port": port, "protocol": protocol,
        }  # fmt: skip
    check = given.get("health_check")
    patience = {"start_timeout": given.get("start_timeout")}
    if isinstance(check, Mapping):
        check = dict(check)
        patience["health_check.initial_delay"] = check.pop("initial_delay", None)
        check = check if _enabled(checker, check.pop("enable", True)) else None
    for name, value in patience.items():
        if value is not None:
            checker.draft.start_timeout = _number(checker, name, value, seconds_of, 1.0, 86400.0)
            break
    if check is not None:
        if protocol != "http":
            checker.fault(f"{SERVICE}.health_check", "only services of protocol http have one")
        checker.draft.health = _health(checker, check)


def _enabled(checker: Checker, value: Any) -> bool:
    if not isinstance(value, bool):
        told = f"{str(value)[:_SHOWN]!r}: true or false"
        checker.fault(f"{SERVICE}.health_check.enable", told)
    return value is True


def _health(checker: Checker, given: Any) -> dict[str, Any] | None:
    where = "health_check"
    if not isinstance(given, Mapping):
        checker.fault(f"{SERVICE}.{where}", f"{str(given)[:_SHOWN]!r}: an object")
        return None
    named = {_OTHER_NAMES.get(str(name), str(name)): value for name, value in given.items()}
    default = HealthCheck()
    known = [*default.__struct_fields__, *_OTHER_NAMES, "initial_delay", "enable"]
    for name in named:
        if name not in default.__struct_fields__:
            checker.fault(
                f"{SERVICE}.{where}.{name[:_SHOWN]}", f"unknown: one of {', '.join(known)}"
            )
    path = named.get("path", default.path)
    if not isinstance(path, str) or not _is_path(path):
        told = f"{str(path)[:_SHOWN]!r}: a path such as /health, of at most 1000 plain characters"
        checker.fault(f"{SERVICE}.{where}.path", told)
        path = default.path

    def number(name: str, parse: Callable[[Any], float], least: float, most: float) -> float:
        value = named.get(name, getattr(default, name))
        return _number(checker, f"{where}.{name}", value, parse, least, most)

    found: dict[str, Any] = msgspec.to_builtins(
        HealthCheck(
            path,
            number("interval", seconds_of, 0.5, 3600.0),
            number("timeout", seconds_of, 0.1, 300.0),
            int(number("max_failures", _whole, 1, 1000)),
            int(number("expected_status", _whole, 100, 599)),
        )
    )
    return found


def _number(
    checker: Checker,
    name: str,
    value: Any,
    parse: Callable[[Any], float],
    least: float,
    most: float,
) -> float:
    try:
        found = parse(value)
    except ValueError as error:
        checker.fault(f"{SERVICE}.{name}", str(error))
        return least
    if not least <= found <= most:
        checker.fault(f"{SERVICE}.{name}", f"{value}: from {least:g} to {most:g}")
    return found


def _whole(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{str(value)[:_SHOWN]!r}: a whole number")
    return value


def _is_port(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 65536


def _is_path(text: str) -> bool:
    plain = all("!" <= character <= "~" for character in text)
    return text.startswith("/") and len(text) <= 1000 and plain
