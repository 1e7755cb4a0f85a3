"""What the spawn form shows, as plain data for its template. Pure but for one context variable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from authenticator.problems import InvalidParameters
from spawner.options import AGAIN, CUSTOM, SLOT_FIELD, Bounds, Choice, form_field, parse, sentence
from spawner.scheduler.slots import MICRO, human_amount, parse_amount

GIB = 1024**3
MAIN_SLOTS = ("cpu", "mem")
FALLBACK_MOST = {"cpu": 4 * MICRO, "mem": 8 * GIB}
"""Ends of the sliders while no node is connected."""


@dataclass(slots=True)
class Entered:
    """A posted form that may have to be shown again: its fields, and what is wrong with them."""

    fields: dict[str, Sequence[Any]]
    errors: dict[str, str] = field(default_factory=dict)

    def note(self, problems: Mapping[str, str]) -> None:
        """Keep what is wrong with options or fields, by form field."""
        self.errors.update({form_field(name): why for name, why in problems.items()})


entered: ContextVar[Entered | None] = ContextVar("perijove_spawn_form", default=None)
"""The form of the request being handled. JupyterHub renders a refused form with another spawner object."""


def view(
    offer: Mapping[str, Any] | None,
    bounds: Bounds,
    last: Any,
    posted: Entered | None,
    image: str = "",
    labels: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Everything the form's template needs.

    ``offer`` is the manager's (None: it is away); ``last`` the ``user_options`` of the last start, used for
    what is preselected unless a form was ``posted`` and refused. ``labels`` name images of the hub's list.
    Fields: ``presets``, ``preset``, ``sliders`` (CPU, memory), ``accelerators``, ``images``, ``groups``,
    ``errors`` (form field -> sentence), ``notice``, ``away``, ``chosen_before``.
    """
    values = _Values(offer or {}, last, posted)
    groups = list((offer or {}).get("groups") or ())
    return {
        "away": offer is None,
        "again": AGAIN,
        "chosen_before": values.chosen_before,
        "notice": (offer or {}).get("notice"),
        "presets": _presets(offer or {}, bounds),
        "preset": values.preset,
        "sliders": [
            _slider("cpu", "cpu", "CPUs", MICRO, groups, bounds, values),
            _slider("mem", "mem_gib", "Memory", GIB, groups, bounds, values),
        ],
        "accelerators": _accelerators(groups, bounds, values),
        "images": _images(offer or {}, bounds, image, labels or {}, values),
        "groups": _groups(groups, values),
        "errors": dict(posted.errors) if posted is not None else {},
        "custom": CUSTOM,
    }


class _Values:
    """Where each field's first value comes from: the posted form, the last start, the defaults."""

    def __init__(self, offer: Mapping[str, Any], last: Any, posted: Entered | None) -> None:
        self._defaults = offer.get("defaults") or {}
        self._posted = posted.fields if posted is not None else None
        try:
            self._last = parse(last or {})
        except InvalidParameters:
            self._last = Choice()
        self.chosen_before = self._last != Choice()
        presets = {preset["name"]: preset for preset in offer.get("presets") or ()}
        self.preset = self.text("preset", self._last.preset)
        if self.preset is None:
            self.preset = CUSTOM if self._last.slots else self._defaults.get("preset")
        if self.preset not in presets:
            self.preset = CUSTOM
        self._preset_slots = presets.get(
            self.preset, presets.get(self._defaults.get("preset"), {})
        ).get("slots", {})

    def text(self, name: str, last: str | None = None) -> str | None:
        """Value of a text field."""
        if self._posted is not None:
            values = self._posted.get(name) or ()
            return str(values[-1]) if values else None
        return last

    def choice(self, name: str) -> str | None:
        """The selected entry of ``image`` or ``resource_group``."""
        return self.text(name, getattr(self._last, name)) or self._defaults.get(name)

    def amount(self, field_name: str, slot: str, unit: int) -> str:
        """Text of an amount field, in ``unit`` base units."""
        if self._posted is not None and self._posted.get(field_name):
            return str(self._posted[field_name][-1])
        amount = self._last.slots.get(slot)
        if amount is None:
            text = self._preset_slots.get(slot)
            amount = parse_amount(slot, text) if text is not None else 0
        return _number(amount / unit)


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _largest(slot: str, groups: Sequence[Mapping[str, Any]], bounds: Bounds) -> int:
    most = [parse_amount(slot, g["largest"][slot]) for g in groups if slot in g.get("largest", {})]
    return min(max(most, default=FALLBACK_MOST.get(slot, 0)), bounds.most.get(slot, 2**62))


def _slider(
    slot: str,
    name: str,
    label: str,
    unit: int,
    groups: Sequence[Mapping[str, Any]],
    bounds: Bounds,
    values: _Values,
) -> dict[str, Any]:
    largest = _largest(slot, groups, bounds)
    small = largest < 2 * unit
    step = 0.1 if slot == "cpu" and small else 0.25 if slot == "mem" else 0.5
    least = max(bounds.least.get(slot, 0) / unit, step)
    most = int(largest / unit / step) * step
    text = values.amount(name, slot, unit)
    return {
        "name": name,
        "slot": slot,
        "label": label,
        "unit": "GiB" if slot == "mem" else "CPUs",
        "min": _number(least),
        "max": _number(max(most, least)),
        "step": _number(step),
        "fine_min": "0.1" if slot == "cpu" else "0.0625",
        "fine_step": "0.1" if slot == "cpu" else "any",
        "value": text if text != "0" else _number(least),
        "largest": human_amount(slot, largest) if groups else "",
    }


def _accelerators(
    groups: Sequence[Mapping[str, Any]], bounds: Bounds, values: _Values
) -> list[dict[str, Any]]:
    kinds: dict[str, Mapping[str, Any]] = {}
    for group in groups:
        for kind in group.get("slots") or ():
            if kind["name"] not in MAIN_SLOTS:
                kinds.setdefault(kind["name"], kind)
    shown = []
    for slot, kind in kinds.items():
        largest = _largest(slot, groups, bounds)
        if not largest:
            continue
        free = sum(parse_amount(slot, g["free"][slot]) for g in groups if slot in g.get("free", {}))
        quantum = parse_amount(slot, kind.get("quantum") or "1")
        shown.append(
            {
                "name": SLOT_FIELD + slot,
                "slot": slot,
                "label": kind.get("human_name") or slot,
                "unit": kind.get("unit") or slot,
                "max": _number(largest / MICRO),
                "step": _number(quantum / MICRO),
                "value": values.amount(SLOT_FIELD + slot, slot, MICRO),
                "free": human_amount(slot, free),
            }
        )
    return shown


def _presets(offer: Mapping[str, Any], bounds: Bounds) -> list[dict[str, Any]]:
    shown = []
    for preset in offer.get("presets") or ():
        slots = {slot: parse_amount(slot, text) for slot, text in preset["slots"].items()}
        over = [slot for slot, amount in slots.items() if amount > bounds.most.get(slot, amount)]
        verdict = preset.get("verdict") or ""
        message = sentence(preset.get("message") or "")
        if over:
            most = " and ".join(human_amount(slot, bounds.most[slot]) for slot in over)
            verdict, message = "never", f"At most {most} may be chosen here."
        shown.append(
            {
                "name": preset["name"],
                "human": preset.get("human")
                or ", ".join(human_amount(slot, amount) for slot, amount in slots.items()),
                "slots": slots,
                "cpu": _number(slots.get("cpu", 0) / MICRO),
                "mem_gib": _number(slots.get("mem", 0) / GIB),
                "accelerators": {
                    SLOT_FIELD + slot: _number(amount / MICRO)
                    for slot, amount in slots.items()
                    if slot not in MAIN_SLOTS
                },
                "verdict": verdict,
                "message": message,
            }
        )
    return shown


def _images(
    offer: Mapping[str, Any],
    bounds: Bounds,
    image: str,
    labels: Mapping[str, str],
    values: _Values,
) -> list[dict[str, Any]]:
    offered = {entry["name"]: entry.get("label") or "" for entry in offer.get("images") or ()}
    names = list(bounds.allowed_images or offered)
    if image and image not in names:
        names.insert(0, image)
    selected = values.choice("image")
    if selected not in names:
        selected = image or (names[0] if names else None)
    return [
        {
            "name": name,
            "label": labels.get(name) or offered.get(name) or name,
            "selected": name == selected,
        }
        for name in names
    ]


def _groups(groups: Sequence[Mapping[str, Any]], values: _Values) -> list[dict[str, Any]]:
    selected = values.choice("resource_group")
    names = [group["name"] for group in groups]
    if selected not in names:
        selected = names[0] if names else None
    return [
        {
            "name": group["name"],
            "description": group.get("description") or "",
            "agents": group.get("agents", 0),
            "free": [
                {
                    "slot": slot,
                    "text": human_amount(slot, parse_amount(slot, text)),
                    "part": _part(slot, text, group),
                }
                for slot, text in (group.get("free") or {}).items()
            ],
            "selected": group["name"] == selected,
        }
        for group in groups
    ]


def _part(slot: str, text: str, group: Mapping[str, Any]) -> str:
    largest = (group.get("largest") or {}).get(slot)
    if largest is None:
        return ""
    return f"at most {human_amount(slot, parse_amount(slot, largest))} on one node"
