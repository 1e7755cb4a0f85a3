"""Parameters of endpoints: declared once as a dataclass, read and checked field by field, described for OpenAPI.

A shape is a frozen dataclass whose fields are made with ``param``. ``read`` gathers the errors of *all* fields.
A null counts as absent, unknown keys are ignored, and texts of a query string become numbers and booleans.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from authenticator.problems import InvalidParameters

T = TypeVar("T")

SHOWN = 80
MAX_TEXT = 64 * 1024
MAX_ITEMS = 1000
MAX_NUMBER = 2**53
"""Integers beyond it are not the same number in every JSON reader."""
_TRUE = frozenset({"true", "1", "yes", "on"})
_FALSE = frozenset({"false", "0", "no", "off"})
_JSON_TYPES: dict[object, str] = {str: "string", int: "integer", float: "number", bool: "boolean"}


@dataclass(frozen=True, slots=True)
class Rule:
    """What a field accepts besides its type, and what it is for."""

    help: str
    names: tuple[str, ...] = ()
    """Names on the wire, the preferred one first; empty: the name of the field."""
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    max_length: int = MAX_TEXT


@dataclass(frozen=True, slots=True)
class Field:
    """A declared field of a shape."""

    name: str
    type: Any
    rule: Rule
    required: bool
    default: Any

    @property
    def names(self) -> tuple[str, ...]:
        """Names on the wire."""
        return self.rule.names or (self.name,)


def param(
    help: str,
    *,
    default: Any = dataclasses.MISSING,
    factory: Callable[[], Any] | None = None,
    names: Sequence[str] = (),
    choices: Sequence[str] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    max_length: int = MAX_TEXT,
) -> Any:
    """Declare a field; without ``default`` and ``factory`` it is required."""
    rule = Rule(help, tuple(names), tuple(choices), minimum, maximum, max_length)
    if factory is not None:
        return dataclasses.field(default_factory=factory, metadata={"rule": rule})
    return dataclasses.field(default=default, metadata={"rule": rule})


@cache
def fields_of(shape: Any) -> tuple[Field, ...]:
    """The declared fields of a shape, in order."""
    hints = typing.get_type_hints(shape)
    found: list[Field] = []
    for each in dataclasses.fields(shape):
        default: Any = each.default
        if each.default_factory is not dataclasses.MISSING:
            default = each.default_factory()
        required = default is dataclasses.MISSING
        found.append(Field(each.name, hints[each.name], each.metadata["rule"], required, default))
    return tuple(found)


def read(shape: type[T], values: Mapping[str, object]) -> T:
    """An instance of ``shape``. Raises ``InvalidParameters`` naming every wrong field."""
    errors: dict[str, str] = {}
    result = _shape(shape, values, "", errors)
    if errors:
        raise InvalidParameters(errors)
    return typing.cast(T, result)


def _shape(shape: Any, values: Mapping[str, object], prefix: str, errors: dict[str, str]) -> Any:
    """An instance, or None after an error."""
    given: dict[str, Any] = {}
    before = len(errors)
    for field in fields_of(shape):
        name = next((n for n in field.names if values.get(n) is not None), None)
        if name is not None:
            given[field.name] = _convert(
                field.type, values[name], prefix + name, field.rule, errors
            )
        elif field.required:
            errors[prefix + field.names[0]] = "is required"
    return shape(**given) if len(errors) == before else None


def _convert(kind: Any, value: object, where: str, rule: Rule, errors: dict[str, str]) -> Any:
    kind = _plain(kind)
    try:
        if dataclasses.is_dataclass(kind):
            if not isinstance(value, Mapping):
                raise ValueError("give an object")
            return _shape(kind, value, where + ".", errors)
        origin, inner = typing.get_origin(kind), typing.get_args(kind)
        if origin is list:
            return _items(inner[0], value, where, rule, errors)
        if origin is dict:
            return _entries(inner[1], value, where, rule, errors)
        return _scalar(kind, value, rule)
    except ValueError as error:
        errors[where] = f"{shown(value)}: {error}"
        return None


def _items(kind: Any, value: object, where: str, rule: Rule, errors: dict[str, str]) -> list[Any]:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list):
        raise ValueError("give a list")
    if len(items) > MAX_ITEMS:
        raise ValueError(f"at most {MAX_ITEMS} items")
    return [_convert(kind, v, f"{where}.{i}", rule, errors) for i, v in enumerate(items)]


def _entries(
    kind: Any, value: object, where: str, rule: Rule, errors: dict[str, str]
) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError("give an object")
    if len(value) > MAX_ITEMS:
        raise ValueError(f"at most {MAX_ITEMS} entries")
    return {
        key: _convert(kind, each, f"{where}.{key[:SHOWN]}", rule, errors)
        for key, each in value.items()
        if each is not None
    }


def _scalar(kind: Any, value: object, rule: Rule) -> Any:
    if kind is object:
        return value
    if kind is str:
        return _text(value, rule)
    if kind is bool:
        return _boolean(value)
    number = _number(value, whole=kind is int)
    least = -MAX_NUMBER if rule.minimum is None else rule.minimum
    most = MAX_NUMBER if rule.maximum is None else rule.maximum
    if not least <= number <= most:
        raise ValueError(f"give a number from {least:g} to {most:g}")
    return number


def _text(value: object, rule: Rule) -> str:
    if not isinstance(value, str):
        raise ValueError("give text")
    if len(value) > rule.max_length:
        raise ValueError(f"at most {rule.max_length} characters")
    if rule.choices and value not in rule.choices:
        raise ValueError(f"one of {', '.join(rule.choices)}")
    return value


def _boolean(value: object) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).lower() if isinstance(value, str | int) else ""
    if word in _TRUE or word in _FALSE:
        return word in _TRUE
    raise ValueError("give true or false")


def _number(value: object, *, whole: bool) -> float:
    """A finite number; ``whole`` wants one without fraction and gives an int."""
    kind = "a whole number" if whole else "a number"
    if isinstance(value, bool) or not isinstance(value, str | int | float) or len(str(value)) > 40:
        raise ValueError(f"give {kind}")
    try:
        number = int(value) if isinstance(value, str) and whole else float(value)
    except ValueError:
        raise ValueError(f"give {kind}") from None
    if not math.isfinite(number) or (whole and number != int(number)):
        raise ValueError(f"give {kind}")
    return int(number) if whole else number


def _plain(kind: Any) -> Any:
    """``X`` of ``X | None``: nulls never get here."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return next(each for each in typing.get_args(kind) if each is not type(None))
    return kind


def shown(value: object) -> str:
    """A value as error messages show it, cut short."""
    text = repr(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


def schema(shape: Any) -> dict[str, Any]:
    """JSON schema of a shape, with the preferred name of each field."""
    fields = fields_of(shape)
    answer: dict[str, Any] = {
        "type": "object",
        "properties": {field.names[0]: field_schema(field) for field in fields},
    }
    required = [field.names[0] for field in fields if field.required]
    return {**answer, "required": required} if required else answer


def field_schema(field: Field) -> dict[str, Any]:
    """JSON schema of one field, with its help, bounds and default."""
    rule = field.rule
    aliases = f" Also accepted as {', '.join(field.names[1:])}." if len(field.names) > 1 else ""
    answer = {**_type_schema(field.type, rule), "description": rule.help + aliases}
    if isinstance(field.default, str | int | float | bool):
        answer["default"] = field.default
    return answer


def _type_schema(kind: Any, rule: Rule) -> dict[str, Any]:
    kind = _plain(kind)
    if dataclasses.is_dataclass(kind):
        return schema(kind)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is list:
        return {"type": "array", "items": _type_schema(inner[0], rule)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _type_schema(inner[1], rule)}
    if kind is object:
        return {}
    answer: dict[str, Any] = {"type": _JSON_TYPES[kind]}
    if kind is str:
        if rule.choices:
            answer["enum"] = list(rule.choices)
        answer["maxLength"] = rule.max_length
    elif kind in (int, float):
        if rule.minimum is not None:
            answer["minimum"] = rule.minimum
        if rule.maximum is not None:
            answer["maximum"] = rule.maximum
    return answer
