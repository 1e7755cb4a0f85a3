"""Who is looked at first: priority bands, and sequencers inside a band."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from spawner.scheduler.model import GroupPolicy, SessionRequest


@dataclass(frozen=True, slots=True)
class OrderContext:
    """What a sequencer may know besides the sessions of its band."""

    now: float
    group: GroupPolicy


Sequencer = Callable[[Sequence[SessionRequest], OrderContext], Iterable[SessionRequest]]
"""Orders the sessions of one band: every session given, each exactly once.

It is consumed lazily, one session after another is decided, so a generator may let its next choice
depend on what was placed before (progressive filling).
"""


def fifo(sessions: Sequence[SessionRequest], context: OrderContext) -> Iterable[SessionRequest]:
    """First come, first served; sessions submitted at the same moment go by id."""
    return sorted(sessions, key=lambda session: (session.submitted_at, session.session_id))


class SequencerError(ValueError):
    """A sequencer lost, repeated or invented sessions."""


def in_order(
    sessions: Iterable[SessionRequest], sequencer: Sequencer, context: OrderContext
) -> Iterator[SessionRequest]:
    """All sessions of a group: bands of equal priority, the highest first, each in its own order.

    Raises ``SequencerError`` when the sequencer does not give every session back exactly once.
    """
    bands: dict[int, list[SessionRequest]] = {}
    for session in sessions:
        bands.setdefault(session.priority, []).append(session)
    for priority in sorted(bands, reverse=True):
        left = {session.session_id for session in bands[priority]}
        for session in sequencer(tuple(bands[priority]), context):
            if session.session_id not in left:
                raise SequencerError(
                    f"sequencer {context.group.sequencer!r} gave session {session.session_id} "
                    f"in band {priority}, which is not or no longer in it"
                )
            left.remove(session.session_id)
            yield session
        if left:
            raise SequencerError(
                f"sequencer {context.group.sequencer!r} left out {len(left)} of "
                f"{len(bands[priority])} sessions of band {priority}"
            )
