"""The form offers what can be had, preselects what was chosen, and keeps what was entered."""

from typing import Any

from spawner.form import Entered, view
from spawner.options import Bounds

GIB = 1024**3
OFFER: dict[str, Any] = {
    "presets": [
        {"name": "small", "slots": {"cpu": "1", "mem": "1g"}, "human": "1 CPU", "verdict": "now"},
        {
            "name": "gpu",
            "slots": {"cpu": "4", "mem": "8g", "cuda.device": "1"},
            "verdict": "wait",
            "message": "Waits for a GPU.",
        },
    ],
    "groups": [
        {
            "name": "default",
            "agents": 1,
            "free": {"cpu": "2", "mem": "3g", "cuda.device": "0"},
            "largest": {"cpu": "8", "mem": "16g", "cuda.device": "2"},
            "slots": [
                {"name": "cpu", "human_name": "CPU", "unit": "CPU", "quantum": "0.1"},
                {"name": "mem", "human_name": "Memory", "unit": "memory", "quantum": "1"},
                {"name": "cuda.device", "human_name": "GPU", "unit": "GPU", "quantum": "1"},
            ],
        }
    ],
    "images": [{"name": "lab:1", "label": "Lab"}, {"name": "ml:1", "label": ""}],
    "defaults": {"image": "lab:1", "resource_group": "default", "preset": "small"},
    "notice": None,
}


def shown(last: Any = None, posted: Entered | None = None, bounds: Bounds | None = None) -> Any:
    return view(OFFER, bounds or Bounds(), last, posted)


def test_first_time_shows_the_defaults() -> None:
    form = shown()
    assert form["preset"] == "small"
    assert [slider["value"] for slider in form["sliders"]] == ["1", "1"]
    assert [slider["max"] for slider in form["sliders"]] == ["8", "16"]
    (gpu,) = form["accelerators"]
    assert (gpu["name"], gpu["value"], gpu["max"], gpu["free"]) == (
        "slot.cuda.device",
        "0",
        "2",
        "0 GPUs",
    )
    assert [image["label"] for image in form["images"]] == ["Lab", "ml:1"]


def test_last_choice_is_preselected_and_nonsense_ignored() -> None:
    form = shown({"slots": {"cpu": "3", "mem": "5.5g"}, "image": "ml:1"})
    assert form["preset"] == "custom"
    assert [slider["value"] for slider in form["sliders"]] == ["3", "5.5"]
    assert [image["selected"] for image in form["images"]] == [False, True]
    assert shown({"preset": "gpu"})["accelerators"][0]["value"] == "1"
    assert shown({"preset": "gone"})["preset"] == "custom"
    assert shown({"evil": [1]})["preset"] == "small"


def test_refused_form_keeps_what_was_entered() -> None:
    fields = {"preset": ["custom"], "cpu": ["99"], "mem_gib": ["x"], "image": ["ml:1"]}
    form = shown(posted=Entered(fields, {"cpu": "too much"}))
    assert [slider["value"] for slider in form["sliders"]] == ["99", "x"]
    assert form["errors"] == {"cpu": "too much"}
    assert form["images"][1]["selected"]


def test_bounds_of_the_hub_are_shown() -> None:
    bounds = Bounds(allowed_images=("ml:1",), most={"cpu": 2_000_000, "mem": 2 * GIB})
    form = shown(bounds=bounds)
    assert [slider["max"] for slider in form["sliders"]] == ["2", "2"]
    assert [image["name"] for image in form["images"]] == ["ml:1"]
    assert [preset["verdict"] for preset in form["presets"]] == ["now", "never"]


def test_absent_manager_still_gives_a_form() -> None:
    form = view(None, Bounds(), {"preset": "small"}, None)
    assert form["away"]
    assert form["chosen_before"]
    assert form["images"] == form["groups"] == form["presets"] == []
