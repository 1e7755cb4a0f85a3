"""Hosts as network namespaces: one switch between them, an engine in each, all gone in the end.

The switch is a bridge in a namespace of its own, so that no firewall rule of this machine concerns it. This
machine is on it too, with ``gateway`` as its address.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import docker
import psutil

from tests.integration.docker_engine import unavailable

NEEDED = ("dockerd", "ip", "iptables", "nsenter", "unshare")
PATIENCE = 60.0
ROOM = "3g"
"""The most that an engine's folder in memory may hold: it is written and removed much faster there than on a disk."""


def sh(*words: str, check: bool = True) -> str:
    """Run a command; its output."""
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert not check or done.returncode == 0, f"{' '.join(words)}: {done.stderr}{done.stdout}"
    return done.stdout


def cgroup_mounts() -> list[str]:
    """Commands that mount this machine's cgroup hierarchies again, below a fresh ``/sys``."""
    commands: list[str] = []
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, folder, kind, options, *_ = line.split()
        if kind == "cgroup":
            known = {"rw", "ro", "relatime", "nosuid", "nodev", "noexec"}
            wanted = ",".join(o for o in options.split(",") if o not in known)
            commands.append(f"mkdir -p {folder} && mount -t cgroup -o {wanted} cgroup {folder}")
        elif kind == "cgroup2":
            commands.append(f"mkdir -p {folder} && mount -t cgroup2 cgroup2 {folder}")
    return commands


class Host:
    """One namespace with an engine."""

    def __init__(self, name: str, folder: Path, address: str) -> None:
        self.name, self.folder, self.address = name, folder, address
        self.space = f"{folder.parent.name}-{name}"
        self.socket = f"unix://{folder}/docker.sock"
        self._engine: subprocess.Popen[bytes] | None = None
        self._holder: subprocess.Popen[bytes] | None = None
        """Keeps the mounts of the host while no engine runs."""

    @property
    def client(self) -> docker.DockerClient:
        """A client of its engine; close it."""
        return docker.DockerClient(base_url=self.socket, timeout=60)

    @property
    def holder(self) -> int:
        """Id of a process in its mount namespace."""
        assert self._holder is not None
        return self._holder.pid

    def inside(self, *words: str) -> list[str]:
        """A command line that runs in the namespace."""
        return ["nsenter", f"--net=/run/netns/{self.space}", *words]

    def plug_in(self, link: str, switch: str) -> None:
        """Make the namespace and its link to the switch."""
        sh("ip", "netns", "add", self.space)
        sh("ip", "link", "add", link, "netns", switch, "type", "veth",
           "peer", "name", "uplink", "netns", self.space)  # fmt: skip
        sh("ip", "-n", switch, "link", "set", link, "master", "switch", "up")
        sh("ip", "-n", self.space, "link", "set", "lo", "up")
        sh("ip", "-n", self.space, "addr", "add", f"{self.address}/24", "dev", "uplink")
        self.cable(connected=True)

    def cable(self, *, connected: bool) -> None:
        """Pull its cable, or put it back."""
        sh("ip", "-n", self.space, "link", "set", "uplink", "up" if connected else "down")

    @contextlib.contextmanager
    def lossy(self, part: float) -> Iterator[None]:
        """A part of all packets that come in is lost inside the block."""
        rule = ("INPUT", "-i", "uplink", "-m", "statistic", "--mode", "random",
                "--probability", str(part), "-j", "DROP")  # fmt: skip
        sh(*self.inside("iptables", "-w", "5", "-I", *rule))
        try:
            yield
        finally:
            sh(*self.inside("iptables", "-w", "5", "-D", *rule))

    @contextlib.contextmanager
    def slow(self, rate: str) -> Iterator[None]:
        """Inside the block no more than ``rate`` (``1mbit``) goes out, and no more comes in."""
        ends = ((self.space, "uplink"), (f"{self.folder.parent.name}-sw", f"to-{self.name}"))
        shape = ("root", "tbf", "rate", rate, "burst", "16kb", "latency", "400ms")
        for space, device in ends:
            sh("tc", "-n", space, "qdisc", "add", "dev", device, *shape)
        try:
            yield
        finally:
            for space, device in ends:
                sh("tc", "-n", space, "qdisc", "del", "dev", device, "root")

    @contextlib.contextmanager
    def cut(self, direction: str) -> Iterator[None]:
        """Nobody gets through inside the block: ``both ways``, or only not in (INPUT) or out (OUTPUT)."""
        rule = (direction, "-i" if direction == "INPUT" else "-o", "uplink", "-j", "DROP")
        if direction == "both ways":
            self.cable(connected=False)
        else:
            sh(*self.inside("iptables", "-w", "5", "-I", *rule))
        try:
            yield
        finally:
            if direction == "both ways":
                self.cable(connected=True)
            else:
                sh(*self.inside("iptables", "-w", "5", "-D", *rule))

    def start_engine(self, *options: str) -> None:
        """Begin, or begin again; ``await_engine`` waits until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        place = self.folder
        if self._holder is None:
            self._holder = self._hold(place / "mounted")
        for stale in (place / "pid", place / "run/containerd/containerd.pid"):
            stale.unlink(missing_ok=True)  # of an engine that was killed
        engine = [
            *("nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", "dockerd"),
            *("--data-root", f"{place}/data", "--exec-root", f"{place}/run"),
            *("--pidfile", f"{place}/pid", "-H", self.socket, "--cgroup-parent", f"/{self.space}"),
            *("--storage-driver", "overlay2", *options),
        ]
        with (place / "dockerd.log").open("ab") as log:
            self._engine = subprocess.Popen(
                self.inside(*engine), stdout=log, stderr=log, start_new_session=True
            )

    def _hold(self, mounted: Path) -> subprocess.Popen[bytes]:
        """A process in the host's own mount namespace, once that has a fresh ``/sys``."""
        mounts = ["mount --make-rprivate /", "mount -t sysfs sysfs /sys",
                  "mount -t tmpfs tmpfs /sys/fs/cgroup", *cgroup_mounts()]  # fmt: skip
        script = " && ".join([*mounts, f"touch {mounted}", "exec sleep infinity"])
        holder = subprocess.Popen(self.inside("unshare", "-m", "sh", "-c", script))
        deadline = time.monotonic() + PATIENCE
        while not mounted.exists():
            assert holder.poll() is None, f"the mounts of {self.name} cannot be made"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return holder

    def signal_engine(self, number: signal.Signals) -> None:
        """Send the engine a signal; wait for its end if it is one that ends it."""
        assert self._engine is not None
        self._engine.send_signal(number)
        if number in (signal.SIGTERM, signal.SIGKILL):
            self._engine.wait(PATIENCE)

    def await_engine(self) -> None:
        """Until the engine answers."""
        deadline = time.monotonic() + PATIENCE
        ask = ("docker", "-H", self.socket, "version", "-f", "{{.Server.Version}}")
        while not sh(*ask, check=False).strip()[:1].isdigit():
            ended = self._engine is None or self._engine.poll() is not None
            if ended or time.monotonic() > deadline:
                log = (self.folder / "dockerd.log").read_text()[-3000:]
                raise AssertionError(f"the engine of {self.name} does not start:\n{log}")
            time.sleep(0.1)

    def remove(self) -> None:
        """End everything of the host; nothing of it stays."""
        if self._engine is not None and self._engine.poll() is None:
            ids = sh("docker", "-H", self.socket, "ps", "-aq", check=False).split()
            if ids:
                sh("docker", "-H", self.socket, "rm", "-f", *ids, check=False)
            self._engine.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._engine.wait(20)
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in sh("ip", "netns", "pids", self.space, check=False).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), number)
        for process in (self._engine, self._holder):
            if process is not None:
                process.kill()
                process.wait(20)
        sh("ip", "netns", "del", self.space, check=False)
        for folder in Path("/sys/fs/cgroup").glob(f"*/{self.space}"):
            for below in sorted(folder.rglob("*/"), key=lambda p: -len(p.parts)):
                with contextlib.suppress(OSError):
                    below.rmdir()
            with contextlib.suppress(OSError):
                folder.rmdir()


class Hosts:
    """Some hosts on one switch."""

    def __init__(self, folder: Path, count: int, disks: Mapping[str, str]) -> None:
        self.folder, self.switch, self._disks = folder, f"{folder.name}-sw", dict(disks)
        self.net = f"10.213.{os.getpid() % 250}"
        self.gateway = f"{self.net}.254"
        self.all = tuple(
            Host(f"h{n}", folder / f"h{n}", f"{self.net}.{n}") for n in range(1, count + 1)
        )
        if psutil.virtual_memory().available > count * (4 << 30):
            self._disks = {f"{host.name}/data": ROOM for host in self.all} | self._disks

    def start(self, images: Sequence[str]) -> None:
        """Namespaces, engines, a swarm of several whose only manager is the first host, and images."""
        for place, size in self._disks.items():
            (self.folder / place).mkdir(parents=True)
            sh("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(self.folder / place))
        sh("ip", "netns", "add", self.switch)
        sh("ip", "-n", self.switch, "link", "add", "switch", "type", "bridge")
        sh("ip", "-n", self.switch, "link", "set", "switch", "up")
        outside = self.folder.name[:12]
        sh("ip", "link", "add", outside, "type", "veth", "peer", "name", "outside",
           "netns", self.switch)  # fmt: skip
        sh("ip", "-n", self.switch, "link", "set", "outside", "master", "switch", "up")
        sh("ip", "addr", "add", f"{self.gateway}/24", "dev", outside)
        sh("ip", "link", "set", outside, "up")
        for host in self.all:
            host.plug_in(f"to-{host.name}", self.switch)
            host.start_engine()
        for host in self.all:
            host.await_engine()
        self._load(images)
        first, *others = self.all
        if not others:
            return
        sh("docker", "-H", first.socket, "swarm", "init", "--advertise-addr", first.address)
        token = sh("docker", "-H", first.socket, "swarm", "join-token", "-q", "worker").strip()
        for host in others:
            sh("docker", "-H", host.socket, "swarm", "join", "--advertise-addr", host.address,
               "--token", token, f"{first.address}:2377")  # fmt: skip

    def _load(self, images: Sequence[str]) -> None:
        archive = self.folder / "images.tar"
        sh("docker", "save", "-o", str(archive), *images)
        loads = [
            subprocess.Popen(["docker", "-H", h.socket, "load", "-q", "-i", str(archive)],
                             stdout=subprocess.DEVNULL)
            for h in self.all
        ]  # fmt: skip
        assert [load.wait(120) for load in loads] == [0] * len(loads)
        archive.unlink()

    def remove(self) -> None:
        """Everything."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(Host.remove, self.all))
        sh("ip", "netns", "del", self.switch, check=False)
        sh("ip", "link", "del", self.folder.name[:12], check=False)
        for place in self._disks:
            sh("umount", "-l", str(self.folder / place), check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def running_hosts(
    images: Sequence[str], count: int = 3, disks: Mapping[str, str] | None = None
) -> Iterator[Hosts]:
    """Hosts inside the block; ``disks`` are folders of theirs that are disks of their own, with their sizes."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        unavailable(f"several hosts need root and {', '.join(missing) or 'nothing else'}")
    hosts = Hosts(Path(tempfile.mkdtemp(prefix="pjc", dir="/tmp")), count, disks or {})
    try:
        hosts.start(images)
        yield hosts
    finally:
        hosts.remove()
