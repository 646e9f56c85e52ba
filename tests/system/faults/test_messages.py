"""What stands in the queue is not what it should be: promises.md rows 15 and 16."""

from __future__ import annotations

import base64
import json
import pickle
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from celery import Celery, chord

from tasks import DeadLettered, InvalidJob, JobCancelled, PromptQueue
from tests.support.celery_client import closing
from tests.support.waiting import wait_until

from .harness import MESSAGES, promptmill

if TYPE_CHECKING:
    from .harness import World


def message(task: str | None, body: Any, *, job_id: str, content_type: str = "application/json") -> str:
    """A message as kombu puts it into Redis. `body` is bytes, or becomes JSON."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"lang": "py", "id": job_id, "root_id": job_id, "argsrepr": "", "kwargsrepr": ""}
    if task is not None:
        headers["task"] = task
    return json.dumps(
        {
            "body": base64.b64encode(raw).decode(),
            "content-encoding": "binary" if "python" in content_type else "utf-8",
            "content-type": content_type,
            "headers": headers,
            "properties": {
                "correlation_id": job_id,
                "body_encoding": "base64",
                "delivery_info": {"exchange": "", "routing_key": "prompts"},
                "delivery_tag": uuid4().hex,
                "priority": 0,
            },
        }
    )


EMBEDDED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
CASES: dict[str, tuple[str, str | None, Any, str]] = {
    # name: kind of the dead letter, task, body, content type
    "pickle": ("unreadable", "prompts.chat", pickle.dumps(([], {}, EMBEDDED)), "application/x-python-serialize"),
    "a body that is not JSON": ("unreadable", "prompts.chat", b"\xff\xfe{", "application/json"),
    "a body that is half of one": ("unreadable", "prompts.chat", b'[["a"', "application/json"),
    "an unknown task": ("unknown_task", "prompts.chta", [[], {}, EMBEDDED], "application/json"),
    "no task": ("invalid", None, [[], {}, EMBEDDED], "application/json"),
    "a body of one part": ("undeliverable", "prompts.chat", [[]], "application/json"),
}
GARBAGE = [
    b"garbage",
    b"\xff\x00\xfe",
    b"[1, 2]",
    b"null",
    b"{}",
    b'{"body": "e30=", "headers": [], "properties": {}}',
]


@pytest.mark.promise(15)
def test_what_can_not_be_done_is_buried_and_the_worker_lives(world: World) -> None:
    world.start_redis()
    worker = world.start_worker(concurrency=5)
    for garbage in GARBAGE:
        world.redis.lpush("prompts", garbage)
    ids = {name: f"job-{uuid4()}" for name in CASES}
    for name, (_, task, body, content_type) in CASES.items():
        world.redis.lpush("prompts", message(task, body, job_id=ids[name], content_type=content_type))
    good = world.submit(3, model="quick")
    assert all(result.ok for result in world.results(good))
    wait_until(lambda: len(world.dead()) == len(CASES) + len(GARBAGE), "all are buried")
    letters = {letter["id"]: letter for letter in world.dead()}
    for name, (kind, *_) in CASES.items():
        assert (name, letters[ids[name]]["kind"]) == (name, kind)
        with pytest.raises(DeadLettered, match="dead_letter"):
            world.queue.job(ids[name]).result(timeout_s=10)
    assert sum(letter["kind"] == "garbage" for letter in world.dead()) == len(GARBAGE)
    counts = world.redis.hgetall("pm:dead:counts")
    assert counts == {"garbage": "6", "unreadable": "3", "unknown_task": "1", "invalid": "1", "undeliverable": "1"}
    assert worker.is_alive()
    world.wait_clean()


def test_a_job_that_comes_again_after_its_end_is_not_run_again(world: World) -> None:
    # Its worker died between storing the result and saying that it is done with the message.
    world.start_redis()
    jobs = world.submit(2, model="quick")
    texts = world.redis.lrange("prompts\x06\x163", 0, -1)
    world.start_worker(concurrency=5)
    results = world.results(jobs)
    world.wait_clean()
    for text in texts:
        world.redis.lpush("prompts", text[:-1] + ', "promptmill": {"deliveries": 1, "suspected": 1}}')
    world.wait_clean()
    assert world.results(jobs) == results
    assert world.calls(jobs, model="quick") == [1, 1]


def test_deployments_with_key_prefixes_share_nothing_but_a_redis(world: World) -> None:
    world.start_redis()
    row: dict[str, Any] = {"model": "quick", "messages": MESSAGES}
    prefixes = ("", "staging:")
    for prefix in prefixes:
        world.start_worker(concurrency=2, environ={"PROMPTMILL_KEY_PREFIX": prefix}, wait=False)
    for prefix in prefixes:
        with PromptQueue(world.server.url, key_prefix=prefix).sync as queue:
            delayed = queue.submit(**row, delay_s=600)
            assert delayed.cancel()
            group = queue.submit_many([row] * 5)
            assert [result.ok for result in group.as_completed()] == [True] * 5
            with pytest.raises(JobCancelled):
                delayed.result(timeout_s=30)
    ours = {"pm:fence", "pm:reaper", "pm:cancelled", "pm:models"}
    assert ours | {f"staging:{name}" for name in ours} <= set(world.redis.keys())


@pytest.mark.promise(15)
def test_bad_arguments_fail_with_what_to_mend(world: World) -> None:
    world.start_redis()
    world.start_worker(concurrency=5)
    client = world.celery()
    wrong = [
        client.send_task("prompts.chat", kwargs={"messages": MESSAGES}),
        client.send_task("prompts.chat", args=[7]),
    ]
    wrong.append(client.send_task("tests.system.faults.app.add", args=[1]))
    wait_until(lambda: all(task.failed() for task in wrong), "all fail")
    assert "bad_request" in str(wrong[0].result) and "model" in str(wrong[0].result)
    assert "bad_request" in str(wrong[1].result)
    assert "TypeError" in repr(wrong[2].result)
    assert world.dead() == []
    world.wait_clean()


@pytest.mark.promise(16)
def test_users_data_comes_through_unchanged_or_is_refused(world: World) -> None:
    world.start_redis()
    world.start_worker(concurrency=5)
    odd = {"__type__": "datetime", "__value__": "x", "": [], "nul": "\x00", "deep": [[[[{}]]]], "big": 2**53 + 1}
    jobs = [
        world.queue.submit(model="quick", messages=MESSAGES, metadata=odd, seed=7),
        world.queue.submit(model="quick", messages=[{"role": "user", "content": "x" * 4_000_000}], metadata={"n": 1}),
    ]
    first, second = world.results(jobs)
    assert first.ok and first.metadata == odd
    assert second.ok and second.metadata == {"n": 1}
    deep: list[Any] = []
    for _ in range(200):
        deep = [deep]
    for bad in (float("nan"), float("inf"), "\ud800", {1: 2}, deep, "y" * 20_000_000):
        with pytest.raises(InvalidJob):
            world.queue.submit(model="quick", messages=[{"role": "user", "content": bad}])
    assert world.queued() == 0
    world.wait_clean()


def test_an_ended_job_is_not_called_again_and_counts_in_a_chord(world: World) -> None:
    """As if its worker had died after storing its result, before telling the chord and acknowledging."""
    world.start_redis()
    # Celery keeps a chord's results, and at the interpreter's end would ask a Redis that is gone.
    client = world.celery()
    client.conf.result_backend = f"tests.system.semantics.harness:QuietBackend+{world.server.url}"
    call = client.signature("prompts.chat", kwargs={"model": "quick", "messages": MESSAGES})
    body_id = chord([call.clone(), call.clone()], app=client)(client.signature("tests.system.faults.app.count")).id
    raw = world.redis.lindex("prompts", -1)
    ended, *_ = ids = [json.loads(world.redis.lindex("prompts", n))["headers"]["id"] for n in (-1, -2)]
    world.redis.set(f"celery-task-meta-{ended}", json.dumps({"status": "SUCCESS", "result": {}, "task_id": ended}))
    world.redis.lset("prompts", -1, raw[:-1] + ', "promptmill": {"deliveries": 1, "suspected": 1}}')
    world.start_worker(concurrency=5)
    record = wait_until(lambda: world.redis.get(f"celery-task-meta-{body_id}"), "the chord's body ends")
    assert json.loads(record)["result"] == 2
    assert [world.providers.calls("quick")[job_id] for job_id in ids] == [0, 1]
    world.wait_clean()


@pytest.mark.parametrize("headers", [{}, {"headers": {}}, {"headers": None}], ids=["left out", "empty", "null"])
def test_a_message_of_protocol_1_is_answered(world: World, headers: dict[str, Any]) -> None:
    """As producers in other languages send it; a stock worker takes it."""
    world.start_redis()
    world.start_worker(concurrency=2)
    job_id = f"job-{uuid4()}"
    body = {
        "id": job_id,
        "task": "prompts.chat",
        "args": [],
        "kwargs": {"model": "quick", "messages": MESSAGES},
        "retries": 0,
        "eta": None,
        "expires": None,
    }
    sent = json.loads(message(None, body, job_id=job_id))
    del sent["headers"]
    world.redis.lpush("prompts", json.dumps(sent | headers))
    record = wait_until(lambda: world.redis.get(f"celery-task-meta-{job_id}"), "the job has a result")
    assert json.loads(record)["status"] == "SUCCESS"
    world.wait_clean()


@pytest.mark.covers("setting", "producers.priority_steps", "producers.separator")
def test_producers_own_priority_settings_are_read_by_a_setting(world: World) -> None:
    world.start_redis()
    options = {"priority_steps": list(range(10)), "sep": ":", "queue_order_strategy": "priority"}
    producer = Celery(broker=world.server.url, backend=world.server.url)
    producer.conf.broker_transport_options = options
    with closing(producer):
        sent = [
            producer.send_task(
                "prompts.chat", queue="prompts", priority=priority, kwargs={"model": "quick", "messages": MESSAGES}
            )
            for priority in (0, 3, 5)
        ]
        found = promptmill({"PROMPTMILL_REDIS_URL": world.server.url}, "doctor", "--json", exit_code=1)
        texts = [finding["text"] for finding in json.loads(found)["findings"]]
        assert any("'prompts:5', which no worker reads" in text for text in texts)
        told = {
            "PROMPTMILL_PRODUCERS__PRIORITY_STEPS": json.dumps(options["priority_steps"]),
            "PROMPTMILL_PRODUCERS__SEPARATOR": ":",
        }
        world.start_worker(app="workers", environ=told)
        assert [result.get(timeout=60)["status"] for result in sent] == ["succeeded"] * len(sent)
    world.wait_clean()
