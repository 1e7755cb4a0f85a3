"""Slots: names, types, and amounts between human text and integer base units.

A *count* slot (``cpu``, ``cuda.device``, ``cuda.shares``) is counted in micro-units: ``"0.5"`` is
500,000. A *bytes* slot (``mem``) is counted in bytes: ``"1g"`` is 1,073,741,824. A *unique* slot is a
count of devices each of which is given as a whole or not at all, such as the partitions of a GPU.
"""

import enum
import re
from dataclasses import dataclass
from functools import lru_cache

MICRO = 1_000_000
INT64_MAX = 2**63 - 1
INTRINSIC = frozenset({"cpu", "mem"})
"""Families that every node offers; all others are accelerators."""


class SlotType(enum.StrEnum):
    """How amounts of a slot are written and counted."""

    COUNT = "count"
    BYTES = "bytes"
    UNIQUE = "unique"


@dataclass(frozen=True, slots=True)
class SlotKind:
    """What a slot is called and how people read it."""

    name: str
    type: SlotType
    human_name: str
    unit: str
    """Singular unit for sentences: ``CPU``, ``GPU``."""
    quantum: int = MICRO
    """Amounts are multiples of this many base units."""


KINDS: dict[str, SlotKind] = {
    kind.name: kind
    for kind in (
        SlotKind("cpu", SlotType.COUNT, "CPU", "CPU", MICRO // 10),
        SlotKind("mem", SlotType.BYTES, "Memory", "memory", 1),
        SlotKind("cuda.device", SlotType.COUNT, "GPU", "GPU"),
        SlotKind("cuda.shares", SlotType.COUNT, "GPU share", "GPU share", MICRO // 100),
    )
}
PARTITION = "-mig"
"""The end of the names of slots that are partitions of an accelerator, such as ``cuda.1g.10gb-mig``."""

SLOT_NAME = re.compile(r"(?=.{1,64}\Z)[a-z][a-z0-9_-]*([.:][a-z0-9_-]+)*")
"""There is one way only to read a name so: a long one that is wrong is refused at once."""

_BYTES = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgtpe]?)(?:i?b)?\s*", re.IGNORECASE)
_COUNT = re.compile(r"\s*(\d+)(?:\.(\d{1,6})0*)?\s*")
_SUFFIX = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5, "e": 6}


_LEARNED: dict[str, SlotKind] = {}


def learn(kind: SlotKind) -> None:
    """Read a foreign slot so from now on; what ``KINDS`` says stays."""
    if kind.name not in KINDS:
        _LEARNED[kind.name] = kind


def kind_of(slot: str) -> SlotKind:
    """The kind of ``slot``: a known or learned one, else what its name says.

    ``x.shares`` counts hundredths, ``x.device:<profile>-mig`` is unique, others count whole devices.
    """
    return KINDS.get(slot) or _LEARNED.get(slot) or _kind_by_name(slot)


@lru_cache(maxsize=1024)
def _kind_by_name(slot: str) -> SlotKind:
    if slot.endswith(".shares"):
        return SlotKind(slot, SlotType.COUNT, slot, slot, MICRO // 100)
    if slot.endswith(PARTITION):
        return SlotKind(slot, SlotType.UNIQUE, slot, slot)
    return SlotKind(slot, SlotType.COUNT, slot, slot)


def way_of(slot: str) -> str:
    """How a slot divides its family: ``device``, ``shares``, or ``partition`` for all of its profiles.

    A kernel takes an accelerator family in one way only.
    """
    if slot.endswith(PARTITION):
        return "partition"
    return slot.partition(".")[2] or slot


def family_of(slot: str) -> str:
    """The family of ``slot``: ``cuda`` for ``cuda.device``, ``cuda.shares``, ``cuda.device:1g-mig``."""
    return slot.partition(".")[0].partition(":")[0]


def is_accelerator(slot: str) -> bool:
    """True for every slot but those that all nodes have (``cpu``, ``mem``)."""
    return family_of(slot) not in INTRINSIC


def parse_amount(slot: str, value: object) -> int:
    """Base units of ``value`` (text or number). Raises ``ValueError`` with a sentence."""
    kind = kind_of(slot)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{slot} is {value!r}: give a number or text such as {example(slot)}")
    text = format(value, "f").rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
    amount = _parse_bytes(text) if kind.type is SlotType.BYTES else _parse_count(text)
    if amount is None or amount > INT64_MAX:
        raise ValueError(f"{slot} is {value!r}: give a non-negative amount such as {example(slot)}")
    if amount % kind.quantum:
        step = format_amount(slot, kind.quantum)
        raise ValueError(f"{slot} is {value!r}: it must be a multiple of {step}")
    return amount


def _parse_bytes(text: str) -> int | None:
    match = _BYTES.fullmatch(text)
    if match is None:
        return None
    number, suffix = match.groups()
    scale = 1 << 10 * _SUFFIX[suffix.lower()]
    whole, _, fraction = number.partition(".")
    units = int(whole) * scale
    if fraction:
        numerator = int(fraction) * scale
        if numerator % 10 ** len(fraction) and scale == 1:
            return None
        units += numerator // 10 ** len(fraction)
    return units


def _parse_count(text: str) -> int | None:
    match = _COUNT.fullmatch(text)
    if match is None:
        return None
    whole, fraction = match.groups()
    return int(whole) * MICRO + int((fraction or "").ljust(6, "0"))


def example(slot: str) -> str:
    """An amount of ``slot`` that would be accepted, for error messages."""
    return '"4g"' if kind_of(slot).type is SlotType.BYTES else '"2"'


def format_amount(slot: str, amount: int) -> str:
    """The wire text of ``amount``: plain bytes for memory, a decimal number for counts."""
    if kind_of(slot).type is SlotType.BYTES:
        return str(amount)
    whole, fraction = divmod(amount, MICRO)
    return str(whole) if not fraction else f"{whole}.{fraction:06d}".rstrip("0")


def human_amount(slot: str, amount: int) -> str:
    """``amount`` as people say it: ``2 CPUs``, ``1.5 GiB of memory``, ``0.25 GPU shares``."""
    kind = kind_of(slot)
    if kind.type is SlotType.BYTES:
        return f"{human_bytes(amount)} of {kind.unit}"
    text = format_amount(slot, amount)
    return f"{text} {kind.unit}" if amount == MICRO else f"{text} {kind.unit}s"


def human_bytes(amount: int) -> str:
    """Bytes with a binary unit and at most two decimals."""
    units = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
    index = 0
    while index + 1 < len(units) and amount >= 1024 ** (index + 1):
        index += 1
    number = f"{amount / 1024**index:.2f}".rstrip("0").rstrip(".")
    return f"{number} {units[index]}"
