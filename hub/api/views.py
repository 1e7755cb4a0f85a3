"""How sessions, folders and agents look on the wire: Backend.AI's shapes, and our own."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from spawner.scheduler.model import Verdict
from spawner.scheduler.slots import format_amount, human_amount
from spawner.sessions.clusters import rank_of
from spawner.sessions.idle_state import shown, warning
from spawner.sessions.progress import percent
from spawner.sessions.requests import AgentView, Created, ProgressEvent, SessionDetail
from spawner.sessions.retries import attempt_of
from spawner.sessions.shares import Share
from spawner.sessions.states import Status
from spawner.sessions.tables import AgentTokenRow, HistoryRow, KernelRow, RunRow, SessionRow
from spawner.sessions.telling import ATTEMPT
from vfolder.tables import FolderRow
from vfolder.volumes.base import Usage

RUNNING = frozenset({Status.RUNNING, Status.RUNNING_DEGRADED})
BACKENDAI_STATUS = {Status.CREATING: "PREPARING", Status.PREEMPTED: "PENDING"}
"""Statuses that Backend.AI 23.09 does not know, as the ones its clients expect."""
PROXY = "local"
"""First half of a volume host: ``local:<volume>``."""


def backendai_status(status: Status | str) -> str:
    """The name of a status for Backend.AI's clients."""
    known = Status(status)
    return BACKENDAI_STATUS.get(known, known.value)


def slots_text(slots: Mapping[str, int]) -> dict[str, str]:
    """Amounts as the texts of the wire."""
    return {slot: format_amount(slot, amount) for slot, amount in slots.items()}


def slots_human(slots: Mapping[str, int]) -> str:
    """Amounts for people: ``2 CPUs, 4 GiB of memory``."""
    return ", ".join(human_amount(slot, slots[slot]) for slot in sorted(slots))


def service_ports(detail: SessionDetail) -> list[dict[str, Any]]:
    """The ports that people may open in the main kernel."""
    ports: dict[tuple[str, str], list[int]] = {}
    for port in detail.main.spec.get("ports", ()):
        if port.get("protocol") != "preopen":
            of_its_own = (port["name"], port.get("protocol", "http"))
            ports.setdefault(of_its_own, []).append(port["container_port"])
    for app in detail.main.spec.get("apps", ()):
        if app["protocol"] == "internal":
            continue
        numbers = ports.setdefault((app["name"], app["protocol"]), [])
        if app["port"] not in numbers:
            numbers.append(app["port"])
    # Clients take a key that is there, even a null one, for something the app has to say.
    return [
        {"name": name, "protocol": protocol, "ports": numbers}
        for (name, protocol), numbers in ports.items()
    ]


def created(result: Created, status: str | None = None) -> dict[str, Any]:
    """The answer to ``POST /session``; clients read one or the other spelling of the ports."""
    detail = result.detail
    ports = service_ports(detail)
    return {
        "sessionId": str(detail.session.id),
        "sessionName": detail.session.name,
        "status": status or backendai_status(detail.status),
        "servicePorts": ports,
        "service_ports": ports,
        "created": result.created,
    }


def _json_text(value: object) -> str:
    return msgspec.json.encode(value).decode()


def age(detail: SessionDetail, now: dt.datetime) -> dt.timedelta:
    """How long a session has existed, or did."""
    return (detail.session.terminated_at or now) - detail.session.created_at


def session_info(
    detail: SessionDetail, now: dt.datetime, live: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The answer to ``GET /session/{s}``; ``live`` are the main kernel's newest measures."""
    session, kernel = detail.session, detail.main
    requested, occupied = slots_text(session.requested_slots), slots_text(detail.occupied)
    registry, _, _ = session.image.rpartition("/")
    return {
        "sessionId": str(session.id),
        "sessionName": session.name,
        "sessionType": session.type,
        "domainName": session.domain,
        "groupId": str(session.project_id),
        "groupName": detail.project,
        "userId": str(session.owner_id),
        "userEmail": detail.owner_email,
        "lang": session.image,
        "image": session.image,
        "architecture": session.architecture,
        "registry": registry,
        "tag": session.tag,
        "resourceGroup": session.resource_group,
        "containerId": kernel.container_id,
        "occupiedSlots": _json_text(occupied),
        "occupyingSlots": _json_text(occupied),
        "requestedSlots": _json_text(requested),
        "occupiedShares": _json_text({}),
        "environ": _json_text(detail.environ),
        "resourceOpts": _json_text(session.resource_opts),
        "status": backendai_status(session.status),
        "statusInfo": session.status_info,
        "statusData": session.status_data,
        "age": int(age(detail, now).total_seconds() * 1000),
        "creationTime": session.created_at.isoformat(),
        "terminationTime": session.terminated_at.isoformat() if session.terminated_at else None,
        "numQueriesExecuted": 0,
        "lastStat": live or kernel.last_stat or None,
        "idleChecks": idle_checks(session, now),
        "servicePorts": service_ports(detail),
        "clusterMode": session.cluster_mode,
        "clusterSize": session.cluster_size,
        "containers": [_container(each) for each in detail.kernels],
        "perijove": {
            **_own_facts(detail),
            "ends_in": ends_in(session, now),
            "warning": idle_warning(session, now),
        },
    }


def idle_warning(session: SessionRow, now: dt.datetime) -> dict[str, Any] | None:
    """What its owner was warned of: ``{"check", "message", "ends_in"}``."""
    return warning(session.idle, now) if session.status in RUNNING else None


def idle_checks(session: SessionRow, now: dt.datetime) -> dict[str, Any] | None:
    """Time left by checker, in Backend.AI's shape; null when it does not run."""
    return shown(session.idle, now) if session.status in RUNNING else None


def ends_in(session: SessionRow, now: dt.datetime) -> float | None:
    """Seconds until the first of its checks would end it."""
    left = (each["remaining"] for each in (idle_checks(session, now) or {}).values())
    return min(left, default=None)


def extended(session: SessionRow, now: dt.datetime) -> dict[str, Any]:
    """The answer to ``POST /session/{s}/extend``."""
    return {
        "ends_in": ends_in(session, now),
        "extensions": (session.idle or {}).get("extended", 0),
        "ends_at": session.ends_at,
        "idleChecks": idle_checks(session, now),
    }


def _container(kernel: KernelRow) -> dict[str, Any]:
    """A container of a session, under the names of Backend.AI's GraphQL type; agents for superadmins."""
    return {
        "id": str(kernel.id),
        "cluster_role": kernel.cluster_role,
        "cluster_idx": kernel.cluster_index,
        "local_rank": rank_of(kernel),
        "cluster_hostname": kernel.hostname,
        "status": backendai_status(kernel.status),
        "status_info": kernel.status_info,
        "agent": kernel.agent_id,
        "container_id": kernel.container_id,
        "image": kernel.image,
        "occupied_slots": slots_text({slot: int(n) for slot, n in kernel.slots.items()}),
        "exit_code": kernel.exit_code,
        "created_at": kernel.created_at,
        "started_at": kernel.started_at,
        "terminated_at": kernel.terminated_at,
    }


def _own_facts(detail: SessionDetail) -> dict[str, Any]:
    """What the session's own JupyterLab shows besides Backend.AI's fields."""
    slots = dict(detail.occupied) or dict(detail.session.requested_slots)
    return {
        "owner": detail.owner,
        "message": message(detail),
        "resources": {slot: human_amount(slot, slots[slot]) for slot in sorted(slots)},
    }


def attempt(row: RunRow) -> dict[str, Any]:
    """An ended run in ``GET /session/{s}/attempts``."""
    return {
        "attempt": row.attempt,
        "run": row.epoch,
        "cause": row.cause,
        "message": row.message,
        "exit_code": row.exit_code,
        "started_at": row.started_at,
        "ended_at": row.ended_at,
    }


def match(detail: SessionDetail) -> dict[str, str]:
    """A session among the matches of a prefix."""
    session = detail.session
    return {
        "id": str(session.id),
        "name": session.name,
        "status": backendai_status(session.status),
    }


def destroyed(detail: SessionDetail) -> dict[str, Any]:
    """The answer to ``DELETE /session/{s}``."""
    status = "cancelled" if detail.status is Status.CANCELLED else "terminated"
    return {"stats": {"status": status}}


def status_history(rows: Iterable[HistoryRow]) -> dict[str, str]:
    """When the session reached each status (the last time), under both spellings that clients look for."""
    told: dict[str, str] = {}
    for row in rows:
        if row.kind == "session" and row.from_status != row.to_status:
            for name in (row.to_status, row.to_status.lower()):
                told[name] = row.at.isoformat()
    return told


def tries(rows: Iterable[HistoryRow]) -> list[dict[str, Any]]:
    """How often a session was tried in vain, oldest first; alike ones that follow each other are one."""
    told: list[dict[str, Any]] = []
    for row in rows:
        if row.kind != ATTEMPT:
            continue
        last = told[-1] if told else None
        if last is not None and last["message"] == row.cause:
            last["count"] += row.data["attempts"]
            last["last_at"], last["steps"] = row.data["last_at"], row.data["steps"]
            continue
        told.append(
            {
                "message": row.cause,
                "count": row.data["attempts"],
                "first_at": row.data["first_at"],
                "last_at": row.data["last_at"],
                "steps": row.data["steps"],
            }
        )
    return told


def session(detail: SessionDetail, now: dt.datetime) -> dict[str, Any]:
    """A session in ``GET /sessions``; ``agent`` is there for superadmins only."""
    row, kernel = detail.session, detail.main
    slots = dict(detail.occupied) or dict(row.requested_slots)
    return {
        "id": str(row.id),
        "name": row.name,
        "type": row.type,
        "status": row.status,
        "target": row.target,
        "message": message(detail),
        "progress": percent(row.status),
        "owner": detail.owner,
        "project": detail.project,
        "resource_group": row.resource_group,
        "image": row.image,
        "architecture": row.architecture,
        "priority": row.priority,
        "tag": row.tag,
        "slots": slots_text(slots),
        "requested_slots": slots_text(row.requested_slots),
        "resources": slots_human(slots),
        "agent": kernel.agent_id,
        "server": row.origin.get("server"),
        "cluster_mode": row.cluster_mode,
        "cluster_size": row.cluster_size,
        "exit_code": kernel.exit_code,
        "result": row.result,
        "attempt": attempt_of(row),
        "service_ports": service_ports(detail),
        "created_at": row.created_at,
        "scheduled_at": row.scheduled_at,
        "started_at": row.started_at,
        "terminated_at": row.terminated_at,
        "age": round(age(detail, now).total_seconds(), 3),
        "unreachable_since": detail.unreachable_since,
        "ends_in": ends_in(row, now),
        "warning": idle_warning(row, now),
    }


def message(detail: SessionDetail) -> str:
    """Why the session is as it is: a sentence for its owner."""
    if detail.unreachable_since is None:
        return detail.session.status_info
    since = detail.unreachable_since.strftime("%H:%M UTC")
    return f"Its node has not been heard of since {since}; the session goes on there."


def share(found: Share) -> dict[str, Any]:
    """A factor of ``fair-share``; a cost without bound (of no weight) is null."""
    factor = found.factor
    return {
        "scope": factor.scope,
        "id": factor.scope_id,
        "name": found.name,
        "usage": factor.normalised,
        "weight": factor.weight,
        "cost": factor.cost if math.isfinite(factor.cost) else None,
        "factor": factor.factor,
    }


def why(
    detail: SessionDetail, verdict: Verdict | None = None, shares: Iterable[Share] = ()
) -> dict[str, Any]:
    """The scheduler's explanation; ``verdict`` is what a pass would do with it now, if it waits."""
    row = detail.session
    now = None
    if verdict is not None:
        fits, explained = verdict.would_fit, verdict.explanation
        now = {
            "verdict": verdict.verdict,
            "message": verdict.message,
            "starts_at": None if explained is None else explained.starts_at,
            "would_fit": None if fits is None else slots_text(fits),
        }
    return {
        "id": str(row.id),
        "name": row.name,
        "status": row.status,
        "message": message(detail),
        "scheduler": row.status_data.get("scheduler"),
        "now": now,
        "fair_share": [share(each) for each in shares],
        "data": row.status_data,
    }


def server(detail: SessionDetail) -> dict[str, Any]:
    """A session as one of the hub's servers."""
    row, kernel = detail.session, detail.main
    return {
        "id": str(row.id),
        "name": row.name,
        "status": row.status,
        "target": row.target,
        "message": message(detail),
        "progress": percent(row.status),
        "url": kernel.url if detail.status in RUNNING else None,
        "exit_code": kernel.exit_code,
        "server": row.origin.get("server", ""),
        "user": detail.owner,
    }


def step(event: ProgressEvent) -> dict[str, Any]:
    """Data of a progress event, or of the last one."""
    if event.end:
        return {
            "status": event.status,
            "message": event.message,
            "url": event.url,
            "exit_code": event.exit_code,
        }
    return {
        "id": event.id,
        "at": event.at,
        "status": event.status,
        "message": event.message,
        "progress": event.progress,
    }


def agent(view: AgentView) -> dict[str, Any]:
    """An agent for administrators."""
    return {
        "id": view.id,
        "resource_group": view.resource_group,
        "status": view.status,
        "schedulable": view.schedulable,
        "connected": view.connected,
        "architecture": view.architecture,
        "engine": view.engine,
        "version": view.version,
        "address": view.address,
        "first_contact": view.first_contact,
        "last_seen": view.last_seen,
        "lost_at": view.lost_at,
        "drain": view.drain,
        "unwell": view.unwell,
        "capacity": slots_text(view.capacity),
        "used": slots_text(view.used),
        "resources": {
            slot: {
                "used": human_amount(slot, view.used.get(slot, 0)),
                "capacity": human_amount(slot, amount),
                "ratio": round(view.used.get(slot, 0) / amount, 4) if amount else 0.0,
            }
            for slot, amount in sorted(view.capacity.items())
        },
        "devices": [_device(device) for device in view.devices],
        "images": list(view.images),
        "sessions": [
            {
                "id": str(each.session_id),
                "name": each.name,
                "owner": each.owner,
                "status": each.status,
                "slots": slots_text(each.slots),
            }
            for each in view.sessions
        ],
    }


def agent_token(row: AgentTokenRow) -> dict[str, Any]:
    """A token of agents for administrators, without the secret."""
    return {
        "id": str(row.id),
        "kind": row.kind,
        "agent": row.agent_id,
        "note": row.note,
        "created_at": row.created_at,
        "expires_at": row.expires_at,
        "used_at": row.used_at,
        "revoked_at": row.revoked_at,
    }


def _device(device: Mapping[str, Any]) -> dict[str, Any]:
    slot = device["slot"]
    amounts = {name: format_amount(slot, device[name]) for name in ("capacity", "used")}
    return {**device, **amounts}


def host(volume: str) -> str:
    """The name of a volume for clients."""
    return f"{PROXY}:{volume}"


def volume_of(text: str | None) -> str | None:
    """The volume that a client names, with or without the first half."""
    return text.removeprefix(f"{PROXY}:") if text else None


def folder_created(row: FolderRow, email: str) -> dict[str, Any]:
    """The answer to ``POST /folders``; every view of a folder has these fields."""
    return {
        "id": row.id.hex,
        "name": row.name,
        "quota_scope_id": f"user:{row.owner_id}",
        "host": host(row.volume),
        "usage_mode": row.usage_mode,
        "permission": row.permission,
        "max_size": None if row.quota_bytes is None else row.quota_bytes // 2**20,
        "creator": email,
        "ownership_type": row.ownership,
        "user": str(row.owner_id),
        "group": None,
        "cloneable": row.cloneable,
        "status": row.status,
    }


def folder(row: FolderRow, email: str) -> dict[str, Any]:
    """A folder in ``GET /folders``."""
    return {
        **folder_created(row, email),
        "created_at": row.created_at,
        "is_owner": True,
        "user_email": email,
        "group_name": None,
        "type": row.ownership,
        "max_files": 0,
        "cur_size": None,
    }


def folder_info(row: FolderRow, usage: Usage, *, is_owner: bool) -> dict[str, Any]:
    """The answer to ``GET /folders/{f}``; the absent project is the text that clients expect."""
    return {
        **folder_created(row, ""),
        "numFiles": usage.files,
        "num_files": usage.files,
        "used_bytes": usage.used_bytes,
        "cur_size": usage.used_bytes // 2**20,
        "created": row.created_at,
        "created_at": row.created_at,
        "last_used": row.last_used,
        "group": "None",
        "type": row.ownership,
        "is_owner": is_owner,
    }
