"""Options are checked by name whatever is sent, and come to the request that the form shows."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from authenticator.problems import InvalidParameters
from spawner.options import (
    Bounds,
    Choice,
    from_form,
    parse,
    resolve,
    seen_from_session,
    session_name,
    too_big,
)

GIB = 1024**3
OFFER: dict[str, Any] = {
    "presets": [
        {"name": "small", "slots": {"cpu": "1", "mem": "2g"}, "shmem": "0"},
        {"name": "gpu", "slots": {"cpu": "4", "mem": "8g", "cuda.device": "1"}, "shmem": "1g"},
    ],
    "images": [{"name": "lab:1"}, {"name": "ml:1"}],
    "defaults": {"image": "lab:1", "resource_group": "default", "preset": "small"},
}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner, max_size=4)
    ),
    max_leaves=12,
)
OPTION_LIKE = st.dictionaries(
    st.sampled_from(["image", "resource_group", "preset", "slots", "shmem", "other", ""]), JSON
)


def refusals(check: Any, sent: Any) -> dict[str, str]:
    """Fields that ``check`` refuses in ``sent``; empty when it takes it."""
    try:
        check(sent)
    except InvalidParameters as problem:
        return problem.fields or {"": "refused without a field"}
    return {}


@settings(max_examples=25)
@given(JSON | OPTION_LIKE)
def test_anything_is_either_a_choice_or_refused_with_short_sentences(sent: Any) -> None:
    for name, why in refusals(parse, sent).items():
        assert 0 < len(name) < 100
        assert len(why) < 400
        assert (name + why).isprintable()


@given(
    st.dictionaries(st.text(max_size=20), st.lists(st.text(max_size=30), max_size=3), max_size=6)
)
def test_what_a_form_comes_to_is_always_valid(form: dict[str, list[str]]) -> None:
    wrong = refusals(from_form, form)
    assert "" not in wrong
    assert wrong or not refusals(parse, from_form(form))


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (None, "user_options"),
        ([], "user_options"),
        ({"slots": {"cpu": True}}, "slots.cpu"),
        ({"slots": {"cpu": "0.05"}}, "slots.cpu"),
        ({"slots": {"cpu": 10**5000}}, "slots.cpu"),
        ({"slots": {"mem": "inf"}}, "slots.mem"),
        ({"slots": {"a" + "." * 60 + "!": "1"}}, "slots"),
        ({"slots": {f"s{n}": "1" for n in range(17)}}, "slots"),
        ({"shmem": "-1"}, "shmem"),
        ({"image": "x\n"}, "image"),
        ({"image": "a" * 300}, "image"),
        ({"resource_group": "a/b"}, "resource_group"),
        ({"\x00": 1}, "'\\x00'"),
    ],
)
def test_wrong_fields_are_named(options: Any, field: str) -> None:
    with pytest.raises(InvalidParameters) as caught:
        parse(options)
    assert list(caught.value.fields) == [field]


def test_form_fields_become_options() -> None:
    form = {"preset": ["custom"], "cpu": ["2"], "mem_gib": ["1.5"], "slot.cuda.device": ["1"]}
    assert from_form(form | {"_xsrf": ["t"], "image": ["lab:1"]}) == {
        "image": "lab:1",
        "slots": {"cpu": "2", "mem": "1.5g", "cuda.device": "1"},
    }
    assert from_form(form | {"preset": ["small"]}) == {"preset": "small"}
    part = "cuda.device:1g.10gb-mig"
    assert from_form({f"slot.{part}": ["1"]}) == {"slots": {part: "1"}}
    assert from_form({}) == {}
    assert from_form({"slot.cuda.device": ["0"], "cpu": ["1"]}) == {"slots": {"cpu": "1"}}


def test_form_errors_are_named_by_form_field() -> None:
    form = {"preset": ["custom"], "cpu": ["x"], "mem_gib": ["-1"], "slot.cuda.device": ["y"]}
    with pytest.raises(InvalidParameters) as caught:
        from_form(form)
    assert set(caught.value.fields) == {"cpu", "mem_gib", "slot.cuda.device"}


def test_nothing_chosen_comes_to_the_defaults() -> None:
    request = resolve(Choice(), OFFER, Bounds())
    assert (request.image, request.resource_group) == ("lab:1", "default")
    assert request.check_body()["slots"] == {"cpu": "1", "mem": str(2 * GIB)}
    assert request.shmem is None


def test_slots_without_preset_take_the_rest_from_the_default_one() -> None:
    request = resolve(parse({"slots": {"cpu": "3"}}), OFFER, Bounds())
    assert request.check_body()["slots"] == {"cpu": "3", "mem": str(2 * GIB)}


def test_preset_brings_accelerators_and_shared_memory() -> None:
    request = resolve(parse({"preset": "gpu"}), OFFER, Bounds())
    assert request.check_body()["slots"]["cuda.device"] == "1"
    assert request.shmem == GIB


def test_limits_of_the_hub_are_default_and_maximum() -> None:
    bounds = Bounds(most={"cpu": 500_000, "mem": GIB}, least={"mem": GIB // 2})
    request = resolve(Choice(), OFFER, bounds)
    assert request.slots == {"cpu": 500_000, "mem": GIB}
    with pytest.raises(InvalidParameters) as caught:
        resolve(parse({"slots": {"cpu": "2", "mem": "100m"}}), OFFER, bounds)
    assert set(caught.value.fields) == {"slots.cpu", "slots.mem"}
    with pytest.raises(InvalidParameters):
        resolve(parse({"preset": "gpu"}), OFFER, bounds)


def test_images_are_closed_by_default() -> None:
    with pytest.raises(InvalidParameters) as caught:
        resolve(parse({"image": "evil:1"}), OFFER, Bounds())
    assert "lab:1, ml:1" in caught.value.fields["image"]
    assert resolve(parse({"image": "ml:1"}), OFFER, Bounds()).image == "ml:1"
    only = Bounds(allowed_images=("ml:1",))
    assert resolve(Choice(), OFFER, only).image == "ml:1"
    with pytest.raises(InvalidParameters):
        resolve(parse({"image": "lab:1"}), OFFER, only)
    assert resolve(Choice(), OFFER, only, image="own:1").image == "own:1"


def test_slots_beyond_the_largest_node_are_named() -> None:
    groups = [
        {"name": "default", "largest": {"cpu": "2", "mem": "4g"}},
        {"name": "big", "largest": {"cpu": "64", "mem": "1t"}},
    ]
    wanted = {"slots": {"cpu": "8", "mem": "1g", "cuda.device": "1"}}
    request = resolve(parse(wanted), OFFER, Bounds())
    assert too_big(request, {"groups": groups}) == {
        "slots.cpu": "The largest node offers 2 CPUs.",
        "slots.cuda.device": "No node has any.",
    }
    assert too_big(request, {}) == {}


NAMES = st.text(max_size=80)


@given(NAMES, NAMES, NAMES, NAMES)
def test_session_names_are_valid_and_differ(user: str, server: str, other: str, more: str) -> None:
    name = session_name("hub", user, server)
    assert 4 <= len(name) <= 64
    assert name.isascii()
    assert name.replace("-", "").isalnum()
    if (user, server) != (other, more):
        assert name != session_name("hub", other, more)
    assert name != session_name("another hub", user, server)


def test_odd_names_do_not_collide() -> None:
    users = ["a.b", "a-b", "a_b", "A-B", "a b", "ab", "a", "", "..", "ü", "a" * 100, "a" * 101]
    servers = ["", "lab", "b", "a-b", "x" * 30]
    names = {session_name("hub", user, server) for user in users for server in servers}
    assert len(names) == len(users) * len(servers)
    assert session_name("hub", "alice", "").startswith("alice-lab-")


@pytest.mark.parametrize(
    ("url", "seen"),
    [
        ("http://127.0.0.1:8081/hub/api", "http://{session_address}:8081/hub/api"),
        ("http://[::1]:8081/x", "http://{session_address}:8081/x"),
        ("http://localhost/x", "http://{session_address}/x"),
        ("https://hub.example.org/x", "https://hub.example.org/x"),
    ],
)
def test_loopback_is_replaced_by_the_address_that_sessions_see(url: str, seen: str) -> None:
    assert seen_from_session(url) == seen
