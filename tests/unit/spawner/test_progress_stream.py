"""Server-sent events out of any chunks, and a story that everybody hears from its beginning."""

import asyncio
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from authenticator.problems import InvalidParameters
from spawner.client import End, EventParser, Refusal, Unreachable
from spawner.starting import (
    MAX_EVENTS,
    StartStory,
    ended_early,
    invalid_options,
    refused,
)

STREAM = (
    ': keep-alive\n\nevent: progress\ndata: {"id": 1}\n\nid: 7\r\nevent: progress\r\ndata: a\r\n'
    "data:b ü\r\n\r\nevent: nothing\n\ndata: plain\r\revent: end\ndata: {}\n\nevent: cut off\ndata: x"
)
EVENTS = [
    ("progress", '{"id": 1}'),
    ("progress", "a\nb ü"),
    ("message", "plain"),
    ("end", "{}"),
]


@settings(max_examples=60)
@given(st.lists(st.integers(0, len(STREAM.encode())), max_size=12))
def test_events_do_not_depend_on_chunks(cuts: list[int]) -> None:
    data = STREAM.encode()
    parser = EventParser()
    edges = [0, *sorted(cuts), len(data)]
    chunks = [data[start:end] for start, end in itertools.pairwise(edges)]
    assert [event for chunk in chunks for event in parser.feed(chunk)] == EVENTS


def test_line_without_end_is_given_up() -> None:
    parser = EventParser()
    parser.feed(b"x" * 200_000)
    with pytest.raises(Unreachable):
        parser.feed(b"x" * 100_000)


async def test_every_listener_hears_all_from_the_beginning() -> None:
    story = StartStory()
    early = asyncio.ensure_future(_heard(story))
    await asyncio.sleep(0)
    story.tell("one", "PENDING", 5)
    await asyncio.sleep(0)
    story.tell("one", "PENDING", 6)
    late = asyncio.ensure_future(_heard(story))
    story.tell("two", "RUNNING", 100)
    story.close()
    assert await early == await late == ["One", "Two"]
    assert await _heard(story) == ["One", "Two"]


async def test_long_story_keeps_its_beginning_and_its_end() -> None:
    story = StartStory()
    listener = story.listen()
    story.tell("begin")
    assert (await anext(listener))["message"] == "Begin"
    for number in range(2 * MAX_EVENTS):
        story.tell(str(number))
    story.close()
    rest = [event["message"] async for event in listener]
    heard = await _heard(story)
    assert heard[0] == "Begin"
    assert heard[1:] == rest
    assert rest[-1] == str(2 * MAX_EVENTS - 1)
    assert len(heard) == MAX_EVENTS


async def _heard(story: StartStory) -> list[str]:
    return [event["message"] async for event in story.listen()]


def test_failures_are_sentences_with_escaped_html() -> None:
    failure = ended_early(End("ERROR", "<b>boom</b>", exit_code=3), "one\n<script>")
    assert "<b>" not in failure.jupyterhub_html_message
    assert "&lt;script&gt;" in failure.jupyterhub_html_message
    assert "(exit code 3)" in failure.message
    assert "one\n<script>" in failure.message
    assert "script" not in str(failure), "the hub's log has one line of ours only"
    assert "\n" not in str(failure)
    assert (failure.reason, failure.status_code) == ("start-failed", 500)
    assert ended_early(End("CANCELLED"), "").reason == "cancelled"
    quoting = End("ERROR", "it ended (exit code 1). Last lines of its output: x", exit_code=1)
    assert "ended (exit code 1)." in ended_early(quoting, "all of it").message
    assert "<pre>x</pre>" in ended_early(quoting, "").jupyterhub_html_message


def test_refusals_keep_status_and_fields() -> None:
    fields = {"config.resources.cpu": "is too much"}
    failure = refused(Refusal(400, "invalid-api-params", "no", fields))
    assert (failure.status_code, failure.reason) == (400, "invalid-options")
    assert failure.fields == fields
    quota = refused(Refusal(412, "quota-exceeded", "Only 2."))
    assert (quota.message, quota.reason, quota.status_code) == ("Only 2.", "quota", 412)
    assert refused(Refusal(401, "auth-failed", "x")).status_code == 500
    assert "&lt;" in invalid_options(InvalidParameters({"a": "<"})).jupyterhub_html_message
