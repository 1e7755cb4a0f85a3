"""One node with an engine of its own: what its agent, its engine and strangers can do to sessions.

Every test ends in the audit. How long each recovery took is written to ``artifacts/recovery.csv``.
"""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path

import docker
import pytest

from tests.cluster.one_node import (
    EAT,
    GO,
    LABEL,
    containers,
    engine_health,
    host_of,
    identities,
    inside,
    submit,
    used,
)
from tests.cluster.platform import Platform, until
from tests.harness.fleet import device
from tests.harness.recovery import timed
from tests.integration.docker_engine import TEST_IMAGE

pytestmark = [pytest.mark.integration, pytest.mark.docker, pytest.mark.timeout(240)]


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
        platform.end_all()
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


@pytest.mark.parametrize(
    ("options", "number"),
    [
        (("--live-restore",), signal.SIGTERM),
        (("--live-restore",), signal.SIGKILL),
        ((), signal.SIGKILL),
    ],
)
def test_batches_that_end_while_agent_and_engine_are_dead_have_their_results(
    platform: Platform, options: tuple[str, ...], number: signal.Signals
) -> None:
    host = host_of(platform)
    host.signal_engine(signal.SIGTERM)
    host.start_engine(*options)
    host.await_engine()
    until(lambda: engine_health(platform), lambda unwell: unwell is None)
    case = f"{number}-{len(options)}"
    jobs = {
        submit(platform, f"blind-{code}-{case}", f"{GO}; sleep 3; exit {code}"): code
        for code in (0, 4)
    }
    for ref in jobs:
        platform.wait(ref, "RUNNING")
    pids = [pid for _, pid, _ in identities(platform).values()]
    platform.kill("h1")
    for ref in jobs:
        inside(platform, ref, "touch /tmp/go")
    host.signal_engine(number)
    assert all(Path(f"/proc/{pid}").exists() for pid in pids), "they end too early for this test"
    until(lambda: [pid for pid in pids if Path(f"/proc/{pid}").exists()], lambda left: not left)
    host.start_engine(*options)
    host.await_engine()
    platform.start_agent(host)
    for ref, code in jobs.items():
        assert platform.wait(ref, "TERMINATED")["status"] == "TERMINATED"
        (attempt,) = platform.call("GET", f"/session/{ref}/attempts")["attempts"]
        cause = "failure" if code else "success"
        assert (attempt["cause"], attempt["exit_code"]) == (cause, code)


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
