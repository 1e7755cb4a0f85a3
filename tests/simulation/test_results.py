"""The committed results are those of the simulator, and what the page says of them is in them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.contenders import EXPERIMENTS
from benchmarks.simulation import IMAGES, PAGE, RESULTS, report, simulate
from benchmarks.tables import filled

HOW = "run scripts/bench simulation --save"
TIMES = {"cpu_seconds", "slowest_pass_seconds"}


def committed() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULTS.read_text())
    return found


def test_the_results_have_everybody_and_the_machine() -> None:
    found = committed()
    names = {name: [each.name for each in it.contenders] for name, it in EXPERIMENTS.items()}
    there = {name: list(it["policies"]) for name, it in found["experiments"].items()}
    assert there == names, HOW
    assert found["machine"]["cpus"]


def test_the_page_has_the_numbers_of_the_results() -> None:
    page = PAGE.read_text()
    assert filled(page, committed()["experiments"]) == page, HOW
    for name in EXPERIMENTS:
        assert f"<!-- simulation {name} -->" in page
        assert f"(images/simulation-{name}.png)" in page
        assert (IMAGES / f"simulation-{name}.png").is_file(), HOW


def test_nobody_waited_longer_than_promised() -> None:
    parts = [
        numbers["longest_of_bound"]
        for experiment in committed()["experiments"].values()
        for numbers in experiment["policies"].values()
        if numbers.get("longest_of_bound") is not None
    ]
    assert parts
    assert max(parts) <= 1.0


@pytest.mark.parametrize("name", ["mixture", "campus"])
def test_the_results_can_be_had_again(name: str) -> None:
    """The plain lines are simulated anew: the same seed gives the same numbers."""
    experiment = EXPERIMENTS[name]
    workload = experiment.make()
    kept = committed()["experiments"][name]["policies"]
    for contender in experiment.contenders:
        if not contender.ours:
            again = report(workload, contender, simulate(workload, contender))
            for numbers in (again, kept[contender.name]):
                for each in TIMES:
                    del numbers[each]
            assert again == kept[contender.name], HOW
