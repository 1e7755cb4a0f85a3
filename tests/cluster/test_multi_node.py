"""Sessions over three hosts: SSH, a real collective, a partition, loss and rejoin, and nothing left behind."""

from __future__ import annotations

import contextlib
import json
import re
import signal
from collections.abc import Iterator

import pytest

from tests.cluster.hosts import Host
from tests.cluster.platform import Platform, until
from tests.cluster.swarm import (
    IMAGE,
    IMPATIENT,
    containers,
    end,
    roles,
    run,
    running_swarm,
    session_networks,
)
from tests.harness.recovery import timed

pytestmark = [pytest.mark.integration, pytest.mark.docker, pytest.mark.timeout(240)]

DASK = """
import socket
from distributed import Client
with Client() as client:
    client.wait_for_workers(2, timeout=60)
    total = sum(client.gather(client.map(lambda n: n * n, range(100))))
    names = sorted(client.run(socket.gethostname).values())
    print('total', total, 'of', client.scheduler.address, 'on', *names, flush=True)
    client.shutdown()
"""
COLLECTIVE = """
import os, socket
from mpi4py import MPI
world = MPI.COMM_WORLD
total = world.allreduce(world.rank + 1)
names = sorted(set(world.allgather(socket.gethostname())))
if world.rank == 0:
    print('total', total, 'of', world.size, 'on', *names, flush=True)
"""


@pytest.fixture(scope="module")
def shared() -> Iterator[Platform]:
    with running_swarm() as made:
        yield made


def test_a_collective_over_three_hosts(platform: Platform) -> None:
    command = f'mpirun -n 3 --map-by node python3 -c "{COLLECTIVE}"'
    ref = platform.create("collective", IMAGE, 3, type="batch", startupCommand=command)
    ended = platform.wait(ref, "TERMINATED", seconds=90)
    log = platform.call("GET", f"/session/{ref}/logs")["result"]["logs"]
    assert "total 6 of 3 on main1 sub1 sub2" in log, log
    assert roles(ended) == dict.fromkeys(("main1", "sub1", "sub2"), "TERMINATED")
    assert json.loads(ended["occupiedSlots"]) == {}
    until(lambda: containers(platform, ref), lambda found: not found)


def test_dask_over_three_hosts(platform: Platform) -> None:
    command = (
        "python3 -m dask scheduler --no-dashboard & for host in sub1 sub2; do"
        " ssh $host python3 -m dask worker --no-nanny --no-dashboard tcp://main1:8786 & done;"
        f' python3 -c "{DASK}"; wait'
    )
    ref = platform.create("dask", IMAGE, 3, type="batch", startupCommand=command)
    platform.wait(ref, "TERMINATED", seconds=120)
    log = platform.call("GET", f"/session/{ref}/logs")["result"]["logs"]
    assert "total 328350 of tcp://main1:8786 on sub1 sub2" in log, log


def test_ssh_a_partition_and_the_way_back(platform: Platform) -> None:
    ref = platform.create("ring", IMAGE, 3)
    platform.wait(ref, "RUNNING")
    mine = containers(platform, ref)
    assert len({host.name for host, _ in mine.values()}) == 3
    for name in mine:
        for other in mine:
            assert run(mine[name], "ssh", other, "hostname") == (0, other)
    code, address = run(mine["sub1"], "ssh", "main1", "echo $BACKENDAI_CLUSTER_ROLE $WORLD_SIZE")
    assert (code, address) == (0, "main 3")

    alone = platform.create("stranger", IMAGE, 1)
    platform.wait(alone, "RUNNING")
    stranger = containers(platform, alone)["main1"]
    _, addresses = run(mine["sub1"], "hostname", "-I")
    assert addresses
    for target in addresses.split():
        probe = f"import socket; socket.create_connection(('{target}', 2200), 2)"
        assert run(stranger, "python3", "-c", probe)[0] != 0, target
    assert run(stranger, *IMPATIENT, "getent", "hosts", "sub1")[0] != 0
    end(platform, alone)

    lost = next(host for name, (host, _) in mine.items() if name != "main1" and host.name != "h1")
    if mine["main1"][0] is lost:
        pytest.fail("the main container is on the host that is cut off")
    lost.cable(connected=False)
    degraded = platform.wait(ref, "RUNNING_DEGRADED")
    assert "is out of reach" in degraded["statusInfo"]
    lost.cable(connected=True)
    back = platform.wait(ref, "RUNNING")
    assert set(roles(back).values()) == {"RUNNING"}
    assert {n: c for n, (_, c) in containers(platform, ref).items()} == {
        n: c for n, (_, c) in mine.items()
    }, "nothing was started twice"
    name = next(n for n, (host, _) in mine.items() if host is lost)
    again = (*IMPATIENT, "ssh", "-o", "ConnectTimeout=2", name, "hostname")
    until(lambda: run(mine["main1"], *again), lambda told: told == (0, name), 90)
    end(platform, ref)


def test_a_lost_part_and_a_killed_agent(platform: Platform) -> None:
    ref = platform.create("loss", IMAGE, 3)
    platform.wait(ref, "RUNNING")
    mine = containers(platform, ref)
    host, container = mine["sub2"]
    platform.processes[host.name].kill()
    platform.processes[host.name].wait()
    client = host.client
    client.containers.get(container).remove(force=True)
    client.close()
    platform.start_agent(host)
    degraded = platform.wait(ref, "RUNNING_DEGRADED")
    assert degraded["statusInfo"].startswith("sub2 is lost")
    assert run(mine["main1"], "ssh", "sub1", "hostname") == (0, "sub1")
    end(platform, ref)


def test_a_closed_host_gets_no_part(platform: Platform) -> None:
    platform.call("POST", "/agents/h3/cordon", {}, user="admin")
    try:
        ref = platform.create("closed", IMAGE, 3)
        platform.wait(ref, "RUNNING")
        hosts = {host.name for host, _ in containers(platform, ref).values()}
        assert hosts == {"h1", "h2"}
        end(platform, ref)
    finally:
        platform.call("POST", "/agents/h3/uncordon", {}, user="admin")


def alone_on(platform: Platform, name: str, *others: str, **more: object) -> str:
    """A session of one container, on the host that is not among ``others``."""
    for other in others:
        platform.call("POST", f"/agents/{other}/cordon", {}, user="admin")
    try:
        config = {"resources": {"cpu": "0.2", "mem": "64m"}, "resource_opts": {"shmem": "8m"}}
        ref = platform.create(name, IMAGE, 1, config=config, **more)
        platform.wait(ref, "RUNNING")
    finally:
        for other in others:
            platform.call("POST", f"/agents/{other}/uncordon", {}, user="admin")
    return ref


def only(platform: Platform, ref: str) -> tuple[str, str]:
    """Host and container of a session that has one."""
    ((host, container),) = containers(platform, ref).values()
    return host.name, container


def status_of(platform: Platform, name: str) -> str:
    found = platform.call("GET", "/agents", user="admin")["agents"]
    return str(next(each["status"] for each in found if each["id"] == name))


def test_a_node_is_drained(platform: Platform) -> None:
    job = alone_on(platform, "moves", "h1", "h2", type="batch", startupCommand="sleep 600")
    lab = alone_on(platform, "ends", "h1", "h2")
    assert {only(platform, job)[0], only(platform, lab)[0]} == {"h3"}
    with timed("drain of a node"):
        platform.call("POST", "/agents/h3/drain", {"grace": "1s"}, user="admin")
        ended = platform.wait(lab, "TERMINATED")
        until(lambda: [host.name for host, _ in containers(platform, job).values()],
              lambda at: len(at) == 1 and at != ["h3"])  # fmt: skip
        platform.wait(job, "RUNNING")
    assert "its node was emptied" in ended["statusInfo"]
    assert platform.agents()["h3"]["sessions"] == []
    platform.audit()
    platform.call("POST", "/agents/h3/uncordon", {}, user="admin")
    end(platform, job)


@pytest.mark.parametrize("direction", ["both ways", "INPUT", "OUTPUT"])
def test_what_was_asked_during_a_partition_is_done_once(platform: Platform, direction: str) -> None:
    refs = [
        alone_on(platform, f"{what}-{direction.lower().replace(' ', '-')}", "h1", "h2")
        for what in ("keep", "end", "zombie")
    ]
    kept, ended, zombie = refs
    before = only(platform, kept)
    held = platform.agents()["h3"]["used"]
    (host,) = (each for each in platform.hosts.all if each.name == "h3")
    with host.cut(direction):
        until(lambda: status_of(platform, "h3"), lambda status: status == "LOST")
        assert "unreachable since" in platform.session(kept)["statusInfo"]
        platform.call("DELETE", f"/session/{ended}")
        platform.call("DELETE", f"/session/{zombie}?forced=true")
        for ref in (ended, zombie):
            told = platform.session(ref)
            assert told["status"] == "TERMINATING"
        found = platform.call("GET", "/agents", user="admin")["agents"]
        assert next(each["used"] for each in found if each["id"] == "h3") == held
        assert set(containers(platform, zombie)) == {"main1"}
    with timed(f"8 and 22,partition {direction} over until all is done"):
        for ref in (ended, zombie):
            platform.wait(ref, "TERMINATED")
        until(lambda: status_of(platform, "h3"), lambda status: status == "ALIVE")
    assert not containers(platform, ended)
    assert not containers(platform, zombie)
    assert only(platform, kept) == before
    platform.audit()
    end(platform, kept)


def test_a_node_that_is_lost_for_long_is_given_up_and_fenced(platform: Platform) -> None:
    ref = alone_on(platform, "given-up", "h1", "h2")
    platform.command("resource-group", "set", "default", 'options={"lost_after": "10s"}')
    (host,) = (each for each in platform.hosts.all if each.name == "h3")
    try:
        with timed("7,node lost until its sessions end"), contextlib.ExitStack() as stack:
            stack.enter_context(host.cut("both ways"))
            ended = platform.wait(ref, "TERMINATED")
            assert "unreachable for more than 10 seconds" in ended["statusInfo"]
            assert set(containers(platform, ref)) == {"main1"}
            again = alone_on(platform, "given-up")
            assert only(platform, again)[0] != "h3"
        with timed("9,node back until the old run is gone"):
            until(lambda: containers(platform, ref), lambda found: not found)
        until(lambda: platform.agents().get("h3", {}).get("sessions"), lambda left: left == [])
        platform.audit()
        end(platform, again)
    finally:
        platform.command("resource-group", "set", "default", "options={}")


def test_an_agent_and_the_manager_die_while_a_cluster_is_made(platform: Platform) -> None:
    ref = platform.create("gang", IMAGE, 3)
    until(lambda: containers(platform, ref), bool)
    with timed("23,agent and manager killed during the creation of a cluster"):
        platform.kill("manager")
        platform.kill("h2")
        platform.start_manager()
        platform.start_agent(next(host for host in platform.hosts.all if host.name == "h2"))
        platform.wait(ref, "RUNNING")
    mine = containers(platform, ref)
    assert sorted(mine) == ["main1", "sub1", "sub2"]
    assert len({host.name for host, _ in mine.values()}) == 3
    assert run(mine["sub2"], "ssh", "main1", "hostname") == (0, "main1")
    platform.audit()
    end(platform, ref)


def test_a_node_lost_while_a_cluster_is_made_does_not_hold_the_others(platform: Platform) -> None:
    """Its agent and the manager are killed in the same second, and the agent does not come back."""
    lost = next(host for host in platform.hosts.all if host.name == "h2")
    platform.processes[lost.name].send_signal(signal.SIGSTOP)
    ref = platform.create("all-or-none", IMAGE, 3)
    until(lambda: containers(platform, ref), bool)
    old = {container for _, container in containers(platform, ref).values()}
    whole = {"resources": {"cpu": "2", "mem": "64m"}, "resource_opts": {"shmem": "8m"}}
    later, last = (platform.create(name, IMAGE, 3, config=whole) for name in ("later", "last"))
    assert platform.session(ref)["status"] in ("PREPARING", "CREATING")
    platform.kill("manager")
    platform.kill(lost.name)
    with timed(
        "23,node lost for ever while a cluster is made, until all parts are back in the queue"
    ):
        platform.start_manager()
        until(
            lambda: platform.command("session", "history", ref),
            lambda told: "was lost: all" in told,
        )
    with timed("23,and until it runs on the other nodes"):
        platform.wait(ref, "RUNNING")
    mine = containers(platform, ref)
    assert {host.name for host, _ in mine.values()} == {"h1", "h3"}
    assert not {container for _, container in mine.values()} & old
    until(lambda: [n for n in session_networks(platform) if ref in n], lambda left: len(left) == 1)
    platform.audit()
    platform.start_agent(lost)
    until(platform.agents, lambda found: lost.name in found)
    assert len(containers(platform, ref)) == 3
    assert run(containers(platform, ref)["sub2"], "ssh", "main1", "hostname") == (0, "main1")
    platform.audit()
    end(platform, ref)
    platform.wait(later, "RUNNING")
    assert platform.session(last)["status"] == "PENDING", (
        "those who waited meanwhile kept their order"
    )
    platform.call("DELETE", f"/session/{last}")
    end(platform, later)


def test_a_node_cut_off_while_a_cluster_is_made_ends_its_part_first(platform: Platform) -> None:
    """Its agent lives and hears nothing: its part is gone before another one is made of it."""
    _, cut_off, frozen = platform.hosts.all
    platform.processes[frozen.name].send_signal(signal.SIGSTOP)  # so that not all parts can run
    ref = platform.create("one-at-a-time", IMAGE, 3)

    def running(host: Host) -> list[str]:
        found = containers(platform, ref).items()
        return [name for name, (where, _) in found if where is host]

    try:
        (part,) = until(lambda: running(cut_off), bool)
        container = containers(platform, ref)[part][1]
        with cut_off.cut("both ways"):
            with timed("23,node cut off while a cluster is made until it has ended its part"):
                until(lambda: running(cut_off), lambda left: not left)
            client = cut_off.client
            finished = client.api.inspect_container(container)["State"]["FinishedAt"]
            client.close()
            lost = f"(.*) +kernel +PENDING +the node of {part} was lost"
            (given_up,) = until(
                lambda: re.findall(lost, platform.command("session", "history", ref)), bool
            )
            assert finished[:19].replace("T", " ") <= given_up.strip(), "it had ended before that"
            until(lambda: platform.session(ref)["status"], lambda status: status == "PENDING")
            until(lambda: containers(platform, ref), lambda left: not left)
    finally:
        platform.processes[frozen.name].send_signal(signal.SIGCONT)
    platform.wait(ref, "RUNNING")
    assert len(containers(platform, ref)) == 3
    until(platform.agents, lambda found: len(found) == 3)
    platform.audit()
    end(platform, ref)
