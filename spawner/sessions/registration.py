"""Agents' rows: who they are, what they offer, whether they live."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import func, select

from spawner.agent.protocol import (
    PROTOCOL_VERSION,
    UNWELL,
    Heartbeat,
    Hello,
    ImageReport,
    ProtocolError,
)
from spawner.sessions import (
    degraded,
    faults,
    image_rows,
    ledger,
    refusals,
    retries,
    runs,
    slotkinds,
    steps,
)
from spawner.sessions.losses import (
    REQUEUE,
    Rules,
    is_assembled,
    is_spread,
    lease_of,
    may_be_given_up,
    rule_for,
)
from spawner.sessions.states import FINAL, HOLDS, Status, Target
from spawner.sessions.tables import (
    AgentRow,
    ImageRow,
    KernelRow,
    ResourceGroupRow,
    SessionRow,
)
from spawner.sessions.transitions import Change

ALIVE, LOST, REMOVED = "ALIVE", "LOST", "TERMINATED"
AGENT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}
_LIVE = [status.value for status in HOLDS]


def architecture(name: str) -> str:
    """One spelling for each architecture (that of Backend.AI and ``uname -m``)."""
    return _ARCHITECTURES.get(name.lower(), name.lower())


def check_hello(hello: Hello) -> None:
    """Raise ``ProtocolError`` for a hello that makes no sense."""
    if hello.protocol != PROTOCOL_VERSION:
        raise ProtocolError(
            f"the agent speaks protocol {hello.protocol}, this manager {PROTOCOL_VERSION}: install"
            " the same version on both"
        )
    if not AGENT_ID.fullmatch(hello.agent_id):
        raise ProtocolError(
            f"agent id {hello.agent_id[:80]!r}: 1 to 64 letters, digits, '.', '_' and '-',"
            " beginning with a letter or digit"
        )
    wrong = [device for device in hello.devices if device.capacity < 0 or not device.slot]
    if wrong:
        raise ProtocolError(f"device {wrong[0].device_id!r} offers {wrong[0].capacity}")


async def register(change: Change, hello: Hello, *, joins: bool = False) -> None:
    """Write an agent's row, devices and images; it lives from now. Raises ``ProtocolError``.

    ``joins``: it came with a join token, and so may be one that was removed.
    """
    db = change.db
    if await db.get(ResourceGroupRow, hello.resource_group) is None:
        raise ProtocolError(f"there is no resource group {hello.resource_group[:64]!r}")
    row = await db.get(AgentRow, hello.agent_id, with_for_update=True, populate_existing=True)
    if row is None:
        row = AgentRow(
            id=hello.agent_id,
            resource_group=hello.resource_group,
            status=ALIVE,
            schedulable=True,
            first_contact=change.now,
        )
        db.add(row)
        change.note_agent(hello.agent_id, None, ALIVE, "registered")
    elif row.status == REMOVED and not joins:
        raise ProtocolError(f"agent {hello.agent_id} was removed: it joins with a new token")
    elif row.status != ALIVE:
        row.schedulable = row.schedulable or row.status == REMOVED
        change.note_agent(hello.agent_id, row.status, ALIVE, "connected again")
        await _reachable_again(change, row)
    if row.resource_group != hello.resource_group and not await _holds(change, hello.agent_id):
        row.resource_group = hello.resource_group
    row.status, row.lost_at, row.last_seen = ALIVE, None, change.now
    row.architecture, row.engine = architecture(hello.architecture), hello.engine
    row.version, row.address = hello.version[:32], hello.address[:255]
    row.max_containers = hello.max_containers
    row.features = {**hello.features, **refusals.kept(row.features)}
    await _images(change, row, hello.images)
    await db.flush()
    await slotkinds.record(db, hello.slots)
    await faults.note(change, row, hello.devices)
    await ledger.register(db, hello.agent_id, hello.devices)
    change.schedule = True
    change.agents.add(hello.agent_id)


async def heartbeat(change: Change, agent_id: str, beat: Heartbeat) -> None:
    """Note that an agent lives, and what changed on it."""
    row = await change.db.get(AgentRow, agent_id, with_for_update=True, populate_existing=True)
    if row is None or row.status == REMOVED:
        raise ProtocolError(f"agent {agent_id} is not registered any more")
    if row.status != ALIVE:
        change.note_agent(agent_id, row.status, ALIVE, "answers again")
        await _reachable_again(change, row)
        row.status, row.lost_at = ALIVE, None
        change.schedule = True
        change.agents.add(agent_id)
    row.last_seen = change.now
    if beat.images is not None:
        await _images(change, row, beat.images)
        change.schedule = True
    if beat.features is not None:
        _note_health(change, row, beat.features)
        row.features = {**beat.features, **refusals.kept(row.features)}
        change.schedule = True
        change.agents.add(agent_id)
    await slotkinds.record(change.db, beat.slots)
    if beat.devices is not None:
        await faults.note(change, row, beat.devices)
        if await ledger.register(change.db, agent_id, beat.devices):
            change.schedule = True


def _note_health(change: Change, row: AgentRow, features: Mapping[str, Any]) -> None:
    """Write down that a node's engine got well or unwell: meanwhile nothing is placed there."""
    was, now = (row.features or {}).get(UNWELL), features.get(UNWELL)
    if bool(was) != bool(now):
        told = f"its engine is unwell: {str(now)[:500]}" if now else "its engine is well again"
        change.note_agent(row.id, row.status, row.status, told)


async def lose(change: Change, agent_id: str, not_seen_since: dt.datetime) -> bool:
    """Mark an agent LOST unless it was heard of after ``not_seen_since``.

    Its sessions keep status and allocations, and tell their owners that they are out of reach.
    """
    row = await change.db.get(AgentRow, agent_id, with_for_update=True, populate_existing=True)
    if row is None or row.status != ALIVE or row.last_seen > not_seen_since:
        return False
    row.status, row.lost_at = LOST, change.now
    cause = f"not heard of since {row.last_seen.isoformat(timespec='seconds')}"
    change.note_agent(agent_id, ALIVE, LOST, cause)
    since = row.last_seen.strftime("%Y-%m-%d %H:%M:%S UTC")
    for session in await sessions_on(change, agent_id):
        ending = session.status == Status.TERMINATING
        what = "waiting for its node to end it; " if ending else ""
        if await _degraded(change, session) or await _apart(change, session, agent_id):
            continue
        session.status_info = f"{what}unreachable since {since}: its node does not answer"
        change.note(session, session.status_info)
    change.schedule = True
    return True


async def _apart(change: Change, session: SessionRow, agent_id: str) -> bool:
    """Put back to the queue what its lost node never heard of, and a cluster that was just being started.

    What the node may still have of a cluster stays accounted there. False: neither, or it is told to end.
    """
    loaded = await steps.load(change.db, session.id)
    if loaded is None or session.target != Target.RUNNING:
        return False
    lost = [kernel for kernel in loaded[1] if kernel.agent_id == agent_id]
    unborn = all(kernel.status == Status.SCHEDULED for kernel in lost)
    if not unborn and (lease_of(session) is None or not is_assembled(session)):
        return False
    for kernel in lost:
        cause = "its node was lost before it began: waiting for another place"
        if is_spread(session):
            cause = f"the node of {kernel.hostname} was lost: all containers start again together"
        await runs.leave(change, session, kernel, cause)
    await steps.step(change, *loaded)
    return True


async def give_up(change: Change, agent_id: str, silent: float, rules: Mapping[str, Rules]) -> None:
    """Do what ``rules`` (by resource group) say of sessions whose agent was not heard for ``silent`` seconds.

    What they run there stays accounted until the agent comes back and says that it is gone.
    """
    row = await change.db.get(AgentRow, agent_id, populate_existing=True)
    if row is None or row.status != LOST or row.lost_at is None:
        return
    untold = (change.now - row.lost_at).total_seconds()
    for session in await sessions_on(change, agent_id):
        rule = rule_for(session, rules.get(session.resource_group))
        if rule.after is None or silent < rule.after:
            continue
        cause = f"its node has been unreachable for more than {rule.after:g} seconds"
        if not may_be_given_up(session, rule, silent, untold):
            continue
        requeued = rule.then == REQUEUE and session.target == Target.RUNNING
        if requeued and await _elsewhere(change, session, agent_id, cause):
            continue
        loaded = await steps.load(change.db, session.id)
        if loaded is None or await degraded.let_go(change, *loaded, agent_id, cause):
            continue
        steps.ask_to_end(session, steps.AGENT_TERMINATED, cause)
        if session.type == "batch" and session.result == "undefined":
            session.result = "failure"
        await steps.step(change, *loaded)
        if Status(session.status) not in FINAL:
            main, reason = loaded[1][0], steps.AGENT_TERMINATED
            await steps.finish(change, session, main, Status.TERMINATED, reason, cause)


async def _elsewhere(change: Change, session: SessionRow, agent_id: str, cause: str) -> bool:
    """Put a session back to the queue without waiting for its lost agent; False: no attempt is left."""
    loaded = await steps.load(change.db, session.id)
    if loaded is None:
        return True
    _, kernels = loaded
    on_its_way = session.status in (Status.RESTARTING, Status.PREEMPTED)
    if not on_its_way and retries.policy_of(session) is None:
        told = f"{cause}: starting again on another node"
        await retries.requeue(change, session, kernels, retries.NODE_LOST, told)
    elif not on_its_way and not await retries.try_again(
        change, session, kernels, retries.NODE_LOST, cause
    ):
        return False
    for kernel in kernels:
        if kernel.agent_id == agent_id:
            await runs.leave(change, session, kernel, session.status_info)
    await steps.step(change, session, kernels)
    return True


async def sessions_on(change: Change, agent_id: str) -> list[SessionRow]:
    """Sessions that have not ended and hold something on an agent, locked."""
    query = (
        select(SessionRow)
        .where(
            SessionRow.id.in_(
                select(KernelRow.session_id).where(
                    KernelRow.agent_id == agent_id, KernelRow.status.in_(_LIVE)
                )
            ),
            SessionRow.status.in_(_LIVE),
        )
        .order_by(SessionRow.id)
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    return list(await change.db.scalars(query))


async def _degraded(change: Change, session: SessionRow) -> bool:
    """Whether a cluster goes on without those of its containers that are out of reach."""
    if session.cluster_size > 1:
        await steps.advance(change, session.id)
    return session.status == Status.RUNNING_DEGRADED


async def _reachable_again(change: Change, row: AgentRow) -> None:
    row.status = ALIVE
    for session in await sessions_on(change, row.id):
        was = session.status
        if await _degraded(change, session) or session.status != was:
            continue
        session.status_info = "its node answers again"
        change.note(session, session.status_info)


async def _holds(change: Change, agent_id: str) -> bool:
    query = select(func.count()).where(KernelRow.agent_id == agent_id, KernelRow.status.in_(_LIVE))
    return bool(await change.db.scalar(query))


async def _images(change: Change, row: AgentRow, images: Iterable[ImageReport]) -> None:
    """The agent's own list, and rows of images that nobody had before."""
    reports = list(images)
    row.images = sorted({image.name for image in reports})
    for image in reports:
        key = (image.name[:255], architecture(image.architecture))
        known = await change.db.get(ImageRow, key)
        if known is None:
            known = ImageRow(
                name=key[0], architecture=key[1], is_enabled=True, created_at=change.now
            )
            change.db.add(known)
        known.engine, known.digest = row.engine, image.digest
        known.size_bytes, known.labels = image.size_bytes, dict(image.labels)
        await change.db.flush()
        await image_rows.arrived(change, image, known)
