"""Options of a resource group: what is taken over, and a sentence for everything wrong at once."""

from typing import Any

import pytest

from spawner.scheduler.model import DeviceRules, GroupPolicy, PreemptionRules
from spawner.scheduler.policies import BUILT_IN
from spawner.sessions.durations import seconds_of
from spawner.sessions.groups import GroupOptions, OptionsError, read_options
from spawner.sessions.kinds import TYPES
from spawner.sessions.losses import LossRule


def read(options: dict[str, Any]) -> GroupOptions:
    return read_options("lab", options, BUILT_IN)


def test_no_options_are_the_schedulers_own_defaults() -> None:
    assert read({}) == GroupOptions(GroupPolicy("lab"))


def test_everything_that_can_be_said() -> None:
    found = read(
        {
            "sequencer": "fifo",
            "selector": "concentrated",
            "slot_priority": ["cuda", "mem"],
            "devices": {"fill": "evenly", "unfragmented": True, "numa": "prefer"},
            "served_slots": ["cpu", "mem"],
            "required_slots": ["cpu"],
            "weights": {"ada": 2},
            "slot_weights": {"cuda.device": 10.5},
            "half_life": "1d",
            "ageing": 3600,
            "rise": "never",
            "preemption": {"order": "oldest", "action": "terminate", "minimum_run_time": "5m"},
            "default_slots": {"mem": "2g"},
            "shmem": "128m",
            "allowed_session_types": ["batch"],
            "allow_pull": True,
            "default_image": "python:3",
            "seccomp": "strict",
            "lost_after": 0,
            "pending_timeout": "2w",
        }
    )
    assert found == GroupOptions(
        GroupPolicy(
            "lab",
            "fifo",
            "concentrated",
            ("cuda", "mem"),
            DeviceRules("evenly", True, "prefer"),
            frozenset({"cpu", "mem"}),
            frozenset({"cpu"}),
            {"ada": 2.0},
            {"cuda.device": 10.5},
            86400.0,
            3600.0,
            PreemptionRules("oldest", "terminate", 300.0),
            None,
        ),
        {"mem": 2 * 2**30},
        128 * 2**20,
        ("batch",),
        True,
        "python:3",
        "strict",
        {each: LossRule(0.0, "terminate") for each in TYPES},
        1209600.0,
    )


@pytest.mark.parametrize("value", [None, {"enabled": False, "order": "oldest"}])
def test_preemption_is_off_unless_somebody_says_how(value: object) -> None:
    assert read({"preemption": value}).policy.preemption is None
    assert read({"preemption": {}}).policy.preemption == PreemptionRules()


WRONG: list[tuple[str, object, str, str]] = [
    ("sequencer", "lottery", "sequencer", "'lottery': one of"),
    ("sequencer", ["fifo"], "sequencer", "one of"),
    ("selector", "", "selector", "'': one of concentrated, dispersed"),
    ("slot_priority", "cuda", "slot_priority", "a list of different slots"),
    ("slot_priority", ["cpu", "cpu"], "slot_priority", "a list of different slots"),
    ("slot_priority", [3], "slot_priority", "'3' is not the name of a slot"),
    ("devices", 1, "devices", "an object"),
    ("devices", {"fill": "full"}, "devices.fill", "'full': one of evenly, fill"),
    ("devices", {"numa": 1}, "devices.numa", "one of none, prefer, require"),
    ("devices", {"size": 1}, "devices.size", "unknown: known are fill, numa, unfragmented"),
    ("served_slots", ["CPU"], "served_slots", "'CPU' is not the name of a slot"),
    ("weights", {"ada": 0}, "weights", "ada: '0' is not a number above 0"),
    ("weights", {"ada": True}, "weights", "is not a number"),
    ("slot_weights", {"?": 1}, "slot_weights", "is not the name of a slot"),
    ("slot_weights", {f"a{'.' * 60}!": 1}, "slot_weights", "is not the name of a slot"),
    ("half_life", "soon", "half_life", "'soon': a duration"),
    ("half_life", 0, "half_life", "longer"),
    ("ageing", -1, "ageing", "a duration"),
    ("preemption", {"scope": "world"}, "preemption.scope", "one of domain, group, project, user"),
    ("default_slots", {"cpu": "lots"}, "default_slots", "lots"),
    ("shmem", "x", "shmem", "x"),
    ("allowed_session_types", [], "allowed_session_types", "a list of interactive, batch"),
    ("allow_pull", "yes", "allow_pull", "'yes': true or false"),
    ("lost_after", float("nan"), "lost_after", "a duration"),
    ("lost_after", {"cron": 60}, "lost_after", "session types are interactive, batch, inference"),
    ("lost_after", {"batch": {"after": "1m"}}, "lost_after", "batch: '1m' is too short to requeue"),
    ("lost_after", {"batch": {"then": "requeue"}}, "lost_after", "batch: after is missing"),
    ("lost_after", {"batch": {"when": 1}}, "lost_after", "batch: 'when' is unknown: give after"),
    (
        "lost_after",
        {"interactive": {"after": "1m", "lease": True}},
        "lost_after",
        "interactive: '1m' is too short for a lease: at least 180 seconds",
    ),
    (
        "lost_after",
        {"batch": {"after": "1h", "lease": False}},
        "lost_after",
        "batch: lease is 'False': true or false with terminate, true with requeue",
    ),
    (
        "lost_after",
        {"interactive": {"after": "1h", "then": "requeue"}},
        "lost_after",
        "interactive: then is 'requeue': one of wait, terminate",
    ),
    ("colour", "red", "colour", "unknown: known are ageing, "),
]


@pytest.mark.parametrize(("name", "value", "where", "sentence"), WRONG)
def test_a_sentence_for_each_wrong_option(
    name: str, value: object, where: str, sentence: str
) -> None:
    with pytest.raises(OptionsError) as wrong:
        read({name: value})
    assert list(wrong.value.errors) == [where]
    assert sentence in wrong.value.errors[where]
    assert "'lab'" in str(wrong.value)


def test_all_errors_are_told_at_once() -> None:
    with pytest.raises(OptionsError) as wrong:
        read({"sequencer": "x", "half_life": "y", "preemption": {"order": "z", "action": "w"}})
    assert set(wrong.value.errors) == {
        "sequencer",
        "half_life",
        "preemption.order",
        "preemption.action",
    }


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("1.5h", 5400), ("7d", 604800), (3, 3), (0, 0)]
)
def test_durations(text: object, seconds: float) -> None:
    assert seconds_of(text) == seconds
