"""What labels of images say about apps; a label that cannot be read binds nobody and is told."""

from __future__ import annotations

import uuid

import pytest

from spawner.sessions.apps import (
    KNOWN,
    apps_of,
    label_warnings,
    labelled_ports,
    labelled_services,
    own_command,
    placed,
)


def test_all_forms_of_service_ports() -> None:
    text = "lab:http:8888, db:tcp:[5432,5433],mine:preopen:9000,hidden:internal:9001,old:pty:7000"
    found, faults = labelled_services(text)
    assert faults == []
    assert found == [
        ("lab", "http", 8888),
        ("db", "tcp", 5432),
        ("db", "tcp", 5433),
        ("mine", "preopen", 9000),
        ("hidden", "internal", 9001),
    ]


@pytest.mark.parametrize(
    "text", ["bad", "x::80", "x:smtp:25", "x:tcp:99999", "a:tcp:1,b:tcp:1", "x:tcp:[1"]
)
def test_broken_service_ports_are_told(text: str) -> None:
    labels = {"ai.backend.service-ports": text}
    assert len(label_warnings(labels)) == 1
    assert {app["name"] for app in apps_of(labels, (), 0)} <= {"terminal", "sshd", "a"}


def test_apps_of_an_image() -> None:
    labels = {
        "ai.backend.service-ports": "jupyterlab:http:8888,tensorboard:http:6006,inner:internal:1",
        "ai.perijove.app.files": '{"argv": ["serve", "{bind_port}"], "port": 8000}',
        "ai.perijove.app.tensorboard": '{"argv": ["tb"], "port": 6006}',
    }
    apps = {app["name"]: app for app in apps_of(labels, (9000,), 8888)}
    assert list(apps) == ["terminal", "jupyterlab", "tensorboard", "files", "sshd", "9000"]
    assert apps["jupyterlab"]["argv"] == []  # the session's own command
    assert apps["tensorboard"]["argv"] == ["tb"]
    assert apps["files"] == {
        "name": "files",
        "protocol": "http",
        "port": 8000,
        "argv": ["serve", "{bind_port}"],
    }
    assert apps["sshd"]["argv"] == list(KNOWN["sshd"])
    assert apps["9000"] == {"name": "9000", "protocol": "preopen", "port": 9000, "argv": []}


def test_other_labels_that_cannot_be_read() -> None:
    labels = {
        "ai.perijove.app.x": "{}",
        "ai.perijove.app.y": '{"argv": ["y"], "port": 70000}',
        "ai.backend.resource.min.cpu": "some",
        "ai.backend.resource.min.mem": "256m",
        "ai.backend.role": "KITCHEN",
    }
    told = label_warnings(labels)
    assert [sentence.partition(": ")[0] for sentence in told] == [
        "ai.perijove.app.x",
        "ai.perijove.app.y",
        "ai.backend.resource.min.cpu",
        "ai.backend.role",
    ]


def test_the_main_port_of_an_inference_session_is_an_endpoint() -> None:
    labels = {
        "ai.backend.service-ports": "lab:http:8888, tb::6006, api:http:[8000,8001], bad",
        "ai.backend.endpoint-ports": "api",
    }
    usual = [("lab", 8888), ("api", 8000), ("api", 8001)]
    ports = [(each["name"], each["container_port"]) for each in labelled_ports(labels)]
    assert ports == usual
    ports = [
        (each["name"], each["container_port"]) for each in labelled_ports(labels, inference=True)
    ]
    assert ports == [*usual[1:], usual[0]]


def test_programs_of_python_run_in_the_interpreter_that_the_image_names() -> None:
    labels = {
        "ai.backend.runtime-path": "/usr/local/bin/python3",
        "ai.backend.service-ports": "jupyter:http:1,jupyterlab:http:2,tensorboard:http:3,vscode:http:4",
    }
    starts = {app["name"]: app["argv"] for app in apps_of(labels, (), 0)}
    module = ["/usr/local/bin/python3", "-m"]
    assert starts["jupyter"][:3] == [*module, "notebook"]
    assert starts["jupyterlab"] == [*module, "jupyterlab", *KNOWN["jupyterlab"][2:]]
    assert starts["tensorboard"] == [*module, "tensorboard.main", *KNOWN["tensorboard"][1:]]
    assert starts["vscode"] == list(KNOWN["vscode"])
    labels["ai.backend.runtime-path"] = "/usr/bin/R"
    assert apps_of(labels, (), 0)[1]["argv"] == list(KNOWN["jupyter"])


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ('["lab", "{bind_port}", "{base_path}"]', ["lab", "{bind_port}", "{base_path}"]),
        ('["lab", "{bind_port}"]', []),  # it cannot be below a path
        ("{}", []),
        ("[", []),
    ],
)
def test_an_images_own_command_is_told_its_path_where_it_wants_to_know(
    label: str, words: list[str]
) -> None:
    assert own_command({"ai.perijove.command": label}) == words
    session_id = uuid.uuid4()
    spec = {"command": words, "ports": [{"name": "jupyterlab"}], "apps": []}
    command = placed(spec, "/apps/", session_id)["command"]
    assert command == ["lab", "{bind_port}", f"/apps/{session_id}/jupyterlab/"][: len(words)]
