"""What the cluster can give: presets, resource groups, spawn options, dry runs, agents."""

from __future__ import annotations

import datetime as dt
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from authenticator.principals import Principal, Scope, require
from authenticator.problems import InvalidParameters
from spawner.options import DEFAULT_IMAGE
from spawner.scheduler.dryrun import fit, fit_all, why
from spawner.scheduler.model import Agent, KernelRequest, Quota, SessionRequest, Snapshot, Verdict
from spawner.scheduler.policies import Policies
from spawner.scheduler.slots import (
    INTRINSIC,
    KINDS,
    SlotKind,
    SlotType,
    format_amount,
    human_amount,
    kind_of,
    parse_amount,
)
from spawner.sessions import creation, rehearsal, shares, slotkinds
from spawner.sessions.agents import AgentRegistry
from spawner.sessions.callbacks import CallbackRules
from spawner.sessions.facts import Facts, read_facts
from spawner.sessions.image_rows import usable_by
from spawner.sessions.limits import Payer, held_by, least_amounts
from spawner.sessions.rehearsal import amounts_text
from spawner.sessions.requests import Check, NewSession
from spawner.sessions.shares import Share
from spawner.sessions.snapshot import Reading, read_snapshot
from spawner.sessions.tables import (
    AgentDeviceRow,
    AgentRow,
    ImageRow,
    PresetRow,
    ResourceGroupRow,
    SessionRow,
)
from spawner.sessions.transitions import Journal
from store.database import Store
from store.making import make_missing
from vfolder.folders import FolderService

DEFAULT_GROUP = "default"
PRESETS: tuple[tuple[str, Mapping[str, str], str], ...] = (
    ("small", {"cpu": "1", "mem": "1g"}, "64m"),
    ("medium", {"cpu": "2", "mem": "4g"}, "256m"),
    ("large", {"cpu": "4", "mem": "8g"}, "512m"),
)
"""Presets of a new deployment: name, slots, shared memory."""
LABEL = "ai.perijove.label"
NO_NODES = "No node is connected yet: sessions will wait until one is."
UNLIMITED = "Infinity"
Held = dict[str, int]
_FIELDS = {"config.scalingGroup": "resource_group", "config.resource_opts.shmem": "shmem"}


async def bootstrap(store: Store, now: dt.datetime) -> None:
    """Make the default resource group and presets where there are none; change nothing else."""

    async def work(db: AsyncSession) -> None:
        if (await db.scalars(select(ResourceGroupRow).limit(1))).first() is None:
            db.add(
                ResourceGroupRow(
                    name=DEFAULT_GROUP,
                    description="All nodes",
                    is_active=True,
                    is_default=True,
                    options={},
                    created_at=now,
                )
            )
        if (await db.scalars(select(PresetRow).limit(1))).first() is None:
            for rank, (name, slots, shmem) in enumerate(PRESETS):
                amounts = {slot: parse_amount(slot, text) for slot, text in slots.items()}
                memory = parse_amount("mem", shmem)
                db.add(
                    PresetRow(name=name, resource_slots=amounts, shared_memory=memory, rank=rank)
                )

    await make_missing(store, work)


class Offers:
    """Answers about resources. Users never learn the names of agents here."""

    def __init__(
        self,
        journal: Journal,
        agents: AgentRegistry,
        now: Callable[[], dt.datetime],
        policies: Policies,
        folders: FolderService,
        callbacks: CallbackRules,
    ) -> None:
        self._journal, self._agents, self._now, self._policies = journal, agents, now, policies
        self._folders, self._callbacks = folders, callbacks
        self._store = journal.store

    async def presets(self, resource_group: str | None = None) -> list[PresetRow]:
        """Presets offered in ``resource_group`` (all of them when None), by rank."""
        return await self._store.read(lambda db: _presets(db, resource_group))

    async def check_presets(
        self, principal: Principal, *, project: str | None = None, resource_group: str | None = None
    ) -> dict[str, Any]:
        """Backend.AI's check-presets answer; all amounts are text, ``Infinity`` where nothing limits."""

        async def work(db: AsyncSession) -> tuple[Reading, list[PresetRow], list[Held]]:
            payer = _payer(principal, mine)
            reading = await read_snapshot(db, self._now(), [payer], self._policies)
            by_key, _ = await held_by(db, SessionRow.access_key, [principal.access_key])
            by_project, _ = await held_by(db, SessionRow.project_id, [uuid.UUID(mine)])
            held = [by_key[principal.access_key], by_project[uuid.UUID(mine)]]
            return reading, await _presets(db, resource_group), held

        facts = await self._store.read(lambda db: read_facts(db, principal, ""))
        group, mine = _group_of(facts, resource_group), _project_of(facts, project)
        reading, presets, held = await self._store.read(work)
        snapshot, slots = reading.snapshot, sorted(facts.slots)
        answer: dict[str, Any] = {}
        mine_only = {("keypair", principal.access_key), ("user", str(principal.user_id))}
        for prefix, scopes, amounts in zip(
            ("keypair", "group"), (mine_only, {("project", mine)}), held, strict=True
        ):
            quotas = [each for each in snapshot.quotas if (each.scope, each.scope_id) in scopes]
            answer |= _limits(quotas, prefix, amounts, slots)
        groups = {each.name: _usage(snapshot, each.name, slots) for each in snapshot.groups}
        answer["scaling_groups"] = groups
        answer["scaling_group_remaining"] = groups.get(group, {}).get("remaining", {})
        kind = _architecture_of(snapshot, group)
        requests = [_preset_request(p, principal, group, facts, kind) for p in presets]
        verdicts = fit_all(snapshot, requests, self._policies)
        answer["presets"] = [
            {
                "name": preset.name,
                "resource_slots": amounts_text(preset.resource_slots),
                "shared_memory": None
                if preset.shared_memory is None
                else str(preset.shared_memory),
                "allocatable": verdict.verdict == "now",
            }
            for preset, verdict in zip(presets, verdicts, strict=True)
        ]
        return answer

    async def spawn_options(self, principal: Principal) -> dict[str, Any]:
        """What the spawn form shows (docs/architecture.md)."""

        async def work(
            db: AsyncSession,
        ) -> tuple[Facts, Snapshot, list[PresetRow], list[ImageRow]]:
            facts = await read_facts(db, principal, "")
            payer = _payer(principal, _project_of(facts, None))
            reading = await read_snapshot(db, self._now(), [payer], self._policies)
            images = await db.scalars(
                select(ImageRow)
                .where(ImageRow.is_enabled, usable_by(principal.user_id))
                .order_by(ImageRow.name)
            )
            presets = await _presets(db, None)
            return facts, reading.snapshot, presets, list(images)

        facts, snapshot, presets, images = await self._store.read(work)
        default = facts.default_group
        group = default.name if default else ""
        presets = [preset for preset in presets if preset.resource_group in (None, group)]
        kind = _architecture_of(snapshot, group)
        requests = [_preset_request(p, principal, group, facts, kind) for p in presets]
        verdicts = fit_all(snapshot, requests, self._policies)
        there = {name for agent in snapshot.agents for name in agent.images}
        offered = [row for row in images if row.name in there]
        best = next((p for p, v in zip(presets, verdicts, strict=True) if v.verdict == "now"), None)
        alive = any(agent.alive and agent.schedulable for agent in snapshot.agents)
        names = [row.name for row in offered]
        usual = DEFAULT_IMAGE if DEFAULT_IMAGE in names else next(iter(names), None)
        return {
            "presets": [
                {
                    "name": preset.name,
                    "slots": amounts_text(preset.resource_slots),
                    "shmem": str(preset.shared_memory or 0),
                    "human": human_slots(preset.resource_slots),
                    "verdict": verdict.verdict,
                    "message": verdict.message,
                }
                for preset, verdict in zip(presets, verdicts, strict=True)
            ],
            "groups": [_group_offer(row, snapshot) for row in _by_rank(facts.groups.values())],
            "images": [
                {
                    "name": row.name,
                    "label": row.labels.get(LABEL, row.name),
                    "architecture": row.architecture,
                }
                for row in offered
            ],
            "defaults": {
                "image": (default.options.get("default_image") if default else None) or usual,
                "resource_group": group,
                "preset": (best or presets[0]).name if presets else None,
            },
            "notice": None if alive else NO_NODES,
        }

    async def dry_run(
        self,
        principal: Principal,
        *,
        image: str | None,
        resource_group: str | None,
        slots: Mapping[str, object],
        shmem: object = None,
    ) -> Check:
        """Would this request start now, wait, or never start? ``errors`` are by form field."""
        options = {} if shmem in (None, "") else {"shmem": shmem}
        new = NewSession(
            "dry-run",
            image or "",
            resource_group=resource_group,
            slots=slots,
            resource_opts=options,
        )

        async def work(db: AsyncSession) -> tuple[Facts, Snapshot]:
            facts = await read_facts(db, principal, new.image)
            payer = _payer(principal, _project_of(facts, None))
            return facts, (await read_snapshot(db, self._now(), [payer], self._policies)).snapshot

        facts, snapshot = await self._store.read(work)
        checker = creation.Checker(principal, principal, new, facts, self._now())
        draft = checker.check_offer()
        if checker.errors:
            errors = {_field(name): text for name, text in checker.errors.items()}
            return Check("never", "; ".join(errors.values()), errors)
        kind = draft.architecture or _architecture_of(snapshot, draft.group)
        request = _request(principal, draft.group, _project_of(facts, None), draft.slots, kind)
        return rehearsal.answer(fit(snapshot, request, self._policies))

    async def rehearse(self, actor: Principal, owner: Principal, new: NewSession) -> Check:
        """What would become of ``new`` if it were submitted now; ``errors`` are by field of the request.

        Raises what only another caller may ask for (``Forbidden``).
        """
        require(actor, Scope.SESSIONS, owner.user_id)
        return await rehearsal.rehearse(
            self._store,
            self._folders,
            actor,
            owner,
            new,
            self._now(),
            self._policies,
            self._callbacks,
        )

    async def why(self, session_id: uuid.UUID) -> Verdict | None:
        """What a pass would do with a waiting session now; None for one that does not wait.

        The caller has authorized: this is for a session that it just got.
        """
        reading = await self._store.read(
            lambda db: read_snapshot(db, self._now(), (), self._policies)
        )
        try:
            return why(reading.snapshot, str(session_id), self._policies)
        except KeyError:
            return None

    async def shares(self, principal: Principal, group: str) -> list[Share]:
        """What orders a ``fair-share`` group now, of everybody in it; for administrators."""
        require(principal, Scope.ADMIN)
        nowhere = str(uuid.UUID(int=0))
        payer = _payer(principal, nowhere)
        return await self._store.read(
            lambda db: shares.read_shares(db, self._now(), self._policies, group, payer)
        )

    async def shares_of(self, session_id: uuid.UUID) -> list[Share]:
        """What decides a session's place in a ``fair-share`` group; the caller has authorized, as for ``why``."""
        return await self._store.read(
            lambda db: shares.shares_of(db, self._now(), self._policies, session_id)
        )

    async def resource_groups(self) -> list[ResourceGroupRow]:
        """Active resource groups, the default one first."""

        async def work(db: AsyncSession) -> list[ResourceGroupRow]:
            query = select(ResourceGroupRow).where(ResourceGroupRow.is_active)
            return _by_rank(await db.scalars(query))

        return await self._store.read(work)

    async def slot_types(self) -> dict[str, str]:
        """Known slots with their types (``count``, ``bytes``, ``unique``, as in Backend.AI)."""
        query = select(AgentDeviceRow.slot).distinct()
        there = await self._store.read(lambda db: _scalars(db, query))
        await self._store.read(slotkinds.refresh)
        return {slot: kind_of(slot).type.value for slot in sorted({*there, *KINDS})}

    async def slot_details(self, group: str | None = None) -> dict[str, dict[str, Any]]:
        """Known slots as Backend.AI's user interfaces want them: what agents say, else their names.

        ``group``: only those that are there, besides the nodes' own.
        """
        told = await self._store.read(slotkinds.refresh)
        known = set(await self.slot_types())
        if group is not None:
            query = select(AgentDeviceRow.slot).join(AgentRow).distinct()
            query = query.where(AgentRow.resource_group == group)
            known &= {*INTRINSIC, *await self._store.read(lambda db: _scalars(db, query))}
        return {slot: _slot_view(slot, told.get(slot, {})) for slot in sorted(known)}


def human_slots(slots: Mapping[str, int]) -> str:
    """``2 CPUs, 4 GiB of memory``."""
    return ", ".join(human_amount(slot, int(amount)) for slot, amount in slots.items() if amount)


async def _presets(db: AsyncSession, group: str | None) -> list[PresetRow]:
    rows = await db.scalars(select(PresetRow).order_by(PresetRow.rank, PresetRow.name))
    return [row for row in rows if group is None or row.resource_group in (None, group)]


async def _scalars(db: AsyncSession, query: Any) -> list[Any]:
    return list(await db.scalars(query))


def _by_rank(groups: Iterable[ResourceGroupRow]) -> list[ResourceGroupRow]:
    return sorted(groups, key=lambda group: (not group.is_default, group.name))


def _project_of(facts: Facts, asked: str | None) -> str:
    fitting = [p for p in facts.projects if asked is None or asked in (p.name, str(p.id))]
    if not fitting:
        known = ", ".join(project.name for project in facts.projects) or "none"
        raise InvalidParameters({"group": f"{(asked or '')[:80]!r}: you belong to {known}"})
    return str(fitting[0].id)


def _payer(principal: Principal, project: str) -> Payer:
    return Payer(principal.access_key, project, principal.domain, str(principal.user_id))


def _group_of(facts: Facts, asked: str | None) -> str:
    group = facts.default_group if asked is None else facts.groups.get(asked)
    if group is None:
        known = ", ".join(sorted(facts.groups)) or "none"
        raise InvalidParameters({"scaling_group": f"{(asked or '')[:80]!r}: one of {known}"})
    return group.name


def _limits(quotas: Sequence[Quota], prefix: str, held: Held, slots: list[str]) -> dict[str, Any]:
    """What the smallest of all ``quotas`` says; what is left is what each of them has left."""
    most = least_amounts(*(quota.max_slots for quota in quotas)) or {}
    left: dict[str, int] = {}
    for quota in quotas:
        for slot, limit in (quota.max_slots or {}).items():
            room = max(0, limit - quota.held_slots.get(slot, 0))
            left[slot] = min(room, left.get(slot, room))
    return {
        f"{prefix}_limits": {
            slot: format_amount(slot, most[slot]) if slot in most else UNLIMITED for slot in slots
        },
        f"{prefix}_using": amounts_text({slot: held.get(slot, 0) for slot in slots}),
        f"{prefix}_remaining": {
            slot: format_amount(slot, left[slot]) if slot in left else UNLIMITED for slot in slots
        },
    }


def _members(snapshot: Snapshot, group: str) -> list[Agent]:
    """Agents that take sessions now."""
    return [a for a in snapshot.agents if a.resource_group == group and a.alive and a.schedulable]


def _usage(snapshot: Snapshot, group: str, slots: list[str]) -> dict[str, dict[str, str]]:
    using: dict[str, int] = dict.fromkeys(slots, 0)
    remaining: dict[str, int] = dict.fromkeys(slots, 0)
    for agent in _members(snapshot, group):
        for device in agent.devices:
            using[device.slot] = using.get(device.slot, 0) + device.capacity - device.free
            remaining[device.slot] = remaining.get(device.slot, 0) + device.free
    return {"using": amounts_text(using), "remaining": amounts_text(remaining)}


def _group_offer(row: ResourceGroupRow, snapshot: Snapshot) -> dict[str, Any]:
    agents = _members(snapshot, row.name)
    free: dict[str, int] = defaultdict(int)
    largest: dict[str, int] = defaultdict(int)
    for agent in agents:
        total: dict[str, int] = defaultdict(int)
        for device in agent.devices:
            free[device.slot] += device.free
            total[device.slot] += device.capacity
        for slot, amount in total.items():
            largest[slot] = max(largest[slot], amount)
    kinds = [kind_of(slot) for slot in sorted(largest, key=lambda s: (s not in ("cpu", "mem"), s))]
    return {
        "name": row.name,
        "description": row.description,
        "agents": len(agents),
        "free": amounts_text(free),
        "largest": amounts_text(largest),
        "slots": [
            {
                "name": kind.name,
                "human_name": kind.human_name,
                "unit": kind.unit,
                "type": kind.type.value,
                "quantum": format_amount(kind.name, kind.quantum),
            }
            for kind in kinds
        ],
    }


def _architecture_of(snapshot: Snapshot, group: str) -> str:
    """What a request without image is taken to run on: what most nodes of the group are."""
    there = Counter(
        agent.architecture for agent in snapshot.agents if agent.resource_group == group
    )
    return min(there, key=lambda kind: (-there[kind], kind), default="x86_64")


def _preset_request(
    preset: PresetRow, principal: Principal, group: str, facts: Facts, architecture: str
) -> SessionRequest:
    slots = {slot: int(amount) for slot, amount in preset.resource_slots.items()}
    return _request(principal, group, _project_of(facts, None), slots, architecture)


def _request(
    principal: Principal, group: str, project: str, slots: Mapping[str, int], architecture: str
) -> SessionRequest:
    kernel = KernelRequest(str(uuid.uuid4()), dict(slots), "", architecture)
    return SessionRequest(
        session_id="dry-run",
        owner_id=str(principal.user_id),
        access_key=principal.access_key,
        project_id=project,
        domain=principal.domain,
        resource_group=group,
        priority=creation.DEFAULT_PRIORITY,
        submitted_at=0.0,
        kernels=(kernel,),
    )


def _slot_view(slot: str, told: Mapping[str, Any]) -> dict[str, Any]:
    kind = kind_of(slot)
    binary = kind.type is SlotType.BYTES
    return {
        "slot_name": slot,
        "description": told.get("description") or kind.human_name,
        "human_readable_name": kind.human_name,
        "display_unit": told.get("display_unit") or ("GiB" if binary else kind.unit),
        "number_format": {
            "binary": binary,
            "round_length": told.get("round_length", _decimals(kind)),
        },
        "display_icon": told.get("icon") or slot.partition(".")[0],
    }


def _decimals(kind: SlotKind) -> int:
    """How many an amount of a slot has whose plug-in says nothing: gibibytes two, counts as their quantum."""
    fraction = format_amount(kind.name, kind.quantum).partition(".")[2]
    return 2 if kind.type is SlotType.BYTES else len(fraction)


def _field(name: str) -> str:
    """The form's name of a request field."""
    return _FIELDS.get(name, name.replace("config.resources.", "slots.", 1))
