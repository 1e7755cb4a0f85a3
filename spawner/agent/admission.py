"""Whether a placement fits this node as it is now: plans are verified where they are carried out.

The manager knows all devices and accounts for what it gave out; it may have been told of them before they changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from spawner.agent.protocol import DeviceReport, Share
from spawner.scheduler.slots import format_amount


class Refused(Exception):
    """The placement does not fit; the sentence is for the user."""


def check(shares: Iterable[Share], devices: Iterable[DeviceReport], held: Iterable[Share]) -> None:
    """Raise ``Refused`` unless ``devices`` have room for ``shares`` beside what is ``held`` of them."""
    capacity = {(each.slot, each.device_id): each.capacity for each in devices}
    taken: Counter[tuple[str, str]] = Counter()
    for share in held:
        taken[share.slot, share.device_id] += share.amount
    for share in filter(lambda each: each.amount, shares):
        key = share.slot, share.device_id
        taken[key] += share.amount
        if not capacity.get(key):
            raise Refused(f"its node has no {share.slot} {share.device_id} to give any more")
        if taken[key] > capacity[key]:
            left = max(0, capacity[key] - taken[key] + share.amount)
            asked, free = (format_amount(share.slot, each) for each in (share.amount, left))
            raise Refused(
                f"{asked} of {share.slot} {share.device_id} were planned for it, {free} are free"
            )
