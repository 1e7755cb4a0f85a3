"""Who reaches whom: clusters of several people side by side, what attackers in a session can try, lost parts that
come back, and networks that go on every way out."""

from __future__ import annotations

import asyncio
import itertools
import signal
from collections.abc import Iterator
from contextlib import closing

import aiohttp
import pytest

from spawner.agent.engines.docker import firewall
from tests.cluster.hosts import Host, sh
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

pytestmark = [pytest.mark.integration, pytest.mark.docker, pytest.mark.timeout(240)]

Place = tuple[Host, str]
USERS = ("ada", "bob")
ALONE = {"resources": {"cpu": "1.5", "mem": "64m"}, "resource_opts": {"shmem": "8m"}}
"""So much that a host has room for one."""
SMALL = {"resources": {"cpu": "0.2", "mem": "64m"}, "resource_opts": {"shmem": "8m"}}
PROBES = """
import socket, sys
from concurrent.futures import ThreadPoolExecutor
def reaches(place):
    host, port = place.rsplit(":", 1)
    try: socket.create_connection((host, int(port)), 1.5).close()
    except OSError: return None
    return place
with ThreadPoolExecutor(64) as pool:
    print(*filter(None, pool.map(reaches, sys.argv[1:])))
"""
"""Prints which of its arguments HOST:PORT answer."""
NAMES = """
import socket, sys
from concurrent.futures import ThreadPoolExecutor
def resolves(name):
    try: return f"{name}={socket.gethostbyname(name)}"
    except OSError: return None
with ThreadPoolExecutor(64) as pool:
    print(*filter(None, pool.map(resolves, sys.argv[1:])))
"""
"""Prints NAME=ADDRESS for each of its arguments that resolves."""
HEAR = """
import pathlib, socket
heard = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
heard.bind(("0.0.0.0", 9999))
pathlib.Path("/tmp/listens").touch()
while True: pathlib.Path("/tmp/heard").write_bytes(heard.recv(99))
"""
SMUGGLE = """
import socket, struct, sys
host, target = sys.argv[1], socket.inet_aton(sys.argv[2])
source = target[:3] + bytes([99])
def checksum(raw):
    total = sum(struct.unpack(f">{len(raw) // 2}H", raw))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF
datagram = struct.pack(">HHHH", 1234, 9999, 16, 0) + b"smuggled"
head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(datagram), 1, 0, 64, 17, 0, source, target)
head = head[:10] + struct.pack(">H", checksum(head)) + head[12:]
frame = bytes([2, 0x42]) + target + bytes([2, 0x42]) + source + bytes([8, 0]) + head + datagram
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for network in range(4096, 4224):
    sender.sendto(struct.pack(">II", 0x08000000, network << 8) + frame, (host, 4789))
"""
"""Sends a datagram to a member of an overlay on this host (VXLAN, RFC 7348); swarms count their networks from 4096."""


@pytest.fixture(scope="module")
def shared() -> Iterator[Platform]:
    with running_swarm() as made:
        yield made


def cluster(platform: Platform, name: str, size: int, user: str = "ada", **more: object) -> str:
    """The id of a cluster that runs."""
    given = {
        "name": name, "image": IMAGE, "clusterSize": size, "clusterMode": "multi-node",
        "enqueueOnly": True, "config": SMALL, **more,
    }  # fmt: skip
    return str(platform.call("POST", "/session", given, user=user)["sessionId"])


def runs(platform: Platform, ref: str, user: str) -> None:
    """Wait until a session of somebody runs."""
    until(
        lambda: platform.call("GET", f"/session/{ref}", user=user)["status"],
        lambda status: status == "RUNNING",
    )


def addresses(place: Place) -> list[str]:
    return run(place, "hostname", "-I")[1].split()


def answering(attacker: Place, places: list[str]) -> list[str]:
    """What of ``HOST:PORT`` answers somebody in this container."""
    code, told = run(attacker, "python3", "-c", PROBES, *places)
    assert code == 0, told
    return told.split()


def all_connected(members: dict[str, Place]) -> None:
    for name, other in itertools.permutations(members, 2):
        assert run(members[name], "ssh", other, "hostname") == (0, other)


def networks_of(platform: Platform, ref: str) -> list[str]:
    return [name for name in session_networks(platform) if ref in name]


def listening(host: Host) -> list[int]:
    """TCP ports of a host that somebody listens on."""
    told = sh(*host.inside("ss", "-Hltn"))
    return sorted({int(line.split()[3].rsplit(":", 1)[1]) for line in told.splitlines()})


def test_an_app_of_a_cluster_over_nodes_is_reached_through_the_manager(platform: Platform) -> None:
    ref = cluster(platform, "reached", 3, config=ALONE)
    platform.wait(ref, "RUNNING")  # its main port answered its agent, and is not published
    host, container = containers(platform, ref)["main1"]
    with closing(host.client) as client:
        assert not client.api.inspect_container(container)["HostConfig"]["PortBindings"]

    async def fetch() -> bytes:
        url = f"{platform.url}/stream/session/{ref}/tcpproxy?app=web"
        async with (
            aiohttp.ClientSession(headers=platform.headers()) as session,
            session.ws_connect(url) as socket,
        ):
            await socket.send_bytes(b"GET / HTTP/1.0\r\n\r\n")
            return await socket.receive_bytes(timeout=20)

    assert asyncio.run(fetch()).startswith(b"HTTP/1.0 200")
    end(platform, ref)


def test_clusters_of_two_people_do_not_see_each_other(platform: Platform) -> None:
    refs = {
        (user, mode): cluster(platform, f"{user}-{mode}", size, user, clusterMode=mode)
        for user in USERS
        for mode, size in (("multi-node", 3), ("single-node", 2))
    }
    for (user, _), ref in refs.items():
        runs(platform, ref, user)
    members = {ref: containers(platform, ref) for ref in refs.values()}
    for ref, mine in members.items():
        all_connected(mine)
        mine_at = {address for place in mine.values() for address in addresses(place)}
        theirs = [place for other in members if other != ref for place in members[other].values()]
        strangers = [place[1][:12] for place in theirs]
        for place in mine.values():
            targets = [
                f"{address}:{port}"
                for stranger in theirs
                for address in addresses(stranger)
                if address not in mine_at  # bridges of several hosts have the same ones
                for port in (2200, 8000)
            ]
            assert answering(place, targets) == []
            names = ["main1", "sub1", "sub2", *strangers]
            code, told = run(place, *IMPATIENT, "python3", "-c", NAMES, *names)
            found = dict(each.split("=") for each in told.split())
            assert sorted(found) == sorted(mine), code
            assert set(found.values()) <= mine_at


def test_what_an_attacker_in_a_session_can_reach(platform: Platform) -> None:
    victim = cluster(platform, "victim", 3)
    alone = cluster(platform, "attacker", 1, "bob")
    spread = cluster(platform, "attackers", 3, "bob")
    platform.wait(victim, "RUNNING")
    for ref in (alone, spread):
        runs(platform, ref, "bob")
    started = platform.call("POST", f"/session/{victim}/start-service", {"app": "web"})
    assert started is not None
    relays = {host.name: [p for p in listening(host) if 30000 <= p <= 31000]
              for host in platform.hosts.all}  # fmt: skip
    assert sum(map(len, relays.values())) == 1
    attackers = [*containers(platform, spread).values(), *containers(platform, alone).values()]
    for attacker in attackers:
        here = attacker[0]
        gateways = sh(*here.inside("ip", "-4", "-o", "addr", "show")).split("inet ")[1:]
        local = {text.split("/")[0] for text in gateways} - {"127.0.0.1"}
        local_ports = listening(here)
        assert {2377, 7946} & set(local_ports)
        assert answering(attacker, [f"{a}:{p}" for a in local for p in local_ports]) == []
        others = [host for host in platform.hosts.all if host is not here]
        beyond = [f"{host.address}:{port}" for host in others for port in listening(host)]
        token = [f"{h.address}:{port}" for h in others for port in relays[h.name]]
        assert answering(attacker, beyond) == token, (
            "the relay's listener, which asks for its token"
        )
        _, links = run(attacker, "cat", "/proc/net/if_inet6")
        assert links.split() in ([], links.split()[:6] if links.endswith(" lo") else [])
        asked = run(attacker, "python3", "-c", ASK, platform.url)
        assert asked == (0, "401 401 401"), asked


ASK = """
import sys, urllib.error, urllib.request
for path in ("/sessions", "/agents", "/metrics"):
    try: print(urllib.request.urlopen(sys.argv[1] + path).status, end=" ")
    except urllib.error.HTTPError as error: print(error.code, end=" ")
"""
"""What the manager answers somebody without a credential."""


def test_nobody_sends_packets_into_the_network_of_another_session(platform: Platform) -> None:
    ref = cluster(platform, "overlay", 3, config=ALONE)
    stranger = cluster(platform, "forger", 1, "bob")
    platform.wait(ref, "RUNNING")
    runs(platform, stranger, "bob")
    mine = containers(platform, ref)
    (forger,) = containers(platform, stranger).values()
    (name,) = networks_of(platform, ref)
    target = {}
    for place in mine.values():
        host, container = place
        with closing(host.client) as client:
            client.containers.get(container).exec_run(["python3", "-c", HEAR], detach=True)
            seen = client.api.inspect_container(container)["NetworkSettings"]["Networks"][name]
        target[host.name] = (place, seen["IPAddress"])
        until(lambda p=place: run(p, "test", "-e", "/tmp/listens")[0], lambda code: code == 0)

    def heard(place: Place) -> str:
        return run(place, "sh", "-c", "cat /tmp/heard; rm -f /tmp/heard")[1]

    def forge(host: Host) -> str:
        """What arrives of a packet that the forger sends by way of a host."""
        place, address = target[host.name]
        run(forger, "python3", "-c", SMUGGLE, host.address, address)
        peer = next(each for each in mine.values() if each is not place)
        hello = f"import socket; socket.socket(2, 2).sendto(b'peer', ('{address}', 9999))"

        def arrived() -> str:  # whatever was sent before this is there when this is
            run(peer, "python3", "-c", hello)
            return heard(place)

        first = heard(place)
        return first if "smuggled" in first else until(arrived, bool)

    for host in platform.hosts.all:
        assert forge(host) == "peer"
    here = forger[0]
    rules = firewall.rules(here.address, "30000-31000", (firewall.BRIDGES, "docker_gwbridge"))
    for rule in rules:
        sh(*here.inside("iptables", "-w", "5", "-D", *rule))
    try:
        assert "smuggled" in forge(here), "it is the rule that closes the way"
    finally:
        for rule in rules:
            sh(*here.inside("iptables", "-w", "5", "-I", *rule))


@pytest.mark.parametrize("mode", ["multi-node", "single-node"])
def test_a_crashed_part_is_back_after_a_restart(platform: Platform, mode: str) -> None:
    config = ALONE if mode == "multi-node" else SMALL
    ref = cluster(platform, f"crash-{mode}", 3, clusterMode=mode, config=config)
    platform.wait(ref, "RUNNING")
    before = containers(platform, ref)
    seen = set(networks_of(platform, ref))
    host, container = before["sub1"]
    with closing(host.client) as client:
        client.containers.get(container).kill(signal.SIGKILL)
    degraded = platform.wait(ref, "RUNNING_DEGRADED")
    assert degraded["statusInfo"] == "sub1 is lost: its main process ended (exit code 137)"
    assert run(before["main1"], "ssh", "sub2", "hostname") == (0, "sub2")
    for count in (1, 2, 3):
        platform.call("POST", f"/session/{ref}/restart", {})
        back = platform.wait(ref, "RUNNING")
        assert roles(back) == dict.fromkeys(("main1", "sub1", "sub2"), "RUNNING")
        now = containers(platform, ref)
        assert sorted(now) == ["main1", "sub1", "sub2"]
        assert not {each[1] for each in now.values()} & {each[1] for each in before.values()}
        all_connected(now)
        (own,) = until(lambda: networks_of(platform, ref), lambda names: len(names) == 1, 90)
        assert own not in seen, f"restart {count}"
        seen.add(own)
        before = now
    end(platform, ref)


def test_a_network_goes_when_a_start_fails(platform: Platform) -> None:
    service = {"port": 8111, "start_timeout": "2s"}
    ref = cluster(
        platform, "fails", 3, type="inference", startupCommand="sleep 600", service=service
    )
    until(lambda: networks_of(platform, ref), bool)
    until(lambda: platform.session(ref)["status"], lambda status: status == "ERROR")
    until(lambda: networks_of(platform, ref), lambda left: not left, 90)
    assert not containers(platform, ref)


def test_a_network_goes_when_its_session_is_ended_by_force_while_a_node_is_away(
    platform: Platform,
) -> None:
    ref = cluster(platform, "forced", 3, config=ALONE)
    platform.wait(ref, "RUNNING")
    found = containers(platform, ref)
    last = next(h for n, (h, _) in found.items() if n != "main1" and h is not platform.hosts.all[0])
    with last.cut("both ways"):
        platform.wait(ref, "RUNNING_DEGRADED")
        platform.call("DELETE", f"/session/{ref}?forced=true")
        until(lambda: containers(platform, ref), lambda left: len(left) == 1)
    platform.wait(ref, "TERMINATED")
    until(lambda: networks_of(platform, ref), lambda left: not left, 90)
    assert not containers(platform, ref)


@pytest.mark.parametrize("killed", [("manager",), ("h1",), ("manager", "h1", "h2", "h3")])
def test_a_network_goes_when_who_made_it_is_killed(
    platform: Platform, killed: tuple[str, ...]
) -> None:
    ref = cluster(platform, f"killed-{len(killed)}-{killed[0]}", 3, config=ALONE)
    until(lambda: networks_of(platform, ref), bool)
    for name in killed:
        platform.kill(name)
    if "manager" in killed:
        platform.start_manager()
    platform.call("DELETE", f"/session/{ref}")
    for host in platform.hosts.all:
        if host.name in killed:
            platform.start_agent(host)
    until(platform.agents, lambda found: len(found) == 3)
    platform.wait(ref, "TERMINATED", "CANCELLED")
    until(lambda: networks_of(platform, ref), lambda left: not left, 90)
    assert not containers(platform, ref)
