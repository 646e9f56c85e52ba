"""What a worker stores of a job's end: once, under its lease, for as long as it is wanted."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from celery import Celery, states
from celery.app.task import Context

from tasks.results import PromptResult
from tasks.wire import redis_keys
from tasks.wire.record import read_outcome
from tests.support.celery_client import closing
from workers.pipeline.record_limit import MOST_BYTES
from workers.pool.app import App
from workers.results.backend import Backend
from workers.results.entry import JSONResult

from .conftest import stored

LONG_TEXT = "Answer. " * 1_000


def request(job_id: str = "j", *, group: str | None = None, tag: str | None = None, task: str = "t") -> Context:
    return Context(id=job_id, group=group, task=task, properties={"delivery_tag": tag})


def answer(job_id: str = "j", *, text: str = "hi", compressible: bool = False) -> JSONResult:
    return JSONResult(PromptResult(job_id, "succeeded", text=text).to_dict(), compressible=compressible)


def test_an_answer_is_final(backend: Backend, client: redis.Redis) -> None:
    backend.store_result("j", answer(text="first"), states.SUCCESS, request=request())
    for late, state in [(answer(text="late"), states.SUCCESS), (ValueError("late"), states.FAILURE)]:
        backend.store_result("j", late, state, request=request())
    backend.store_result("j", {"progress": 1}, "PROGRESS", request=request())
    assert stored(client, "j")["result"]["text"] == "first"


def test_a_failure_may_turn_out_well_but_never_goes_back(backend: Backend, client: redis.Redis) -> None:
    backend.store_result("j", ValueError("no"), states.FAILURE, request=request())
    backend.store_result("j", {"progress": 1}, "PROGRESS", request=request())
    assert stored(client, "j")["status"] == "FAILURE"
    backend.store_result("j", answer(), states.SUCCESS, request=request())
    assert stored(client, "j")["status"] == "SUCCESS"


def test_only_the_holder_of_the_lease_may_store(
    backend: Backend, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    client.zadd(redis_keys.LEASES, {"pm-2": 1})
    backend.store_result("j", answer(text="late"), states.SUCCESS, request=request(tag="pm-1"))
    assert stored(client, "j") is None
    assert "Result of j refused" in caplog.text
    backend.store_result("j", answer(text="mine"), states.SUCCESS, request=request(tag="pm-2"))
    assert stored(client, "j")["result"]["text"] == "mine"


def test_what_was_acknowledged_at_its_start_has_no_lease_to_hold(
    app: App, backend: Backend, client: redis.Redis
) -> None:
    def nothing() -> None: ...

    app.task(name="early", acks_late=False, shared=False)(nothing)
    app.task(name="late", acks_late=True, shared=False)(nothing)
    backend.store_result("a", answer("a"), states.SUCCESS, request=request("a", tag="pm-1", task="early"))
    backend.store_result("b", answer("b"), states.SUCCESS, request=request("b", tag="pm-1", task="late"))
    assert stored(client, "a")["status"] == "SUCCESS"
    assert stored(client, "b") is None


@pytest.mark.parametrize("compressible", [True, False])
def test_a_large_answer_is_compressed_for_those_who_can_read_it(
    app: App, backend: Backend, client: redis.Redis, compressible: bool
) -> None:
    large = answer(text=LONG_TEXT, compressible=compressible)
    with client.pubsub(ignore_subscribe_messages=True) as listener:
        listener.subscribe("celery-task-meta-j")
        listener.get_message(timeout=5)
        backend.store_result("j", large, states.SUCCESS, request=request())
        published = listener.get_message(timeout=5)
    raw = client.get("celery-task-meta-j")
    assert isinstance(raw, bytes) and published is not None and published["data"] == raw
    assert (len(raw) < len(LONG_TEXT) / 2) is compressible
    # Our client, whichever way it reads; a stock Celery client; our own app.
    for record in (raw, raw.decode(errors="surrogateescape")):
        outcome = read_outcome("j", record)
        assert outcome is not None and outcome.text == LONG_TEXT
    with closing(Celery("stock", backend=app.conf.broker_url, set_as_current=False)) as stock:
        for reader in (stock, app):
            assert reader.AsyncResult("j").get(timeout=5)["text"] == LONG_TEXT
    # It is as final as any other.
    backend.store_result("j", ValueError("late"), states.FAILURE, request=request())
    assert client.get("celery-task-meta-j") == raw


def test_a_small_answer_is_not_compressed(backend: Backend, client: redis.Redis) -> None:
    backend.store_result("j", answer(compressible=True), states.SUCCESS, request=request())
    assert stored(client, "j")["result"]["text"] == "hi"


@pytest.mark.parametrize(
    "garbage", [b"\0celery-compressed\0application/x-gzip\0not zlib", b"\0celery-compressed\0zstd\0x"]
)
def test_an_unreadable_compressed_record_is_a_named_error(garbage: bytes) -> None:
    for record in (garbage, garbage.decode(errors="surrogateescape")):
        outcome = read_outcome("j", record)
        assert outcome is not None and outcome.error is not None and outcome.error.code == "internal"


GROUP = "pmg-1"


def ttl(client: Any, key: str) -> int:
    return int(client.ttl(key))


@pytest.mark.parametrize(
    ("total", "lifetime_s"),
    [
        (2, redis_keys.RECORD_TTL_S),
        (3, redis_keys.WAITING_TTL_S),
        (-1, redis_keys.WAITING_TTL_S),
        (None, redis_keys.WAITING_TTL_S),
    ],
    ids=["complete", "one to go", "still open", "counted elsewhere"],
)
def test_a_group_lives_until_its_last_job_has_ended_and_a_day(
    backend: Backend, client: redis.Redis, total: int | None, lifetime_s: int
) -> None:
    if total is not None:
        client.hset(redis_keys.group(GROUP), "total", total)
    client.rpush(redis_keys.group_jobs(GROUP), "a", "b")
    backend.store_result("a", answer("a"), states.SUCCESS, request=request("a", group=GROUP))
    assert ttl(client, redis_keys.group(GROUP)) > redis_keys.RECORD_TTL_S
    backend.store_result("b", ValueError("no"), states.FAILURE, request=request("b", group=GROUP))
    backend.store_result("b", ValueError("again"), states.FAILURE, request=request("b", group=GROUP))
    assert client.hmget(redis_keys.group(GROUP), "succeeded", "failed") == [b"1", b"1"]
    done: Any = client.xrange(redis_keys.group_done(GROUP))
    assert [fields[b"id"] for _, fields in done] == [b"a", b"b"]
    for key in (redis_keys.group(GROUP), redis_keys.group_done(GROUP), redis_keys.group_jobs(GROUP)):
        assert lifetime_s - 5 <= ttl(client, key) <= lifetime_s


def test_the_largest_record_reaches_who_waits_for_it(backend: Backend, client: redis.Redis) -> None:
    """Redis cuts off subscribers for whom more is waiting (client-output-buffer-limit pubsub)."""
    text = "x" * MOST_BYTES
    with client.pubsub() as waiting:
        waiting.subscribe("celery-task-meta-j")
        assert waiting.get_message(timeout=5)["type"] == "subscribe"
        backend.store_result("j", answer(text=text), states.SUCCESS, request=request())
        message = waiting.get_message(timeout=10)
    assert len(message["data"]) > MOST_BYTES


def wait_in_queue(client: redis.Redis, *job_ids: str, state: str = "queued", ttl_s: int = 2_000_000) -> None:
    for job_id in job_ids:
        client.hset(redis_keys.job(job_id), mapping={"state": state, "group": "pmg-1"})
        client.expire(redis_keys.job(job_id), ttl_s)


def test_the_end_of_a_job_cancelled_in_line_is_in_its_record(backend: Backend, client: redis.Redis) -> None:
    wait_in_queue(client, "waiting")
    wait_in_queue(client, "running", state="running")
    backend.store_result("answered", answer("answered"), states.SUCCESS, request=request("answered"))
    backend.revoke(["waiting", "running", "answered", "unknown"])
    assert client.hget(redis_keys.job("waiting"), "state") == b"cancelled"
    assert client.ttl(redis_keys.job("waiting")) > 1_990_000, "as long as a job that waits"
    assert client.hget(redis_keys.job("running"), "state") == b"running"
    assert stored(client, "waiting")["status"] == "REVOKED"
    assert stored(client, "answered")["status"] == "SUCCESS"
    assert client.hget(redis_keys.group("pmg-1"), "cancelled") == b"1"
    assert not client.exists(redis_keys.result("running"), redis_keys.result("unknown"))


def test_a_job_that_is_to_be_retried_may_be_cancelled(backend: Backend, client: redis.Redis) -> None:
    wait_in_queue(client, "j")
    backend.store_result("j", ValueError("again"), states.RETRY, request=request())
    backend.revoke(["j"])
    assert stored(client, "j")["status"] == "REVOKED"


def test_of_two_workers_one_records_the_end(backend: Backend, client: redis.Redis) -> None:
    wait_in_queue(client, "a", "b")
    client.hset(redis_keys.job("b"), "task", "prompts.embed")
    assert backend._revocations.claim(["a", "b"]) == [("queued", "pmg-1", ""), ("queued", "pmg-1", "prompts.embed")]
    assert backend.revoke(["a", "b"]) == []
    assert not client.exists(redis_keys.result("a"), redis_keys.result("b")), "the other worker is at it"
    client.hset(redis_keys.job("a"), mapping={"ending": 1, "task": "prompts.chat"})  # it has died
    assert backend.revoke(["a", "b"]) == [("a", "prompts.chat")]
    assert stored(client, "a")["status"] == "REVOKED" and not client.exists(redis_keys.result("b"))
    assert not client.hexists(redis_keys.job("a"), "ending")


@pytest.mark.parametrize(("reason", "state"), [("revoked", b"cancelled"), ("expired", b"expired")])
def test_a_job_thrown_away_when_taken_says_so_in_its_record(
    backend: Backend, client: redis.Redis, reason: str, state: bytes
) -> None:
    wait_in_queue(client, "j")
    backend.mark_as_revoked("j", reason, request=request(), store_result=True)
    assert client.hget(redis_keys.job("j"), "state") == state


@pytest.mark.parametrize(
    ("left_s", "expires_s", "lifetime_s"),
    [
        (redis_keys.RECORD_TTL_S - 600, None, redis_keys.RECORD_TTL_S),
        (redis_keys.RECORD_TTL_S, 7 * 86_400, 7 * 86_400),
        (redis_keys.WAITING_TTL_S, None, redis_keys.WAITING_TTL_S),
    ],
    ids=["a day", "as long as a week's result", "what waits longer is not cut short"],
)
def test_a_jobs_record_lives_as_long_as_its_result(
    app: App, client: redis.Redis, left_s: int, expires_s: int | None, lifetime_s: int
) -> None:
    if expires_s is not None:
        app.conf.result_expires = expires_s
    client.hset(redis_keys.job("j"), "state", "running")
    client.expire(redis_keys.job("j"), left_s)
    app.backend.store_result("j", answer(), states.SUCCESS, request=request())
    assert lifetime_s - 5 <= ttl(client, redis_keys.job("j")) <= lifetime_s
    assert ttl(client, "celery-task-meta-j") <= ttl(client, redis_keys.job("j"))


def test_a_job_without_a_record_gets_none(backend: Backend, client: redis.Redis) -> None:
    backend.store_result("j", answer(), states.SUCCESS, request=request())
    assert not client.exists(redis_keys.job("j"))
