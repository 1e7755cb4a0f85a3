"""What users ask for at a spawn: form fields and ``user_options`` in, a session request out. Pure.

``user_options`` is the same object whether it comes from the form or from JupyterHub's REST API, which
passes anything a client sends: ``parse`` is where it is made safe. Keys, all optional::

    {"image": "name", "resource_group": "name", "preset": "name",
     "slots": {"cpu": "2", "mem": "4g", "cuda.device": "1"}, "shmem": "64m"}

Slots given beside a preset replace those of the preset.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from authenticator.problems import InvalidParameters
from spawner.scheduler.slots import SLOT_NAME, format_amount, human_amount, parse_amount

KEYS = ("image", "resource_group", "preset", "slots", "shmem")
MAX_SLOTS = 16
DEFAULT_IMAGE = "perijove/jupyterlab:latest"
"""What `perijove image build` makes: the default where it is offered and nothing else is configured."""
CUSTOM = "custom"
"""Value of the form's ``preset`` field that says: use the amounts below."""
AGAIN = "again"
"""The form's only field while the manager is away: start with what was chosen the last time."""
SLOT_FIELD = "slot."
AGENT_TOKENS = ("home", "bind_host", "bind_port", "session_address")
"""In braces, in a session's command or environment, these are filled in where the session runs."""

_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,254}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_AMOUNT_LENGTH = 32


@dataclass(frozen=True, slots=True)
class Choice:
    """Checked ``user_options``: well-formed, though what it names need not exist. Amounts in base units."""

    image: str | None = None
    resource_group: str | None = None
    preset: str | None = None
    slots: Mapping[str, int] = field(default_factory=dict)
    shmem: int | None = None


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the hub's configuration lets users choose; empty means: no bound of its own.

    Without ``allowed_images``, the images that the manager offers may be chosen, and no others.
    """

    allowed_images: Sequence[str] = ()
    least: Mapping[str, int] = field(default_factory=dict)
    most: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Request:
    """Everything a session is asked for with; amounts in base units."""

    image: str
    resource_group: str | None
    slots: Mapping[str, int]
    shmem: int | None

    def check_body(self) -> dict[str, Any]:
        """Body of ``POST /internal/check``."""
        return {
            "image": self.image,
            "resource_group": self.resource_group,
            "slots": slots_text(self.slots),
            "shmem": None if self.shmem is None else str(self.shmem),
        }

    def session_body(
        self, name: str, environ: Mapping[str, str], extension: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Body of ``POST /session``; ``extension`` is its ``perijove`` object."""
        return {
            "name": name,
            "image": self.image,
            "type": "interactive",
            "enqueueOnly": True,
            "reuseIfExists": True,
            "config": {
                "resources": slots_text(self.slots),
                "resource_opts": {} if self.shmem is None else {"shmem": str(self.shmem)},
                "environ": dict(environ),
                "scalingGroup": self.resource_group,
            },
            "perijove": dict(extension),
        }


def hub_id(hub_secret: str) -> str:
    """Id of the hub that holds this secret, unless it is configured to have another."""
    digest = hashlib.sha256(b"perijove hub id:" + hub_secret.encode()).hexdigest()
    return f"hub-{digest[:12]}"


def session_name(hub_id: str, user: str, server: str) -> str:
    """Name of the session of a server: readable, unique per hub, user and server, 4 to 64 characters."""
    digest = hashlib.sha256(json.dumps([hub_id, user, server]).encode()).hexdigest()[:10]
    return f"{_slug(user, 'user', 24)}-{_slug(server, 'lab', 24)}-{digest}"


def _slug(text: str, default: str, limit: int) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:limit].strip("-") or default


def slots_text(slots: Mapping[str, int]) -> dict[str, str]:
    """Slots in the texts of the wire."""
    return {slot: format_amount(slot, amount) for slot, amount in slots.items()}


def sentence(text: str) -> str:
    """``text`` with a capital letter, as it stands alone on a page."""
    return text[:1].upper() + text[1:]


def seen_from_session(url: str) -> str:
    """``url`` with a loopback host replaced by the one at which a session reaches its own node."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if host != "localhost" and not host.startswith("127.") and host != "::1":
        return url
    port = "" if parts.port is None else f":{parts.port}"
    return urlunsplit(parts._replace(netloc="{session_address}" + port))


def parse(options: object) -> Choice:
    """Check the shape of ``user_options``. Raises ``InvalidParameters`` naming every wrong field."""
    if not isinstance(options, Mapping):
        raise InvalidParameters({"user_options": f"is {_shown(options)}: give an object"})
    errors: dict[str, str] = {}
    for key in list(options)[:MAX_SLOTS]:
        if key not in KEYS:
            errors[_shown(key)] = f"is not an option; there are {', '.join(KEYS)}"
    if len(options) > MAX_SLOTS:
        errors["user_options"] = f"has {len(options)} keys; there are only {', '.join(KEYS)}"
    choice = Choice(
        image=_text(options, "image", _IMAGE, errors),
        resource_group=_text(options, "resource_group", _NAME, errors),
        preset=_text(options, "preset", _NAME, errors),
        slots=_slots(options.get("slots"), errors),
        shmem=_amount("shmem", "mem", options.get("shmem"), errors),
    )
    if errors:
        raise InvalidParameters(errors)
    return choice


def _text(
    options: Mapping[Any, Any], key: str, pattern: re.Pattern[str], errors: dict[str, str]
) -> str | None:
    value = options.get(key)
    if value is None or value == "":
        return None
    if isinstance(value, str) and pattern.fullmatch(value):
        return value
    errors[key] = f"is {_shown(value)}: give a name such as those that the form offers"
    return None


def _slots(value: object, errors: dict[str, str]) -> dict[str, int]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        errors["slots"] = f'is {_shown(value)}: give an object such as {{"cpu": "2"}}'
        return {}
    if len(value) > MAX_SLOTS:
        errors["slots"] = f"has {len(value)} entries: at most {MAX_SLOTS} are allowed"
        return {}
    slots: dict[str, int] = {}
    for slot, text in value.items():
        if not isinstance(slot, str) or not SLOT_NAME.fullmatch(slot):
            errors["slots"] = f"has the key {_shown(slot)}: give a slot such as cpu or mem"
            continue
        amount = _amount(f"slots.{slot}", slot, text, errors)
        if amount is not None:
            slots[slot] = amount
    return slots


def _amount(name: str, slot: str, value: object, errors: dict[str, str]) -> int | None:
    if value is None or value == "":
        return None
    if isinstance(value, str) and len(value) > _AMOUNT_LENGTH:
        errors[name] = f"is {_shown(value)}: that is too long for an amount"
        return None
    try:
        return parse_amount(slot, value)
    except (ValueError, OverflowError) as error:
        sentence = str(error)
        errors[name] = sentence.removeprefix(f"{slot} ") if len(sentence) < 300 else "is no amount"
        return None


def _shown(value: object) -> str:
    """A value in an error message: its representation on one line, cut short."""
    if isinstance(value, Mapping | list | tuple | set):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 256:
        return "a very large number"
    text = ascii(value)
    return text if len(text) <= 60 else text[:56] + " ..."


def from_form(form: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """``user_options`` of a posted form (or of a ``/spawn?opt-...`` query).

    Fields: ``image``, ``resource_group``, ``preset`` (a name, or ``custom``: then the amounts count),
    ``cpu``, ``mem_gib``, and ``slot.NAME`` for further slots. Without ``preset``, amounts count as well.
    Raises ``InvalidParameters`` naming form fields.
    """
    errors: dict[str, str] = {}
    options: dict[str, Any] = {}
    slots: dict[str, str] = {}
    for name, values in form.items():
        if name == "_xsrf":
            continue
        value = values[-1].strip() if values and isinstance(values[-1], str) else ""
        if name in ("image", "resource_group", "preset"):
            if value:
                options[name] = value
        elif name in ("cpu", "mem_gib") or name.startswith(SLOT_FIELD):
            if value:
                slots[_slot_of(name)] = f"{value}g" if name == "mem_gib" else value
        else:
            errors[_shown(name)] = "is not a field of this form"
    if options.get("preset", CUSTOM) == CUSTOM:
        options.pop("preset", None)
        accelerators = {slot for slot in slots if slot not in ("cpu", "mem")}
        given = {s: t for s, t in slots.items() if s not in accelerators or t not in ("0", "0.0")}
        if given:
            options["slots"] = given
    try:
        parse(options)
    except InvalidParameters as problem:
        errors.update({form_field(name): reason for name, reason in problem.fields.items()})
    if errors:
        raise InvalidParameters(errors)
    return options


def _slot_of(field_name: str) -> str:
    return {"mem_gib": "mem"}.get(field_name, field_name.removeprefix(SLOT_FIELD))


def form_field(name: str) -> str:
    """The form field in which the option or slot called ``name`` is entered."""
    if name in (*KEYS, "mem_gib") or name.startswith(SLOT_FIELD):
        return name
    slot = name.removeprefix("config.resources.").removeprefix("slots.")
    return {"cpu": "cpu", "mem": "mem_gib"}.get(slot, SLOT_FIELD + slot)


def resolve(
    choice: Choice, offer: Mapping[str, Any], bounds: Bounds, image: str = "", group: str = ""
) -> Request:
    """Fill what ``choice`` leaves open from the manager's ``offer`` and hold it to ``bounds``.

    ``image`` and ``group`` are the hub's own defaults. Raises ``InvalidParameters`` naming options.
    """
    defaults = offer.get("defaults") or {}
    errors: dict[str, str] = {}
    chosen = choice.image or image or _allowed_default(defaults.get("image"), bounds)
    images = list(bounds.allowed_images) or [entry["name"] for entry in offer.get("images") or ()]
    if not chosen:
        errors["image"] = "is missing: there is no default image; choose one"
    elif choice.image is not None and chosen not in (*images, image):
        there = ", ".join(images) or "none"
        errors["image"] = f"is {_shown(chosen)}: the images to choose from are {there}"
    preset = choice.preset or defaults.get("preset")
    slots, shmem = _preset_slots(preset, offer, errors, named=choice.preset is not None)
    if choice.preset is None:
        slots = {slot: _clamped(slot, amount, bounds) for slot, amount in slots.items()}
        if choice.slots:
            slots = {slot: amount for slot, amount in slots.items() if slot in ("cpu", "mem")}
    slots.update(choice.slots)
    for slot, amount in (*bounds.most.items(), *bounds.least.items()):
        slots.setdefault(slot, amount)
    slots = {slot: n for slot, n in slots.items() if n or slot in ("cpu", "mem")}
    errors.update(_out_of_bounds(slots, bounds))
    if errors:
        raise InvalidParameters(errors)
    return Request(
        image=chosen,
        resource_group=choice.resource_group or group or defaults.get("resource_group"),
        slots=slots,
        shmem=choice.shmem if choice.shmem is not None else shmem,
    )


def too_big(request: Request, offer: Mapping[str, Any]) -> dict[str, str]:
    """Slots of which ``request`` wants more than the largest node of its group has, with a sentence each."""
    groups = [g for g in offer.get("groups") or () if request.resource_group in (None, g["name"])]
    wrong = {}
    for slot, amount in request.slots.items():
        offered = [g.get("largest", {}).get(slot) for g in groups]
        largest = max((parse_amount(slot, text) for text in offered if text), default=0)
        if amount > largest:
            most = human_amount(slot, largest)
            wrong[f"slots.{slot}"] = (
                f"The largest node offers {most}." if largest else "No node has any."
            )
    return wrong if groups else {}


def _allowed_default(image: str | None, bounds: Bounds) -> str:
    if not bounds.allowed_images or image in bounds.allowed_images:
        return image or ""
    return bounds.allowed_images[0]


def _preset_slots(
    name: str | None, offer: Mapping[str, Any], errors: dict[str, str], *, named: bool
) -> tuple[dict[str, int], int | None]:
    if name is None:
        return {}, None
    presets = {preset["name"]: preset for preset in offer.get("presets") or ()}
    preset = presets.get(name)
    if preset is None:
        if named:
            there = ", ".join(presets) or "none"
            errors["preset"] = f"is {_shown(name)}: the presets to choose from are {there}"
        return {}, None
    slots = {slot: parse_amount(slot, text) for slot, text in preset["slots"].items()}
    return slots, parse_amount("mem", preset.get("shmem") or "0") or None


def _clamped(slot: str, amount: int, bounds: Bounds) -> int:
    amount = max(amount, bounds.least.get(slot, amount))
    return min(amount, bounds.most.get(slot, amount))


def _out_of_bounds(slots: Mapping[str, int], bounds: Bounds) -> Iterable[tuple[str, str]]:
    for slot, amount in slots.items():
        if amount > bounds.most.get(slot, amount):
            most = human_amount(slot, bounds.most[slot])
            yield f"slots.{slot}", f"is {human_amount(slot, amount)}: at most {most} may be chosen"
        if amount < bounds.least.get(slot, amount):
            least = human_amount(slot, bounds.least[slot])
            yield f"slots.{slot}", f"is {human_amount(slot, amount)}: at least {least} is needed"
