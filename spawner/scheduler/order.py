"""Who is looked at first: priority bands, those who waited too long, and sequencers inside a band."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from spawner.scheduler.model import GroupPolicy, RunningSession, SessionRequest, Usage


@dataclass(frozen=True, slots=True)
class OrderContext:
    """What a sequencer may know besides the sessions of its band."""

    now: float
    group: GroupPolicy
    capacity: Mapping[str, int] = field(default_factory=dict)
    """What all agents of the group have together, in base units by slot."""
    running: Sequence[RunningSession] = ()
    """The running sessions of the group."""
    usage: Sequence[Usage] = ()
    counted: list[SessionRequest] = field(default_factory=list)
    """Sessions that this pass started or put in line, in order; it grows while a sequencer runs.

    One that stands in line counts as if it ran: the line then has the order in which things go on.
    """


Sequencer = Callable[[Sequence[SessionRequest], OrderContext], Iterable[SessionRequest]]
"""Orders the sessions of one band: every session given, each exactly once.

It is consumed lazily, one session after another is decided, so a generator may let its next choice
depend on what was placed before (progressive filling).
"""


def by_time(session: SessionRequest) -> tuple[float, str]:
    """First come, first served; sessions submitted at the same moment go by id."""
    return session.submitted_at, session.session_id


def fifo(sessions: Sequence[SessionRequest], context: OrderContext) -> Iterable[SessionRequest]:
    """First come, first served."""
    return sorted(sessions, key=by_time)


def lifo(sessions: Sequence[SessionRequest], context: OrderContext) -> Iterable[SessionRequest]:
    """The newest first; the exact reverse of ``fifo``."""
    return sorted(sessions, key=by_time, reverse=True)


def waits_since(session: SessionRequest) -> float:
    """Since when it could have started if there had been room: what its own rules cost does not count."""
    began = session.submitted_at if session.eligible_since is None else session.eligible_since
    starts_at = session.starts_at or 0.0
    return starts_at if starts_at > began else began


def by_age(session: SessionRequest) -> tuple[float, str]:
    """Who has waited longest for room comes first."""
    return waits_since(session), session.session_id


def has_aged(session: SessionRequest, context: OrderContext) -> bool:
    """True when it has waited longer than its group lets anyone be overtaken."""
    return waits_since(session) < context.now - context.group.ageing


def has_risen(session: SessionRequest, group: GroupPolicy, now: float) -> bool:
    """True when it has waited so long that it comes before all bands."""
    if group.rise is None:
        return False
    return waits_since(session) < now - max(group.rise, group.ageing)


def may_precede(session: SessionRequest, group: GroupPolicy, now: float, priority: int) -> bool:
    """Whether ``session`` may be looked at before one of ``priority`` that has not risen."""
    return session.priority >= priority or has_risen(session, group, now)


class SequencerError(ValueError):
    """A sequencer lost, repeated or invented sessions."""


def in_order(
    sessions: Iterable[SessionRequest], sequencer: Sequencer, context: OrderContext
) -> Iterator[SessionRequest]:
    """All sessions of a group: those that rose, then bands of equal priority, the highest first.

    Those that rose (``has_risen``) go by the time they wait. So do, inside a band, those that have waited
    too long (``has_aged``), before the others in the order of the sequencer. Raises ``SequencerError``
    when the sequencer does not give every other session back exactly once.
    """
    risen: list[SessionRequest] = []
    old: dict[int, list[SessionRequest]] = {}
    bands: dict[int, list[SessionRequest]] = {}
    limit = context.now - context.group.ageing
    for session in sessions:
        if waits_since(session) < limit:  # who has risen has aged as well
            if has_risen(session, context.group, context.now):
                risen.append(session)
                continue
            old.setdefault(session.priority, []).append(session)
        bands.setdefault(session.priority, []).append(session)
    yield from sorted(risen, key=by_age)
    for priority in sorted(bands, reverse=True):
        aged = old.get(priority, [])
        yield from sorted(aged, key=by_age)
        gone = {session.session_id for session in aged}
        rest = tuple(bands[priority])
        if gone:
            rest = tuple(session for session in rest if session.session_id not in gone)
        left = {session.session_id for session in rest}
        for session in sequencer(rest, context):
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
                f"{len(rest)} sessions of band {priority}"
            )
