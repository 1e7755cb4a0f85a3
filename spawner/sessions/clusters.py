"""Sessions of several containers: names, rows, keys, environment, files and the network between them.

The main container is ``main1``, the others ``sub1``, ``sub2``, ...; ranks count from 0 in that order.
"""

from __future__ import annotations

import copy
import datetime as dt
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from authenticator.sshkeys import new_pair
from spawner.agent.protocol import Cluster, File, Network
from spawner.sessions.limits import LIVE
from spawner.sessions.states import Status
from spawner.sessions.swarms import networks_of
from spawner.sessions.tables import AgentRow, DeploymentRow, KernelRow, SessionRow
from store.database import Store
from store.making import make_missing

MAIN, SUB = "main", "sub"
SSH_PORT = 2200
TORCH_PORT = 29500
DASK_PORT = 8786
INTERFACE = "eth0"
"""The network of the session is the only one that a container of it has."""
IDLE = ["sleep", "infinity"]
"""What runs in the containers besides the main one until somebody starts something there."""
CONFIG = "/home/config"
NETWORK = "network"
"""Where a kernel's ``spec`` keeps the network of its present run."""
CPU = 1_000_000


def hostnames(size: int) -> tuple[str, ...]:
    """Names of the containers, the main one first."""
    return ("main1", *(f"sub{number}" for number in range(1, size)))


def kernel_rows(
    session: SessionRow, spec: Mapping[str, Any], slots: Mapping[str, int], now: dt.datetime
) -> list[KernelRow]:
    """The kernels of a new session: each gets ``slots``; only the main one has ports and the command."""
    rows: list[KernelRow] = []
    for rank, hostname in enumerate(hostnames(session.cluster_size)):
        mine = copy.deepcopy(dict(spec))
        if rank:
            mine |= {"command": IDLE, "ports": []}
            mine.pop("health", None)  # of the main one's port
        rows.append(
            KernelRow(
                id=uuid.uuid4(),
                session_id=session.id,
                cluster_role=SUB if rank else MAIN,
                cluster_index=rank or 1,
                hostname=hostname,
                epoch=0,
                status=Status.PENDING.value,
                image=session.image,
                slots=dict(slots),
                spec=mine,
                ports=[],
                status_info="",
                last_stat={},
                last_log="",
                created_at=now,
            )
        )
    return rows


def new_keys() -> dict[str, str]:
    """A key pair of the session's user and one of its hosts, as OpenSSH writes them."""
    keys: dict[str, str] = {}
    for name in ("user", "host"):
        keys[f"{name}_public"], keys[name] = new_pair("")
    return keys


def rank_of(kernel: KernelRow) -> int:
    """Its place among the kernels of its session, from 0."""
    return 0 if kernel.cluster_role == MAIN else kernel.cluster_index


def environ(session: SessionRow, kernel: KernelRow, own: Mapping[str, str]) -> dict[str, str]:
    """``own`` with what programs read about their place; conventions of others yield to ``own``."""
    size, rank = session.cluster_size, rank_of(kernel)
    place = {
        "SIZE": str(size),
        "MODE": session.cluster_mode,
        "HOSTS": ",".join(hostnames(size)),
        "HOST": kernel.hostname,
        "ROLE": kernel.cluster_role,
        "IDX": str(kernel.cluster_index),
        "LOCAL_RANK": str(rank),
        "REPLICAS": f"{MAIN}:1,{SUB}:{size - 1}" if size > 1 else f"{MAIN}:1",
    }
    ours = {
        f"{prefix}_CLUSTER_{name}": text
        for prefix in ("PERIJOVE", "BACKENDAI")
        for name, text in place.items()
    }
    return {**(_conventions(size, rank) if size > 1 else {}), **own, **ours}


def _conventions(size: int, rank: int) -> dict[str, str]:
    """What torch.distributed (``env://``), Open MPI, NCCL, Gloo and Dask read."""
    return {
        "WORLD_SIZE": str(size),
        "WORLD_RANK": str(rank),
        "RANK": str(rank),
        "LOCAL_RANK": "0",  # of processes in one container: torch picks the device by it
        "MASTER_ADDR": "main1",
        "MASTER_PORT": str(TORCH_PORT),
        "NCCL_SOCKET_IFNAME": INTERFACE,
        "GLOO_SOCKET_IFNAME": INTERFACE,
        "OMPI_MCA_orte_default_hostfile": f"{CONFIG}/hostfile",
        "PRTE_MCA_prte_default_hostfile": f"{CONFIG}/hostfile",
        "OMPI_MCA_plm_rsh_args": f"-F {CONFIG}/ssh/config",
        "PRTE_MCA_plm_ssh_args": f"-F {CONFIG}/ssh/config",
        "OMPI_MCA_btl_tcp_if_include": INTERFACE,
        "OMPI_MCA_oob_tcp_if_include": INTERFACE,
        "OMPI_MCA_btl_vader_single_copy_mechanism": "none",  # needs a right that containers lack
        "DASK_SCHEDULER_ADDRESS": f"tcp://main1:{DASK_PORT}",
    }


def files(session: SessionRow, kernel: KernelRow) -> tuple[File, ...]:
    """Files of a cluster's kernel beneath ``/home/config``: keys, SSH's settings, a hostfile."""
    keys = session.cluster_keys
    if session.cluster_size < 2 or not keys:
        return ()
    names = hostnames(session.cluster_size)
    slots = max(1, int(kernel.slots.get("cpu", 0)) // CPU)
    known = ",".join(f"[{name}]:{SSH_PORT}" for name in names)
    contents = {
        "hostfile": "".join(f"{name} slots={slots}\n" for name in names),
        "ssh/id_cluster": keys["user"],
        "ssh/id_cluster.pub": f"{keys['user_public']}\n",
        "ssh/authorized_keys": f"{keys['user_public']}\n",
        "ssh/ssh_host_ed25519_key": keys["host"],
        "ssh/known_hosts": f"{known} {keys['host_public']}\n",
        "ssh/config": _ssh_config(names),
        "ssh/sshd_config": SSHD_CONFIG,
    }
    return tuple(File(path, content) for path, content in contents.items())


def _ssh_config(names: Iterable[str]) -> str:
    return f"""Host {" ".join(names)}
    Port {SSH_PORT}
    IdentityFile {CONFIG}/ssh/id_cluster
    IdentitiesOnly yes
    UserKnownHostsFile {CONFIG}/ssh/known_hosts
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
    LogLevel ERROR
"""


SSHD_CONFIG = f"""Port {SSH_PORT}
HostKey {CONFIG}/ssh/ssh_host_ed25519_key
AuthorizedKeysFile {CONFIG}/ssh/authorized_keys
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PrintMotd no
X11Forwarding no
MaxStartups 200
MaxSessions 200
Subsystem sftp internal-sftp
"""


def connect(session: SessionRow, kernels: Iterable[KernelRow]) -> None:
    """Choose the network of a placed session: its kernels keep it for this run.

    The name has the main kernel's epoch, so that no run meets a network of an earlier one: nodes that all left
    an overlay and are back at once tell each other the names in it only after half a minute, now and then.
    """
    if session.cluster_size < 2:
        return
    rows = list(kernels)
    main = next(kernel for kernel in rows if kernel.cluster_role == MAIN)
    driver = "bridge" if len({kernel.agent_id for kernel in rows}) == 1 else "overlay"
    name = f"perijove-{session.id}-{main.epoch}"
    for kernel in rows:
        kernel.spec = {**kernel.spec, NETWORK: {"name": name, "driver": driver}}


def cluster_of(session: SessionRow, kernel: KernelRow) -> Cluster | None:
    """A kernel's place, for its agent."""
    if session.cluster_size < 2:
        return None
    network = kernel.spec.get(NETWORK)
    return Cluster(
        mode=session.cluster_mode,
        size=session.cluster_size,
        role=kernel.cluster_role,
        index=kernel.cluster_index,
        hostnames=hostnames(session.cluster_size),
        network=None if network is None else _network(session.id, network),
    )


async def wanted_networks(db: AsyncSession, agent_id: str) -> tuple[Network, ...]:
    """Networks that an agent should make and keep, by name.

    A bridge belongs to the agent of its kernels; an overlay to every agent that controls the swarm, so
    that any of them can be gone.
    """
    rows = await db.execute(
        select(SessionRow.id, KernelRow.agent_id, KernelRow.spec)
        .join(KernelRow, KernelRow.session_id == SessionRow.id)
        .where(SessionRow.cluster_size > 1, KernelRow.status.in_(LIVE))
    )
    found: dict[str, Network] = {}
    swarms: Mapping[str, frozenset[str]] | None = None
    for session_id, host, spec in rows:
        network = spec.get(NETWORK)
        if network is None or host is None:
            continue
        if network["driver"] == "bridge":
            wanted = host == agent_id
        else:
            if swarms is None:
                swarms = await _controlled(db, agent_id)
            wanted = bool(swarms.get(host, frozenset()) & swarms.get(agent_id, frozenset()))
        if wanted:
            found[network["name"]] = _network(session_id, network)
    return tuple(found[name] for name in sorted(found))


async def _controlled(db: AsyncSession, agent_id: str) -> Mapping[str, frozenset[str]]:
    """Networks of all agents, if this one can make those beyond its node; else of none."""
    agents = list(await db.scalars(select(AgentRow)))
    mine = next((agent for agent in agents if agent.id == agent_id), None)
    swarm = (mine.features or {}).get("swarm") if mine is not None else None
    if not swarm or not swarm.get("control"):
        return {}
    beyond = networks_of(agents)
    return {host: frozenset(n for n in names if ":" in n) for host, names in beyond.items()}


def _network(session_id: uuid.UUID, kept: Mapping[str, str]) -> Network:
    return Network(kept["name"], str(session_id), kept["driver"])


async def deployment_id(store: Store, now: dt.datetime) -> str:
    """The id of this deployment, made when it is first asked for."""

    async def look(db: AsyncSession) -> uuid.UUID | None:
        return await db.scalar(select(DeploymentRow.id))

    async def make(db: AsyncSession) -> None:
        if await look(db) is None:
            db.add(DeploymentRow(name="this", id=uuid.uuid4(), created_at=now))
            await db.flush()

    found = await store.read(look)
    if found is None:
        await make_missing(store, make)
        found = await store.read(look)
    return str(found)
