"""The conversation between manager and agent: JSON text frames over one WebSocket that the agent dials.

The agent opens ``<manager>/agents/connect`` with ``Authorization: Bearer <agent token>`` and sends
``Hello``. The manager answers ``Welcome`` and, then and whenever something changes (and as a slow
tick every ``sync_interval``), ``Wanted``: the *whole* set of kernels that this agent should run. The
agent makes reality match and sends ``Report`` for each kernel whose state changed, and a whole
``Report`` after each ``Hello``, which tells again what was not acknowledged. ``Call``/``Answer`` carry
questions of the manager (logs). A frame is one of these structs with its ``kind``.

Fencing: a kernel is named by id *and* epoch. The agent never starts an epoch lower than the highest
it has seen for that kernel, and the manager ignores reports of any epoch but the current one.
"""

from __future__ import annotations

from typing import Any

import msgspec

MAX_FRAME_BYTES = 4 * 1024 * 1024
PROTOCOL_VERSION = 1
UNWELL = "unwell"
"""Key among an agent's features: why its engine can be given nothing now; absent while it is well."""


class DeviceReport(msgspec.Struct, frozen=True):
    """One slot of one device that the agent offers, in base units."""

    slot: str
    device_id: str
    capacity: int
    """What may be given out: nothing of a masked or broken device, never what is reserved."""
    numa_node: int | None = None
    model: str = ""
    attributes: dict[str, Any] = msgspec.field(default_factory=dict)
    links: tuple[str, ...] = ()
    """Ids of devices of the same slot with a fast link to this one (NVLink and the like)."""
    masked: bool = False
    """Present, but not this agent's to give out."""
    reserved: int = 0
    """What is kept for the node itself, beside ``capacity``."""
    fault: str = ""
    """Why it is not given out though it is there: it is broken."""


class SlotMetadata(msgspec.Struct, frozen=True):
    """How people read a slot; for the manager, which may not know the plug-in that offers it."""

    name: str
    human_name: str
    description: str
    unit: str
    """Singular unit for sentences: ``CPU``, ``GPU``."""
    display_unit: str
    icon: str
    type: str = "count"
    """``count``, ``bytes`` or ``unique`` (``spawner.scheduler.slots``)."""
    quantum: int = 1_000_000
    """Amounts are multiples of this many base units."""
    binary: bool = False
    """Whether user interfaces divide by powers of 1024."""
    round_length: int = 0
    """Decimals that user interfaces show."""


class ImageReport(msgspec.Struct, frozen=True):
    """An image present on the agent."""

    name: str
    architecture: str
    digest: str | None
    size_bytes: int
    labels: dict[str, str]


class Share(msgspec.Struct, frozen=True):
    """An allocated amount of one slot of one device."""

    slot: str
    device_id: str
    amount: int


class Mount(msgspec.Struct, frozen=True):
    """A vfolder to mount: the agent resolves ``path`` beneath its own root of ``volume``."""

    volume: str
    path: str
    target: str
    read_only: bool = False


class Port(msgspec.Struct, frozen=True):
    """A port inside the kernel that something of the session listens on."""

    name: str
    container_port: int
    protocol: str = "http"
    published: bool = False
    """The proxy connects to it by itself; all other ports are reached through the agent's relays only."""


class File(msgspec.Struct, frozen=True):
    """A file of the platform that a kernel finds beneath ``/home/config``, read-only.

    ``path`` is relative to that folder (``ssh/id_ed25519``, ``dotfiles/.bashrc``); only the kernel's
    own user can read it.
    """

    path: str
    content: str
    mode: int = 0o600


class Network(msgspec.Struct, frozen=True):
    """A network of one session: its kernels reach each other by host name, and nobody else does.

    ``driver`` is ``bridge`` (all kernels on one node) or ``overlay`` (nodes of one swarm).
    """

    name: str
    session_id: str
    driver: str = "bridge"


class Cluster(msgspec.Struct, frozen=True):
    """A kernel's place among the kernels of its session."""

    mode: str
    size: int
    role: str
    index: int
    hostnames: tuple[str, ...]
    """Of all kernels, the main one first."""
    network: Network | None = None


class App(msgspec.Struct, frozen=True):
    """A program of a kernel that is started when somebody opens it first; it travels in the call."""

    name: str
    protocol: str
    """``http``, ``tcp`` and so on; started by the agent for each connection: ``pty``, a shell, and ``exec``, a
    program that the connection names."""
    port: int
    """Port inside the kernel; 0 with ``pty`` and ``exec``."""
    argv: tuple[str, ...] = ()
    """Empty: it listens already."""
    environ: dict[str, str] = msgspec.field(default_factory=dict)


class ImagePull(msgspec.Struct, frozen=True):
    """How an image is got: credentials of its registry, and the digest that it must have."""

    username: str = ""
    password: str = ""
    digest: str | None = None
    """``sha256:...`` of the manifest; None: whatever the registry gives."""


class HealthCheck(msgspec.Struct, frozen=True):
    """How an inference kernel is asked whether it serves: an HTTP GET of ``path`` on its main port."""

    path: str = "/"
    interval: float = 10.0
    timeout: float = 5.0
    max_failures: int = 3
    expected_status: int = 200


class KernelSpec(msgspec.Struct, frozen=True):
    """All an agent needs to run one kernel."""

    kernel_id: str
    session_id: str
    epoch: int
    session_name: str
    owner: str
    hostname: str
    image: str
    command: tuple[str, ...]
    """Empty: the image's own (label ``ai.perijove.command``)."""
    environ: dict[str, str]
    mounts: tuple[Mount, ...]
    ports: tuple[Port, ...]
    """The first one is the main port; the kernel runs once it accepts connections."""
    shares: tuple[Share, ...]
    shm_bytes: int
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    start_timeout: float = 300.0
    session_type: str = "interactive"
    cluster: Cluster | None = None
    """None: a session of one container."""
    files: tuple[File, ...] = ()
    bootstrap: str = ""
    """Path beneath ``/home/config`` of a script that runs before the command; empty: none."""
    seccomp: str | None = None
    """Name of a seccomp profile; None: the engine's default."""
    health: HealthCheck | None = None
    pull: ImagePull | None = None
    """None: anonymously, whatever comes."""
    lease: float | None = None
    """Seconds without a word of the manager after which the node ends the run: it may go on elsewhere."""


REFUSED = "refused"
"""Of a run that was never begun: what it was placed on does not fit the node as it is now."""


class KernelReport(msgspec.Struct, frozen=True):
    """What an agent sees of one kernel.

    ``status`` is PREPARING (image, mounts), CREATING (container), RUNNING, TERMINATING or
    TERMINATED. ``progress`` is a sentence for the user. ``failure`` names why it ended when it was
    not asked to: ``create-failed``, ``exited``, ``oom-killed``, ``removed``, ``engine-restarted``,
    ``start-timeout``, ``fenced`` (its lease ended, see ``KernelSpec``), ``refused`` (see ``REFUSED``).
    """

    kernel_id: str
    session_id: str
    epoch: int
    status: str
    progress: str = ""
    container_id: str | None = None
    url: str | None = None
    ports: tuple[dict[str, Any], ...] = ()
    """``{"name", "protocol", "container_port", "host", "port"}`` each."""
    shares: tuple[Share, ...] = ()
    exit_code: int | None = None
    failure: str | None = None
    log_tail: str = ""
    started_at: float | None = None
    ended_at: float | None = None
    """Of a run that ended: when, if that is known; the agent may have been away."""
    healthy: bool | None = None
    """Of kernels with a health check: whether the last checks passed."""
    log: bytes = b""
    """Of a run that ended: its output compressed by zlib (``spawner.agent.logs``)."""
    last_stat: dict[str, Any] = msgspec.field(default_factory=dict)
    """Of a kernel that ended: what was measured last, by name of the measure."""


class Message(msgspec.Struct, frozen=True, tag_field="kind"):
    """Base of all frames."""


class Hello(Message, frozen=True, tag="hello"):
    """First frame of the agent."""

    protocol: int
    agent_id: str
    resource_group: str
    version: str
    architecture: str
    engine: str
    address: str
    devices: tuple[DeviceReport, ...]
    images: tuple[ImageReport, ...]
    max_containers: int | None = None
    features: dict[str, Any] = msgspec.field(default_factory=dict)
    """What this node can do besides (``AgentRow.features``): ``clusters`` whether it connects the containers
    of a session; ``unwell`` (``UNWELL``); ``swarm`` the node's place among Docker hosts: ``{"node", "control",
    "managers": [node]}``."""
    slots: tuple[SlotMetadata, ...] = ()
    """Of all slots that ``devices`` offer."""


class Welcome(Message, frozen=True, tag="welcome"):
    """The manager's answer to ``Hello``."""

    heartbeat_interval: float
    sync_interval: float
    credential: str | None = None
    """For an agent that came with a join token: what it dials with from now on."""
    deployment: str = ""
    """Id of the deployment, for what an agent makes beyond its own node."""


class Wanted(Message, frozen=True, tag="wanted"):
    """The whole set of kernels that the agent should run; anything else of ours it ends.

    ``drain`` lists kernels (id, epoch) that should end; a kernel of ours in neither list is an
    orphan and ends after the agent's grace period.
    """

    kernels: tuple[KernelSpec, ...]
    drain: tuple[tuple[str, int], ...]
    networks: tuple[Network, ...] = ()
    """Networks of sessions that this agent should make and keep; others of ours it removes once unused."""


class Report(Message, frozen=True, tag="report"):
    """Kernels as the agent sees them; ``whole`` means that there are no others."""

    sequence: int
    kernels: tuple[KernelReport, ...]
    whole: bool = False


class Ack(Message, frozen=True, tag="ack"):
    """The manager has durably recorded reports up to ``sequence``."""

    sequence: int


class Measures(Message, frozen=True, tag="measures"):
    """What the agent measured; never acknowledged, the next one replaces it.

    Keys are names of measures (``cpu_util``, ``mem``, ...); ``spawner.agent.measures`` has their shape.
    """

    at: float
    node: dict[str, Any]
    devices: dict[str, Any]
    kernels: dict[str, Any]
    """By kernel id."""


class Heartbeat(Message, frozen=True, tag="heartbeat"):
    """The agent lives; ``images``, ``devices`` (with ``slots``) and ``features`` only when they changed."""

    images: tuple[ImageReport, ...] | None = None
    devices: tuple[DeviceReport, ...] | None = None
    features: dict[str, Any] | None = None
    slots: tuple[SlotMetadata, ...] = ()


class Call(Message, frozen=True, tag="call"):
    """A question of the manager; ``spawner.agent.calls`` has the methods with their params."""

    call_id: int
    method: str
    params: dict[str, Any]


class Answer(Message, frozen=True, tag="answer"):
    """The agent's answer to a ``Call``."""

    call_id: int
    value: Any = None
    error: str | None = None


class DrivenKernel(msgspec.Struct, frozen=True):
    """A run that the agent drives, as it last reported it."""

    kernel_id: str
    epoch: int
    status: str


class FoundRun(msgspec.Struct, frozen=True):
    """A run that the engine has."""

    kernel_id: str
    epoch: int
    phase: str
    """``created``, ``running`` or ``exited``."""
    native_id: str
    shares: tuple[Share, ...]
    ports: dict[str, int]
    """Ports of the node by ports inside."""


class Inventory(msgspec.Struct, frozen=True):
    """What is on a node; the answer to the call ``inventory``."""

    kernels: tuple[DrivenKernel, ...]
    runs: tuple[FoundRun, ...]
    networks: tuple[str, ...]
    """Names of networks of sessions."""
    apps: tuple[str, ...]
    """Ids of kernels with an open app."""
    leftovers: tuple[str, ...]
    """Sentences (``Engine.leftovers``)."""


AnyMessage = Hello | Welcome | Wanted | Report | Ack | Measures | Heartbeat | Call | Answer

_ENCODER = msgspec.json.Encoder()
_DECODER: msgspec.json.Decoder[AnyMessage] = msgspec.json.Decoder(AnyMessage)


class ProtocolError(ValueError):
    """A frame that cannot be understood; the connection is closed with its sentence."""


def encode(message: Message) -> str:
    """One text frame."""
    return _ENCODER.encode(message).decode()


def decode(frame: str | bytes) -> AnyMessage:
    """The message of a frame. Raises ``ProtocolError`` naming the field that is wrong."""
    if len(frame) > MAX_FRAME_BYTES:
        raise ProtocolError(f"frame of {len(frame)} bytes: at most {MAX_FRAME_BYTES} are allowed")
    try:
        return _DECODER.decode(frame)
    except msgspec.MsgspecError as error:
        raise ProtocolError(f"frame not understood: {error}") from error
