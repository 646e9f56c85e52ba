"""Each kind of work from the client's side: how it is submitted, refused, and told apart on the wire."""

from __future__ import annotations

import inspect
import json
from typing import Any

import pytest

from tasks import InvalidJob, JobExpired, JobFailed, RateLimited, Usage
from tasks.testing import InMemoryQueue
from tasks.wire.kinds import KINDS, JobKind, kind_of_url
from tasks.wire.message import Envelope
from tasks.wire.request import is_repeatable, new_job
from tasks.wire.texts import answer_with, text_of
from workers.prompt.failure import Failure
from workers.prompt.job import parse

MESSAGES = [{"role": "user", "content": "Hello"}]
PROMPTS: dict[JobKind, Any] = {
    "chat": MESSAGES,
    "embed": ["Hello"],
    "respond": [{"role": "user", "content": "Hello"}],
    "complete": ["Hello", "Bye"],
    "moderate": "Hello",
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def arguments(kind: JobKind, **more: Any) -> dict[str, Any]:
    return {"model": "m", KINDS[kind].field: PROMPTS[kind], **more}


@each_kind
@pytest.mark.covers("option", "kind")
def test_a_kind_has_its_task_and_its_body(kind: JobKind) -> None:
    job = new_job(kind=kind, **arguments(kind, user="u-1"))
    assert json.loads(job.body) == arguments(kind, user="u-1")
    message = json.loads(Envelope().render(job, group=None, now_s=0.0))
    assert message["headers"]["task"] == KINDS[kind].task == f"prompts.{kind}"
    assert "kind" not in json.loads(job.text(submitted_at=0.0))["promptmill"]


@pytest.mark.parametrize("kind", ["chat", "embed"])
def test_chats_and_embeddings_need_not_say_so(kind: JobKind) -> None:
    assert new_job(**arguments(kind)).kind == kind


@pytest.mark.parametrize(
    ("given", "part"),
    [
        (
            {"prompt": "hush"},
            "for an embedding; a `prompt` is for queue.complete()",
        ),
        ({"kind": "respond"}, "input: must be a text, or a list"),
        ({"kind": "respond", "input": {"hush": 1}}, "input: must be a text, or a list"),
        (
            {"kind": "respond", "input": "hush", "messages": MESSAGES},
            "messages: is no field of a response",
        ),
        (
            {"kind": "complete", "prompt": "hush", "input": "hush"},
            "input: is no field of a completion",
        ),
        ({"kind": "chat", "input": "hush"}, "input: is no field of a chat, whose prompt is `messages`"),
        ({"kind": "embed", "messages": MESSAGES}, "messages: is no field of an embedding"),
        ({"kind": "respond", "input": "hush", "background": True}, "background: the queue is the background"),
        ({"kind": "respond", "input": "hush", "extra_body": {"background": True}}, "background: the queue is"),
        (
            {"kind": "complete", "prompt": "hush", "schema": {"type": "object"}},
            "schema: only a chat's answer and a response are held to it, not a completion",
        ),
        ({"kind": "respond", "input": "hush", "repair": 1}, "repair: there is no schema"),
        ({"kind": "moderate", "input": "hush", "stream": True}, "stream: a moderation comes whole"),
        ({"kind": "draw", "input": "hush"}, "kind: must be 'chat', 'embed', 'respond', 'complete' or 'moderate'"),
    ],
)
def test_what_fits_no_kind_is_refused_by_name(given: dict[str, Any], part: str) -> None:
    with pytest.raises(InvalidJob) as caught:
        new_job(model="m", **given)
    assert part in str(caught.value)
    assert "hush" not in str(caught.value)


def test_fields_of_a_response_are_the_providers() -> None:
    own: dict[str, Any] = {
        "prompt": {"id": "pmpt_1"},
        "background": False,
        "store": False,
        "text": {"format": {"type": "text"}},
    }
    job = new_job(kind="respond", model="m", input="Hi", stream=True, **own)
    assert json.loads(job.body) == {"model": "m", "input": "Hi", **own}
    assert job.streams


@pytest.mark.parametrize(
    ("kind", "body", "repeats"),
    [
        ("embed", {}, True),
        ("moderate", {}, True),
        ("respond", {"temperature": 0}, True),
        ("respond", {"temperature": 0, "conversation": "conv_1"}, False),
        ("respond", {}, False),
        ("complete", {"temperature": 0}, True),
        ("complete", {"temperature": 0.5}, False),
    ],
)
def test_which_requests_bring_the_same_answer(kind: JobKind, body: dict[str, Any], repeats: bool) -> None:
    assert is_repeatable(kind, body) is repeats


@each_kind
def test_a_stock_producers_message_is_read(kind: JobKind) -> None:
    job = parse(kind, "job-1", [], arguments(kind, promptmill={"tenant": "t"}), now=0.0)
    assert (job.kind, job.body, job.options.tenant) == (kind, arguments(kind), "t")
    with pytest.raises(Failure, match=f"{KINDS[kind].noun} needs a `{KINDS[kind].field}` that is not empty"):
        parse(kind, "job-1", [], {"model": "m"}, now=0.0)


def test_a_worker_refuses_the_background_too() -> None:
    with pytest.raises(Failure, match="`background`: the queue is the background") as caught:
        parse("respond", "job-1", [], arguments("respond", background=True), now=0.0)
    assert caught.value.code == "bad_request"


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("/v1/chat/completions", "chat"),
        ("https://api.openai.com/v1/completions/", "complete"),
        ("/v1/responses", "respond"),
        ("/v1/responses/resp_1", None),
        ("/v1/images", None),
    ],
)
def test_a_url_names_the_kind_of_its_endpoint(url: str, kind: JobKind | None) -> None:
    assert kind_of_url(url) == kind


# -- the queue in memory, and the blocking twin


@pytest.mark.parametrize("name", ["respond", "complete", "moderate"])
async def test_each_kind_has_a_method(name: JobKind) -> None:
    queue = InMemoryQueue(lambda body: "24 clips")
    job = await getattr(queue, name)(**arguments(name, tenant="t"))
    answer = await job.result(timeout_s=5)
    assert (answer.text, answer.metadata) == ("24 clips", None)
    [submitted] = queue.submitted
    assert (submitted["kind"], submitted["body"]) == (name, arguments(name))
    assert submitted["promptmill"]["tenant"] == "t"


@pytest.mark.parametrize("name", ["respond", "complete", "moderate"])
def test_the_blocking_twin_has_the_same(name: JobKind) -> None:
    with InMemoryQueue(lambda body: {"results": [1]}).sync as queue:
        answer = getattr(queue, name)(**arguments(name)).result(timeout_s=5)
        assert answer.response == {"results": [1]}
        shown = list(inspect.signature(getattr(queue, name)).parameters)
        assert shown == list(inspect.signature(getattr(InMemoryQueue(), name)).parameters)


@pytest.mark.parametrize(
    ("asked", "said", "tier"),
    [
        ({}, {}, "standard"),
        ({"service_tier": "flex"}, {}, "flex"),
        ({"service_tier": "flex"}, {"service_tier": "default"}, "standard"),
        ({}, {"service_tier": "priority"}, "priority"),
        ({"service_tier": "scale"}, {}, "other"),
        ({"service_tier": 7}, {}, "standard"),
    ],
)
def test_its_tier_is_the_one_said_or_asked_for(asked: Any, said: Any, tier: str) -> None:
    with InMemoryQueue(lambda body: {"results": [1], **said}).sync as queue:
        assert queue.moderate(**arguments("moderate"), **asked).result(timeout_s=5).tier == tier


async def test_a_group_takes_every_kind() -> None:
    queue = InMemoryQueue(lambda body: "x")
    group = await queue.submit_many({"kind": kind, **arguments(kind)} for kind in KINDS)
    assert [result.ok async for result in group.as_completed()] == [True] * len(KINDS)
    assert [each["kind"] for each in queue.submitted] == list(KINDS)


async def test_a_response_is_read_as_it_comes_in_memory() -> None:
    queue = InMemoryQueue(lambda body: iter(["24 ", "clips"]))
    job = await queue.respond(model="m", input="Hi", stream=True)
    assert "".join([piece async for piece in job.stream()]) == "24 clips"
    answer = await job.result()
    assert answer.response["output"][0]["content"][0]["text"] == answer.text == "24 clips"  # type: ignore[index]


@each_kind
def test_an_answer_in_memory_has_its_kinds_shape(kind: JobKind) -> None:
    body = answer_with(kind, "24 clips", id="j", model="m")
    assert text_of(kind, body) == "24 clips"
    broken: list[dict[str, Any]] = [{}, {"choices": []}, {"choices": [{}]}, {"output": [1]}, {"output": None}]
    assert [text_of(kind, each) for each in broken] == [None] * len(broken)


async def test_an_answer_in_memory_came_by_the_standard_tier() -> None:
    queue = InMemoryQueue()
    job = await queue.submit(model="m", messages=[{"role": "user", "content": "Hello"}])
    assert (await job.result()).tier == "standard"


async def test_an_answer_in_memory_has_the_usage_that_it_states() -> None:
    body = {**answer_with("chat", "24 clips", id="j", model="m"), "usage": {"prompt_tokens": 7, "completion_tokens": 3}}
    queue = InMemoryQueue(lambda _: body)
    job = await queue.submit(model="m", messages=MESSAGES)
    assert (await job.result()).usage == Usage(7, 3)
    events = [event async for event in job.events()]
    assert [event.kind for event in events] == ["started", "text", "usage", "end"]
    assert events[-2].usage == Usage(7, 3)


@pytest.mark.parametrize(("error", "status"), [(JobExpired("late"), "expired"), (RateLimited("many"), "failed")])
async def test_a_failure_in_memory_is_that_of_one_call(error: JobFailed, status: str) -> None:
    queue = InMemoryQueue(lambda _: error)
    job = await queue.submit(model="m", messages=MESSAGES)
    with pytest.raises(type(error)) as caught:
        await job.result()
    assert await job.status() == status
    result = caught.value.result
    assert result is not None and result.error is not None
    assert [each.code for each in result.failed_attempts] == [error.code]
    assert result.error.attempts == result.failed_attempts and result.attempts == 1
