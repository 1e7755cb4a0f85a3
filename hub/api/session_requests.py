"""The body of a request for a session, in each spelling that Backend.AI's clients use."""

from __future__ import annotations

from dataclasses import dataclass

from hub.api.parameters import param
from spawner.sessions.requests import HubLaunch, NewSession


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose session is meant."""

    owner_access_key: str | None = param(
        "Access key of the owner.", default=None, names=("owner_access_key", "ownerAccessKey")
    )


@dataclass(frozen=True, slots=True)
class Container(Owner):
    """Which of its containers is meant."""

    kernel: str | None = param(
        "Id or host name (sub1) of one of its containers; the main one when left out.",
        default=None,
        names=("kernel_id", "kernelId"),
    )


@dataclass(frozen=True, slots=True)
class Launch:
    """The hub's extension of a session request."""

    hub: str = param("Id of the hub.", max_length=64)
    command: list[str] = param("Command of the main kernel.")
    port: int = param("Port that the command listens on.", minimum=1, maximum=65535)
    server: str = param("Name of the server; empty for the default one.", default="", max_length=64)


@dataclass(frozen=True, slots=True)
class Config:
    """What a session consists of."""

    mounts: list[str] = param("Folders to mount: name or name/path.", factory=list)
    mount_map: dict[str, str] = param(
        "Targets of mounts.", factory=dict, names=("mount_map", "mountMap")
    )
    environ: dict[str, str] = param("Environment variables.", factory=dict)
    resources: dict[str, object] = param("Amounts by slot, e.g. cpu and mem.", factory=dict)
    resource_opts: dict[str, object] = param(
        "Options such as shmem.", factory=dict, names=("resource_opts", "resourceOpts")
    )
    resource_group: str | None = param(
        "Resource group.", default=None, names=("scalingGroup", "scaling_group", "resource_group")
    )
    preopen_ports: list[object] = param(
        "Ports to open besides the image's own.",
        factory=list,
        names=("preopen_ports", "preopenPorts"),
    )
    agents: list[str] = param(
        "Agents to run on (superadmins).", factory=list, names=("agentList", "agent_list")
    )
    designation: str = param(
        "Whether it may run elsewhere too: strict or preferred.",
        default="strict",
        names=("agentSelectionPolicy", "agent_selection_policy"),
    )
    session_group: dict[str, object] | None = param(
        "Sessions to be spread or packed: name, rule (spread, pack), strict.",
        default=None,
        names=("sessionGroup", "session_group"),
    )


@dataclass(frozen=True, slots=True)
class Creation:
    """Parameters of ``POST /session``."""

    image: str = param("Image name or alias.", names=("image", "lang"), max_length=255)
    name: str = param(
        "Name, unique among the owner's live sessions.",
        names=("name", "session_name", "clientSessionToken"),
        max_length=200,
    )
    type: str = param(
        "interactive, batch, inference or system.",
        default="interactive",
        names=("type", "sessionType"),
    )
    domain: str | None = param(
        "Domain.", default=None, names=("domain", "domainName", "domain_name")
    )
    project: str | None = param(
        "Project, by name.", default=None, names=("group", "groupName", "group_name")
    )
    architecture: str | None = param("Architecture.", default=None, names=("architecture", "arch"))
    cluster_size: int = param(
        "Number of containers.", default=1, names=("clusterSize", "cluster_size")
    )
    cluster_mode: str = param(
        "single-node or multi-node.", default="single-node", names=("clusterMode", "cluster_mode")
    )
    tag: str | None = param("Free text, for the owner.", default=None, max_length=64)
    priority: int | None = param("0 to 100; higher goes first.", default=None)
    enqueue_only: bool = param(
        "Answer at once instead of when it runs.",
        default=False,
        names=("enqueueOnly", "enqueue_only"),
    )
    max_wait: float = param(
        "Seconds to wait for the start; 0: no limit.",
        default=0,
        minimum=0,
        maximum=86400,
        names=("maxWaitSeconds", "max_wait_seconds"),
    )
    reuse: bool = param(
        "Take a live session of this name.",
        default=True,
        names=("reuseIfExists", "reuse_if_exists"),
    )
    startup_command: str | None = param(
        "Command of a batch, inference or system session.",
        default=None,
        names=("startupCommand", "startup_command"),
    )
    starts_at: str | None = param(
        "Not before this time.", default=None, names=("starts_at", "startsAt")
    )
    bootstrap_script: str | None = param(
        "Script to run first.", default=None, names=("bootstrap_script", "bootstrapScript")
    )
    dependencies: list[str] = param(
        "Batch sessions that must have succeeded, by name or id.",
        factory=list,
        names=("dependencies", "startsAfter"),
    )
    failed_dependencies: str = param(
        "When one of them fails: wait, cancel or ignore.",
        default="wait",
        names=("failedDependencies", "failed_dependencies"),
    )
    run_time: object = param(
        "Duration after which it is ended, such as 2h; it can then start before longer ones.",
        default=None,
        names=("runTime", "run_time", "batchTimeout", "batch_timeout"),
    )
    preemptible: bool = param(
        "Whether it may be ended for sessions of higher priority, where the group allows that.",
        default=True,
        names=("isPreemptible", "is_preemptible"),
    )
    callback_url: str | None = param(
        "URL told of changes.", default=None, names=("callback_url", "callbackUrl", "callbackURL")
    )
    retry_policy: dict[str, object] | None = param(
        "When a failed run is tried again: max_retries, causes, backoff, backoff_limit.",
        default=None,
        names=("retryPolicy", "retry_policy"),
    )
    service: dict[str, object] | None = param(
        "Of an inference session: port, protocol, start_timeout, health_check.", default=None
    )
    owner_access_key: str | None = param("Access key of the owner.", default=None)
    config: Config = param("Resources, mounts and environment.", factory=Config)
    launch: Launch | None = param("For the hub only.", default=None, names=("perijove",))

    def request(self) -> NewSession:
        """As the session service takes it."""
        config, launch = self.config, self.launch
        return NewSession(
            name=self.name,
            image=self.image,
            type=self.type,
            architecture=self.architecture,
            resource_group=config.resource_group,
            slots=config.resources,
            resource_opts=config.resource_opts,
            mounts=config.mounts,
            mount_map=config.mount_map,
            environ=config.environ,
            domain=self.domain,
            project=self.project,
            cluster_mode=self.cluster_mode,
            cluster_size=self.cluster_size,
            priority=self.priority,
            tag=self.tag,
            startup_command=self.startup_command,
            bootstrap_script=self.bootstrap_script,
            starts_at=self.starts_at,
            dependencies=self.dependencies,
            failed_parents=self.failed_dependencies,
            run_time=self.run_time,
            preemptible=self.preemptible,
            designation=config.designation,
            session_group=config.session_group,
            retry_policy=self.retry_policy,
            service=self.service,
            callback_url=self.callback_url,
            preopen_ports=config.preopen_ports,
            designated_agents=config.agents,
            reuse_if_exists=self.reuse,
            hub=None
            if launch is None
            else HubLaunch(launch.hub, launch.server, tuple(launch.command), launch.port),
        )
