"""Sentences and amounts of those who wait."""

from __future__ import annotations

from dataclasses import replace

import pytest

from spawner.scheduler.explain import ordinal
from spawner.scheduler.model import Missing
from spawner.scheduler.slots import MICRO
from tests.harness.snapshots import agent, session, slots, snapshot

from .answers import reasons, started, told

BUSY = agent(used={"cpu": 7, "mem": "31g"})
SENTENCES = [
    ([], session(), "queued, first in line: no node of its resource group is connected yet"),
    ([agent(alive=False)], session(), "queued, first in line: no node is connected (1 node lost)"),
    ([BUSY], session(wants={"cpu": 3}), "queued, first in line: waiting for 2 CPUs"),
    (
        [BUSY],
        session(wants={"cpu": 2, "mem": "1.5g"}),
        "queued, first in line: waiting for 1 CPU and 512 MiB of memory",
    ),
    (
        [agent(), agent("a2", has={"cpu": 4, "mem": "1g"})],
        session(wants={"cpu": 64}),
        "cannot ever start: no node has more than 8 CPUs (asked for 64 CPUs)",
    ),
    (
        [agent()],
        session(wants={"cuda.device": 1}),
        "cannot ever start: no node has any GPU (asked for 1 GPU)",
    ),
    (
        [agent(has={"cpu": 8, "mem": "1g"}), agent("a2", has={"cpu": 1, "mem": "8g"})],
        session(wants={"cpu": 8, "mem": "8g"}),
        "cannot ever start: no node has 8 CPUs and 8 GiB of memory together",
    ),
    (
        [agent()],
        session(architecture="aarch64"),
        "cannot ever start: no node has the architecture aarch64 (there is x86_64)",
    ),
    (
        [agent()],
        session(designated=["b1", "b2"]),
        "cannot ever start: no node of the resource group is called b1 or b2",
    ),
    (
        [agent(max_containers=4)],
        session(kernels=5, wants={}),
        "cannot ever start: no node runs more than 4 containers (asked for 5)",
    ),
    (
        [agent()],
        session(kernels=2, cluster_mode="many"),
        "cannot ever start: cluster mode 'many' is not offered: choose 'single-node' or "
        "'multi-node'",
    ),
    ([agent()], session(kernels=0), "cannot ever start: it has no containers"),
]


@pytest.mark.parametrize(("nodes", "asked", "message"), SENTENCES, ids=lambda v: str(v)[:40])
def test_one_sentence_says_it(nodes, asked, message: str) -> None:  # type: ignore[no-untyped-def]
    answer = told(snapshot(nodes, [asked]), "s1")
    assert answer.message == message
    assert answer.unsatisfiable == message.startswith("cannot")


def test_amounts_that_cannot_be_cut_are_named() -> None:
    asked = session(wants={"cuda.device": 1})
    kernel = replace(asked.kernels[0], slots={"cuda.device": MICRO // 2})
    answer = told(snapshot([agent()], [replace(asked, kernels=(kernel,))]), "s1")
    assert answer.unsatisfiable
    assert "must be a non-negative multiple of 1" in answer.message


def test_a_malformed_request_does_not_take_its_peers_along() -> None:
    """Found by the properties: both want the same slot, one of them in amounts that do not exist."""
    asked = session("odd", {"cuda.device": 1})
    kernel = replace(asked.kernels[0], slots={"cuda.device": MICRO // 2})
    pending = [replace(asked, kernels=(kernel,)), session("good", {"cuda.device": 1}, at=1)]
    assert started(snapshot([agent(has={"cuda.device": 1})], pending)) == {"good": "a1"}


def test_missing_is_measured_against_the_best_fitting_agent() -> None:
    nodes = [
        agent("a1", used={"cpu": 8, "mem": "32g"}),
        agent("a2", used={"cpu": 6, "mem": "0g"}),
        agent("a3", used={"cpu": 5, "mem": "32g"}),
    ]
    answer = told(snapshot(nodes, [session(wants={"cpu": 4, "mem": "1g"})]), "s1")
    assert answer.missing == (Missing("cpu", 4 * MICRO, 2 * MICRO, "a2"),)
    assert reasons(answer) == {"capacity": 3}


def test_lacking_one_slot_fits_better_than_lacking_a_little_of_two() -> None:
    nodes = [agent("a1", used={"cpu": 5, "mem": "29g"}), agent("a2", used={"cpu": 8})]
    answer = told(snapshot(nodes, [session(wants={"cpu": 4, "mem": "4g"})]), "s1")
    assert answer.missing == (Missing("cpu", 4 * MICRO, 0, "a2"),)


def test_the_largest_amounts_are_those_of_one_agent() -> None:
    nodes = [agent("a1", has={"cpu": 16, "mem": "2g"}), agent("a2", has={"cpu": 8, "mem": "64g"})]
    answer = told(snapshot(nodes, [session(wants={"cpu": 32, "mem": "4g"})]), "s1")
    assert answer.largest == slots({"cpu": 8, "mem": "64g"})


def test_places_in_the_line() -> None:
    pending = [session(f"s{number}", {"cpu": 8}, at=number) for number in range(3)]
    case = snapshot([agent(used={"cpu": 1})], pending)
    assert told(case, "s2").message == "queued, third in line: waiting for 1 CPU"
    assert told(case, "s2").position == 3


@pytest.mark.parametrize(
    ("number", "word"),
    [
        (1, "first"),
        (9, "ninth"),
        (12, "twelfth"),
        (13, "13th"),
        (21, "21st"),
        (22, "22nd"),
        (113, "113th"),
        (123, "123rd"),
    ],
)
def test_ordinals(number: int, word: str) -> None:
    assert ordinal(number) == word
