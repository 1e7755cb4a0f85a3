"""One node with an engine of its own: what its agent, its engine and strangers can do to sessions.

Every test ends in the audit. How long each recovery took is written to ``artifacts/recovery.csv``.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.errors import NotFound

from tests.cluster.hosts import Host, running_hosts
from tests.cluster.platform import Platform, running_platform, until
from tests.harness.fleet import device
from tests.harness.recovery import timed
from tests.integration.docker_engine import (
    TEST_IMAGE,
    ensure_test_image,
    running_engine,
    unavailable,
)

pytestmark = [pytest.mark.integration, pytest.mark.docker, pytest.mark.timeout(240)]

LABEL = "ai.perijove"
GO = "until [ -e /tmp/go ]; do sleep 0.1; done"
EAT = "python3 -c \"b = b'x' * (512 * 2**20)\""
SMALL = {"cpu": "0.1", "mem": "48m"}


@pytest.fixture(scope="module")
def shared() -> Iterator[Platform]:
    with running_engine():
        ensure_test_image()
        with running_hosts([TEST_IMAGE], 1) as hosts, running_platform(hosts) as made:
            until(made.agents, lambda found: all(TEST_IMAGE in a["images"] for a in found.values()))
            yield made


@pytest.fixture
def platform(shared: Platform) -> Iterator[Platform]:
    """The platform, which every test leaves without sessions; nothing differs in the end."""
    try:
        yield shared
        shared.audit()
        for ref in live(shared):
            shared.call("DELETE", f"/session/{ref}")
        until(lambda: live(shared), lambda left: not left)
        until(lambda: containers(shared), lambda left: not left)
        shared.audit()
    except BaseException:
        print(shared.story())
        raise


def live(platform: Platform) -> list[str]:
    """Ids of all sessions that have not ended."""
    found = platform.call("GET", "/sessions")["sessions"]
    return [
        each["id"] for each in found if each["status"] not in ("TERMINATED", "ERROR", "CANCELLED")
    ]


def host_of(platform: Platform) -> Host:
    (host,) = platform.hosts.all
    return host


def containers(platform: Platform) -> dict[str, dict[str, Any]]:
    """Facts of all containers that carry our labels, by session; the agent is not asked."""
    client = host_of(platform).client
    try:
        listed = client.api.containers(all=True, filters={"label": f"{LABEL}.kernel"})
        facts = []
        for each in listed:
            with contextlib.suppress(NotFound):
                facts.append(client.api.inspect_container(each["Id"]))
    finally:
        client.close()
    return {each["Config"]["Labels"][f"{LABEL}.session"]: each for each in facts}


def identities(platform: Platform) -> dict[str, tuple[str, int, str]]:
    """Container, process and start by session."""
    found = containers(platform)
    return {s: (f["Id"], f["State"]["Pid"], f["State"]["StartedAt"]) for s, f in found.items()}


def inside(platform: Platform, session: str, command: str) -> None:
    client = host_of(platform).client
    try:
        container = client.containers.get(containers(platform)[session]["Id"])
        container.exec_run(["sh", "-c", command], detach=True)
    finally:
        client.close()


def submit(platform: Platform, name: str, command: str | None = None, **more: object) -> str:
    """A small session of one container; a batch session where there is a command."""
    kind = {} if command is None else {"type": "batch", "startupCommand": command}
    resources = {**SMALL, **more.pop("resources", {})}  # type: ignore[dict-item]  # a dict it is
    config = {"resources": resources, "resource_opts": {"shmem": "8m"}}
    given = {**kind, "clusterMode": "single-node", "config": config, **more}
    return platform.create(name, TEST_IMAGE, 1, **given)


def used(platform: Platform) -> list[tuple[str, str, str]]:
    """What the rows say that is held: slot, device, amount."""
    (node,) = platform.call("GET", "/agents", user="admin")["agents"]
    return [(each["slot"], each["device_id"], each["used"]) for each in node["devices"]]


def engine_health(platform: Platform) -> str | None:
    found: str | None = platform.agents()["h1"]["unwell"]
    return found


def test_twenty_kernels_do_not_notice_that_their_agent_is_killed(platform: Platform) -> None:
    jobs = {"good": f"{GO}; exit 0", "wrong": f"{GO}; exit 3", "hungry": f"{GO}; exec {EAT}"}
    ending = {name: submit(platform, name, job) for name, job in jobs.items()}
    staying = [submit(platform, f"stay-{n}") for n in range(17)]
    for ref in (*staying, *ending.values()):
        platform.wait(ref, "RUNNING", seconds=120)
    before, held = identities(platform), used(platform)
    platform.kill("h1")
    leases = host_of(platform).folder / "agent" / "leases.json"
    leases.write_text('{"trunca')
    for ref in ending.values():
        inside(platform, ref, "touch /tmp/go")
    until(lambda: [containers(platform)[ref]["State"]["Status"] for ref in ending.values()],
          lambda seen: set(seen) == {"exited"})  # fmt: skip
    assert used(platform) == held
    with timed("6,20 kernels agent killed"):
        platform.start_agent(host_of(platform))
        for ref in ending.values():
            platform.wait(ref, "TERMINATED")
    told = {
        name: platform.call("GET", f"/session/{ref}/attempts")["attempts"][0]
        for name, ref in ending.items()
    }
    assert {name: (each["cause"], each["exit_code"]) for name, each in told.items()} == {
        "good": ("success", 0),
        "wrong": ("failure", 3),
        "hungry": ("oom", 137),
    }
    assert {slot: amount for slot, _, amount in used(platform)}["cpu"] == "1.7"
    after = identities(platform)
    assert {ref: after[ref] for ref in staying} == {ref: before[ref] for ref in staying}


@pytest.mark.parametrize("damage", ["truncated", "deleted"])
def test_shares_of_devices_are_known_again_from_labels(platform: Platform, damage: str) -> None:
    host = host_of(platform)
    devices = host.folder / "devices.toml"
    devices.write_text("".join(device(n) for n in range(2)))
    settings = host.folder / "mock_config.py"
    settings.write_text(f"c.AgentConfig.accelerators = {{'mock': {{'file': '{devices}'}}}}\n")
    platform.kill("h1")
    platform.start_agent(host, {"PERIJOVE_CONFIG": str(settings)})
    try:
        until(lambda: used(platform), lambda found: len(found) == 4)
        held = [
            submit(platform, f"{damage}-{n}", resources={"cuda.shares": s})
            for n, s in enumerate(("1", "0.6"))
        ]
        for ref in held:
            platform.wait(ref, "RUNNING")
        before, given = identities(platform), shares(platform)
        assert len({given[ref][0][1] for ref in held}) == 2, "a device each"
        platform.kill("h1")
        for name in ("leases.json", "containers"):
            file = host.folder / "agent" / name
            file.write_text('{"trunca') if damage == "truncated" else file.unlink(missing_ok=True)
        with timed(f"6,agent killed and its state {damage}"):
            platform.start_agent(host, {"PERIJOVE_CONFIG": str(settings)})
            until(platform.agents, bool)
        third = submit(platform, f"{damage}-third", resources={"cuda.shares": "0.4"})
        too_much = submit(platform, f"{damage}-fourth", resources={"cuda.shares": "0.5"})
        platform.wait(third, "RUNNING")
        assert {ref: identities(platform)[ref] for ref in held} == before
        assert shares(platform)[third][0][:2] == given[held[1]][0][:2], (
            "what was free of a busy device"
        )
        until(lambda: platform.session(too_much)["statusInfo"], lambda told: "waiting for" in told)
        assert (
            sum(float(amount) for slot, _, amount in used(platform) if slot == "cuda.shares") == 2.0
        )
        platform.audit()
    finally:
        for ref in live(platform):
            platform.call("DELETE", f"/session/{ref}")
        until(lambda: live(platform), lambda left: not left)
        platform.kill("h1")
        platform.start_agent(host)
        until(platform.agents, bool)


def shares(platform: Platform) -> dict[str, list[tuple[str, str, int]]]:
    """What containers say in their labels that they hold of accelerators, by session."""
    return {
        session: [
            tuple(s)
            for s in json.loads(facts["Config"]["Labels"][f"{LABEL}.shares"])
            if s[0] not in ("cpu", "mem")
        ]
        for session, facts in containers(platform).items()
    }


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_engine_that_keeps_containers_is_restarted(
    platform: Platform, number: signal.Signals
) -> None:
    host = host_of(platform)
    host.signal_engine(signal.SIGTERM)
    host.start_engine("--live-restore")
    host.await_engine()
    until(lambda: engine_health(platform), lambda unwell: unwell is None)
    ref, job = (
        submit(platform, f"kept-{number}"),
        submit(platform, f"job-{number}", f"{GO}; exit 4"),
    )
    for each in (ref, job):
        platform.wait(each, "RUNNING")
    before = identities(platform)
    with timed(f"11,engine restarted with live-restore by {number.name}"):
        host.signal_engine(number)
        host.start_engine("--live-restore")
        host.await_engine()
        inside(platform, job, "touch /tmp/go")
        platform.wait(job, "TERMINATED")
    assert identities(platform)[ref] == before[ref]
    assert platform.session(ref)["status"] == "RUNNING"
    (attempt,) = platform.call("GET", f"/session/{job}/attempts")["attempts"]
    assert (attempt["cause"], attempt["exit_code"]) == ("failure", 4)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_engine_takes_its_containers_along(platform: Platform, number: signal.Signals) -> None:
    host = host_of(platform)
    host.signal_engine(signal.SIGTERM)
    host.start_engine()
    host.await_engine()
    until(lambda: engine_health(platform), lambda unwell: unwell is None)
    policy = {"max_retries": 1, "backoff": "0s"}
    again = f"[ $PERIJOVE_ATTEMPT = 2 ] || {GO}"
    ref = submit(platform, f"lost-{number}")
    job = submit(platform, f"again-{number}", again, retryPolicy=policy)
    for each in (ref, job):
        platform.wait(each, "RUNNING")
    with timed(f"12,engine restarted by {number.name}"):
        host.signal_engine(number)
        host.start_engine()
        host.await_engine()
        ended = platform.wait(ref, "TERMINATED")
        assert "container engine of its node was restarted" in ended["statusInfo"]
    platform.wait(job, "TERMINATED")
    told = platform.call("GET", f"/session/{job}/attempts")["attempts"]
    assert [each["cause"] for each in told] == ["engine-restarted", "success"]


def test_a_frozen_engine_gets_no_sessions(platform: Platform) -> None:
    host = host_of(platform)
    ref = submit(platform, "there")
    platform.wait(ref, "RUNNING")
    before = identities(platform)
    host.signal_engine(signal.SIGSTOP)
    try:
        with timed("13,engine frozen until the node is closed"):
            until(lambda: engine_health(platform), bool)
        waiting = submit(platform, "waits")
        until(lambda: platform.session(waiting)["statusInfo"], lambda told: "closed" in told)
        begun = time.monotonic()
        while time.monotonic() - begun < 10:  # longer than what makes a silent agent a lost one
            asked = time.monotonic()
            assert platform.agents()["h1"]["status"] == "ALIVE"
            assert platform.session(ref)["status"] == "RUNNING"
            assert platform.session(waiting)["status"] == "PENDING"
            assert time.monotonic() - asked < 5
    finally:
        host.signal_engine(signal.SIGCONT)
    with timed("13,engine thawed until a session runs"):
        platform.wait(waiting, "RUNNING")
    assert identities(platform)[ref] == before[ref]


def test_removed_and_killed_for_memory_are_told_apart(platform: Platform) -> None:
    removed = submit(platform, "removed")
    hungry = submit(platform, "hungry", f"{GO}; exec {EAT}")
    for each in (removed, hungry):
        platform.wait(each, "RUNNING")
    client = host_of(platform).client
    client.api.remove_container(containers(platform)[removed]["Id"], force=True)
    client.close()
    with timed("14,container removed"):
        ended = platform.wait(removed, "TERMINATED")
    assert "removed by somebody else" in ended["statusInfo"]
    inside(platform, hungry, "touch /tmp/go")
    with timed("14,container killed for memory"):
        ended = platform.wait(hungry, "TERMINATED")
    assert "used more than its" in ended["statusInfo"]
    again = submit(platform, "removed")
    platform.wait(again, "RUNNING")


def test_orphans_go_and_strangers_stay(platform: Platform) -> None:
    ref = submit(platform, "mine")
    platform.wait(ref, "RUNNING")
    mine = containers(platform)[ref]
    labels = dict(mine["Config"]["Labels"])
    client = host_of(platform).client
    made: dict[str, str] = {}

    def make(name: str, **changes: str | None) -> None:
        given = labels | {f"{LABEL}.{key}": value for key, value in changes.items()}
        kept = {key: value for key, value in given.items() if value is not None}
        container = client.containers.run(
            TEST_IMAGE, ["sleep", "600"], name=name, labels=kept, detach=True, init=True
        )
        made[name] = str(container.id)

    def present() -> set[str]:
        ids = {each["Id"] for each in client.api.containers(all=True)}
        return {name for name, each in made.items() if each in ids}

    unknown = "00000000-0000-4000-8000-000000000000"
    with timed("21,orphans removed"):
        make(f"perijove-{unknown}-1", kernel=unknown, session=unknown)
        make(f"perijove-{labels[f'{LABEL}.kernel']}-0", epoch="0")
        make("neighbour", home="another-agent")
        make("stranger", **dict.fromkeys(key.removeprefix(f"{LABEL}.") for key in labels))
        until(present, lambda left: left == {"neighbour", "stranger"})
    assert containers_run(client, made["neighbour"], made["stranger"], mine["Id"])
    log = (platform.state / "h1.log").read_text()
    for kernel, epoch in ((unknown, 1), (labels[f"{LABEL}.kernel"], 0)):
        evidence = rf"kernel_id='{kernel}', session_id='[^']+', epoch={epoch}\) is known to nobody"
        assert re.search(evidence, log), log
    for name in ("neighbour", "stranger"):
        client.api.remove_container(made[name], force=True)
    client.close()


def containers_run(client: docker.DockerClient, *ids: str) -> bool:
    return all(client.api.inspect_container(each)["State"]["Running"] for each in ids)


def test_a_bad_network_makes_nothing_happen_twice(platform: Platform) -> None:
    host = host_of(platform)
    client = host.client
    made: dict[str, tuple[str, str]] = {}

    def ended() -> bool:
        # Asked again and again: an engine remembers its last 256 events only.
        listed = client.api.events(since=0, until=int(time.time()) + 1, decode=True,
                                   filters={"event": "create", "type": "container"})  # fmt: skip
        for each in listed:
            facts = each["Actor"]["Attributes"]
            if f"{LABEL}.session" in facts:
                made[each["Actor"]["ID"]] = facts[f"{LABEL}.session"], facts[f"{LABEL}.epoch"]
        return all(platform.session(ref)["status"] == "TERMINATED" for ref in refs)

    with timed("10,20 sessions with a third of all packets lost"), host.lossy(0.3):
        refs = [submit(platform, f"lossy-{n}", "true") for n in range(20)]
        until(ended, bool, 120)
    client.close()
    for ref in refs:
        attempts = platform.call("GET", f"/session/{ref}/attempts")["attempts"]
        assert [(each["attempt"], each["cause"]) for each in attempts] == [(1, "success")]
        assert [each for each in made.values() if each[0] == ref] == [(ref, "1")]


@pytest.mark.parametrize("skew", ["+1h", "-1h"])
def test_an_agent_whose_clock_is_wrong(platform: Platform, skew: str) -> None:
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    if library is None:
        unavailable("libfaketime is not installed (apt-get install libfaketime)")
    stays = submit(platform, f"stays{skew}".replace("+", "p"))
    platform.wait(stays, "RUNNING")
    before = identities(platform)[stays]
    wrong = {"LD_PRELOAD": str(library), "FAKETIME": skew, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    platform.kill("h1")
    platform.start_agent(host_of(platform), wrong)
    try:
        until(lambda: platform.agents(), lambda found: found and found["h1"]["sessions"])
        job = submit(platform, f"job{skew}".replace("+", "p"), "sleep 2")
        begun = time.time()
        ended = platform.wait(job, "TERMINATED")
        told = dt.datetime.fromisoformat(ended["containers"][0]["started_at"]).timestamp()
        assert abs(told - begun) < 60  # the engine's clock counts, not the agent's
        assert platform.session(stays)["status"] == "RUNNING"
        assert identities(platform)[stays] == before
        assert platform.agents()["h1"]["status"] == "ALIVE"
    finally:
        platform.kill("h1")
        platform.start_agent(host_of(platform))
        until(platform.agents, bool)
