"""A dry run of a whole request: the checks of a submission and the eyes of a pass, without a row written."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping

from sqlalchemy.ext.asyncio import AsyncSession

from authenticator.principals import Principal
from authenticator.problems import (
    InvalidParameters,
    NotFound,
    QuotaExceeded,
    SessionAlreadyExists,
)
from spawner.scheduler.check import cancelled
from spawner.scheduler.dryrun import fit
from spawner.scheduler.model import SessionRequest, Snapshot, Verdict
from spawner.scheduler.policies import Policies
from spawner.scheduler.slots import format_amount
from spawner.sessions import admission, creation, queries
from spawner.sessions.callbacks import CallbackRules
from spawner.sessions.facts import read_facts
from spawner.sessions.kinds import SYSTEM
from spawner.sessions.limits import Payer
from spawner.sessions.requests import Check, NewSession
from spawner.sessions.snapshot import read_snapshot, request_of
from store.database import Store
from vfolder.folders import FolderMount, FolderService

REQUEST_ID = "dry-run"


async def rehearse(
    store: Store,
    folders: FolderService,
    actor: Principal,
    owner: Principal,
    new: NewSession,
    now: dt.datetime,
    policies: Policies,
    callbacks: CallbackRules,
) -> Check:
    """What would become of ``new``, as the last one in line of its priority."""

    async def work(db: AsyncSession) -> tuple[Snapshot, SessionRequest] | Check:
        return await _read(db, mounts, actor, owner, new, now, policies, callbacks)

    try:
        mounts = await folders.mounts_for(owner, new.mounts, new.mount_map)
        found = await store.read(work)
    except InvalidParameters as error:
        return Check("never", error.sentence(), error.fields)
    except NotFound as error:
        return Check("never", str(error), {"image": str(error)})
    except SessionAlreadyExists as error:
        return Check("never", str(error), {"name": str(error)})
    except QuotaExceeded as error:
        return Check("never", str(error))
    if isinstance(found, Check):
        return found
    snapshot, request = found
    gone = cancelled(request)
    if gone is not None:
        return Check("never", gone.message)
    return answer(fit(snapshot, request, policies))


async def _read(
    db: AsyncSession,
    mounts: Iterable[FolderMount],
    actor: Principal,
    owner: Principal,
    new: NewSession,
    now: dt.datetime,
    policies: Policies,
    callbacks: CallbackRules,
) -> tuple[Snapshot, SessionRequest] | Check:
    """The checks of ``SessionService.create``; then what a pass would see."""
    facts = await read_facts(db, owner, new.image, new.dependencies, callbacks)
    draft = creation.check(actor, owner, new, facts, now)
    if new.designated_agents:
        await admission.check_agents(db, new.designated_agents)
    live = await queries.live_by_name(db, owner.user_id, new.name)
    if live is not None:
        admission.check_reuse(live, new, draft.image)
        return Check("now", f"your session {live.name!r} lives: it is taken, and none is made")
    session, kernels = creation.rows(owner, new, draft, mounts, REQUEST_ID, now)
    if new.type != SYSTEM:
        await admission.check_counts(db, facts, session)
    payer = Payer(owner.access_key, str(session.project_id), owner.domain, str(owner.user_id))
    snapshot = (await read_snapshot(db, now, [payer], policies)).snapshot
    return snapshot, await request_of(db, session, kernels, snapshot, now)


def answer(verdict: Verdict) -> Check:
    """The scheduler's verdict in the texts of the wire."""
    explained, fits = verdict.explanation, verdict.would_fit
    return Check(
        verdict.verdict,
        verdict.message,
        starts_at=None if explained is None else explained.starts_at,
        would_fit=None if fits is None else amounts_text(fits),
    )


def amounts_text(slots: Mapping[str, int]) -> dict[str, str]:
    """Wire text of each amount."""
    return {slot: format_amount(slot, int(amount)) for slot, amount in slots.items()}
