"""``perijove resource-group`` and its like: how fields are written, and what is refused."""

import pytest

from hub.commands.administration import ProjectGroup, RecordAdd, fields_from
from hub.commands.base import UsageError
from hub.commands.user import UserGroup, UserSet

FIELDS = [
    (["a=1", "b=true", "c=none", "d=unlimited"], {"a": 1, "b": True, "c": None, "d": None}),
    (["description=two words", 'x={"cpu": 4}'], {"description": "two words", "x": {"cpu": 4}}),
    (["half_life=7d", "empty="], {"half_life": "7d", "empty": ""}),
    (["options.sequencer=drf"], {"options": {"sequencer": "drf", "kept": 1}}),
    (["options.devices.numa=require"], {"options": {"devices": {"numa": "require"}, "kept": 1}}),
    (["options={}"], {"options": {}}),
    (
        ["slots.cuda.device=2", "slots.cpu=4"],
        {"slots": {"cuda.device": 2, "cpu": 4, "mem": "1g"}},
    ),
]


@pytest.mark.parametrize(("words", "fields"), FIELDS)
def test_fields(words, fields):
    before = {"options": {"kept": 1}, "slots": {"mem": "1g"}}
    assert fields_from(words, before) == fields
    assert before == {"options": {"kept": 1}, "slots": {"mem": "1g"}}, "it only looks"


@pytest.mark.parametrize("word", ["cpu", "=4", ""])
def test_what_is_no_field(word):
    with pytest.raises(UsageError, match="is not KEY=VALUE"):
        fields_from([word])


def test_each_kind_has_its_own_commands():
    assert set(ProjectGroup.subcommands) == {
        "list",
        "show",
        "set",
        "add",
        "remove",
        "join",
        "leave",
    }
    assert {"list", "show", "set", "add", "remove"} <= set(UserGroup.subcommands)
    assert (UserSet.plural, UserSet.name) == ("users", "perijove user set")
    add, _ = ProjectGroup.subcommands["add"]
    assert issubclass(add, RecordAdd)
    assert (add.plural, add.name) == ("projects", "perijove project add")
