"""What stands in Redis, beside what Celery and kombu put there themselves."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kombu
import pytest
import redis
from celery import Celery

from tasks import Job, JobCancelled, PromptQueue, PromptResult, UnknownModel
from tasks.redis.clock import steady_s
from tasks.store import terms
from tasks.wire import redis_keys
from tasks.wire.kinds import TASK_NAMES
from tasks.wire.message import CELERY_PRIORITY
from tests.support.celery_client import closing
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until_async

from .harness import LISTS, celery_record

MESSAGES = [{"role": "user", "content": "Grüße, 한국 🙂"}]
OF_EACH_MESSAGE = ("origin", "reply_to", "delivery_tag")


@pytest.fixture
def stock(redis_server: RedisServer) -> Iterator[Celery]:
    with closing(Celery("stock", broker=redis_server.url, backend=redis_server.url, set_as_current=False)) as app:
        yield app


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    with redis_server.client() as client:
        yield client


def popped(client: redis.Redis, name: str) -> dict[str, Any]:
    raw = client.rpop(name)
    assert isinstance(raw, str)
    return json.loads(raw)


def text_of(message: dict[str, Any]) -> str:
    [text], _, _ = json.loads(message["body"])
    assert isinstance(text, str)
    return text


def comparable(message: dict[str, Any]) -> str:
    """The message, in its order and byte for byte but for its body, without what is of the process or of the one
    message. kombu escapes what is not ASCII."""
    message["body"] = json.loads(message["body"])
    for part in (message["headers"], message["properties"]):
        for name in OF_EACH_MESSAGE:
            if name in part:
                part[name] = type(part[name]).__name__
    return json.dumps(message)


@pytest.mark.parametrize("priority", ["interactive", "normal", "bulk"])
async def test_our_message_is_celerys(priority: Any, queue: PromptQueue, stock: Celery, client: redis.Redis) -> None:
    group = queue.new_group("pmg-wire")
    await group.submit(model="m", messages=MESSAGES, id="job-1", priority=priority)
    name = LISTS[["interactive", "normal", "bulk"].index(priority)]
    ours = popped(client, name)
    stock.conf.broker_transport_options = {"body_encoding": None}  # kombu's own option; without it: base64
    stock.send_task(
        "prompts.chat",
        args=[text_of(ours)],
        kwargs={},
        queue="prompts",
        task_id="job-1",
        priority=CELERY_PRIORITY[priority],
        group_id="pmg-wire",
        argsrepr="(prompt hidden)",
        kwargsrepr="{}",
        ignore_result=False,
    )
    assert ours["headers"].pop("lane") == f"{priority} m"
    assert comparable(ours) == comparable(popped(client, name))


@pytest.mark.parametrize("options", [{"deadline_s": 60}, {"fallbacks": ["n"]}, {"fallback_on": ["rate_limited"]}])
async def test_a_job_that_may_end_without_its_turn_is_in_no_lane(
    queue: PromptQueue, client: redis.Redis, options: Any
) -> None:
    await queue.submit(model="m", messages=MESSAGES, **options)
    assert popped(client, LISTS[1])["headers"]["lane"] is None


@pytest.mark.covers("option", "delay_s")
async def test_a_delayed_job_carries_an_eta_by_rediss_clock(queue: PromptQueue, client: redis.Redis) -> None:
    seconds, microseconds = client.time()
    await queue.submit(model="m", messages=MESSAGES, delay_s=90)
    message = popped(client, LISTS[1])
    eta = datetime.fromisoformat(message["headers"]["eta"])
    assert eta.tzinfo is UTC or eta.utcoffset() is not None
    assert 89 < eta.timestamp() - (seconds + microseconds / 1e6) < 110


async def test_a_client_with_an_old_idea_of_rediss_clock_asks_again(
    queue: PromptQueue, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = queue.new_group()
    await group.submit(model="m", messages=MESSAGES)
    popped(client, LISTS[1])
    monkeypatch.setattr(terms, "steady_s", lambda: steady_s() - 600)  # as if Redis's were set ahead by so much
    seconds, _ = client.time()
    await group.submit(model="m", messages=MESSAGES, delay_s=90)
    assert await group.close() == 2, "it was stored once"
    eta = datetime.fromisoformat(popped(client, LISTS[1])["headers"]["eta"])
    assert 89 < eta.timestamp() - seconds < 110


async def test_a_stock_kombu_consumer_reads_our_message(queue: PromptQueue, redis_server: RedisServer) -> None:
    await queue.submit(model="e", input=["a", "b"], id="job-7", tenant="acme")
    received = []
    with (
        kombu.Connection(redis_server.url) as connection,
        connection.Consumer(
            kombu.Queue("prompts"),
            callbacks=[lambda body, message: received.append((body, message)), lambda _, message: message.ack()],
        ),
    ):
        connection.drain_events(timeout=5)
    [(([text], kwargs, embed), message)] = received
    assert json.loads(text)["body"] == {"model": "e", "input": ["a", "b"]}
    assert kwargs == {} and embed["chord"] is None
    assert (message.headers["task"], message.headers["id"]) == (TASK_NAMES["embed"], "job-7")


async def test_nothing_of_the_prompt_is_outside_the_body(queue: PromptQueue, client: redis.Redis) -> None:
    job = await queue.submit(model="m", messages=[{"role": "user", "content": "canary-31d7"}], metadata="canary-31d7")
    message = popped(client, LISTS[1])
    del message["body"]
    assert "canary-31d7" not in json.dumps(message)
    assert "canary-31d7" not in json.dumps(client.hgetall(redis_keys.job(job.id)))


async def test_jobs_are_taken_in_the_order_of_submission(queue: PromptQueue, client: redis.Redis) -> None:
    for number in range(3):
        await queue.submit(model="m", messages=MESSAGES, id=f"one-{number}")
    group = await queue.submit_many({"model": "m", "messages": MESSAGES, "id": f"many-{n}"} for n in range(600))
    taken = [popped(client, LISTS[1])["headers"]["id"] for _ in range(603)]
    assert taken == [f"one-{n}" for n in range(3)] + [f"many-{n}" for n in range(600)]
    assert [job.id async for job in group.jobs()] == taken[3:]


async def test_submitting_an_id_again_changes_nothing(queue: PromptQueue, client: redis.Redis) -> None:
    first = await queue.submit(model="m", messages=MESSAGES, id="same")
    record = client.hgetall(redis_keys.job("same"))
    again = await queue.submit(model="other", messages=MESSAGES, id="same", priority="bulk")
    group = await queue.submit_many([{"model": "m", "messages": MESSAGES, "id": "same"}] * 3)
    assert first.id == again.id == "same"
    assert client.hgetall(redis_keys.job("same")) == record
    assert [client.llen(name) for name in LISTS] == [0, 1, 0]
    assert (await group.progress()).total == 0


async def test_a_repeated_id_in_one_batch_is_one_job(queue: PromptQueue, client: redis.Redis) -> None:
    group = await queue.submit_many([{"model": "m", "messages": MESSAGES, "id": "twin"}] * 5)
    assert client.llen(LISTS[1]) == 1
    assert (await group.progress()).total == 1


async def test_the_record_tells_what_the_job_is(queue: PromptQueue, client: redis.Redis) -> None:
    job = await queue.new_group("g").submit(model="m", messages=MESSAGES, tenant="acme", priority="bulk", delay_s=1.5)
    record = client.hgetall(redis_keys.job(job.id))
    assert isinstance(record, dict)
    submitted_at = float(record.pop("submitted_at"))
    assert abs(submitted_at - client.time()[0]) < 60
    assert record == {
        "state": "queued",
        "task": "prompts.chat",
        "model": "m",
        "tenant": "acme",
        "group": "pmg-g",
        "priority": "bulk",
        "delay_ms": "1500",
    }
    assert redis_keys.WAITING_TTL_S < client.ttl(redis_keys.job(job.id)) <= redis_keys.WAITING_TTL_S + 2


async def test_every_key_of_ours_has_a_lifetime(queue: PromptQueue, client: redis.Redis) -> None:
    group = await queue.submit_many({"model": "m", "messages": MESSAGES} for _ in range(3))
    await queue.submit(model="m", messages=MESSAGES)
    await group.cancel()
    lists_and_sets_with_an_owner = {*LISTS, redis_keys.CANCELLED}
    immortal = {key for key in client.scan_iter() if client.ttl(key) == -1}
    assert immortal <= lists_and_sets_with_an_owner


async def test_the_prefix_stands_before_queues_and_keys(redis_server: RedisServer, client: redis.Redis) -> None:
    async with PromptQueue(redis_server.url, key_prefix="app1:") as queue:
        group = await queue.submit_many([{"model": "m", "messages": MESSAGES}])
        [job] = [job async for job in group.jobs()]
        assert {*client.scan_iter()} == {
            f"app1:{LISTS[1]}",
            f"app1:{redis_keys.job(job.id)}",
            f"app1:{redis_keys.group(group.id)}",
            f"app1:{redis_keys.group_jobs(group.id)}",
        }
        app = Celery(broker=redis_server.url, set_as_current=False)
        app.conf.broker_transport_options = {"global_keyprefix": "app1:"}
        with app.connection_for_read() as connection:
            message = kombu.Queue("prompts")(connection.default_channel).get(no_ack=True)
        assert message is not None and message.headers["id"] == job.id
        app.close()


async def test_models_are_checked_while_workers_name_them(redis_server: RedisServer, client: redis.Redis) -> None:
    now = client.time()[0]
    client.zadd(redis_keys.MODELS, {"gpt-4o-mini": now, "retired": now - redis_keys.MODELS_TTL_S - 1})
    async with PromptQueue(redis_server.url) as queue:
        await queue.submit(model="gpt-4o-mini", messages=MESSAGES)
        with pytest.raises(UnknownModel, match="gpt-4o-mini"):
            await queue.submit(model="retired", messages=MESSAGES)
        with pytest.raises(UnknownModel):
            await queue.submit_many([{"model": "gpt-4", "messages": MESSAGES}])
    assert client.llen(LISTS[1]) == 1


async def test_a_providers_own_names_pass_where_workers_have_it(redis_server: RedisServer, client: redis.Redis) -> None:
    client.zadd(redis_keys.MODELS, dict.fromkeys(["gpt-4o-mini", "openai/*"], client.time()[0]))
    async with PromptQueue(redis_server.url) as queue:
        await queue.submit(model="openai/gpt-9", messages=MESSAGES)
        for unknown in ("gpt-9", "nobody/gpt-9"):
            with pytest.raises(UnknownModel, match="openai/"):
                await queue.submit(model=unknown, messages=MESSAGES)
    assert client.llen(LISTS[1]) == 1


async def test_with_stale_models_anything_goes(redis_server: RedisServer, client: redis.Redis) -> None:
    client.zadd(redis_keys.MODELS, {"retired": client.time()[0] - redis_keys.MODELS_TTL_S - 1})
    async with PromptQueue(redis_server.url) as queue:
        await queue.submit(model="anything", messages=MESSAGES)


async def test_a_worker_that_comes_is_heard_of_in_a_second(
    redis_server: RedisServer, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it anything goes; then what it lacks is refused at once, and so is not what the next one brings."""
    later_s = 0.0
    monkeypatch.setattr(terms, "steady_s", lambda: steady_s() + later_s)
    async with PromptQueue(redis_server.url) as queue:
        await queue.submit(model="anything", messages=MESSAGES)
        client.zadd(redis_keys.MODELS, {"first": client.time()[0]})
        later_s = 1.0
        with pytest.raises(UnknownModel):
            await queue.submit(model="second", messages=MESSAGES)
        client.config_resetstat()
        for _ in range(20):
            with pytest.raises(UnknownModel):
                await queue.submit(model="second", messages=MESSAGES)
        assert "cmdstat_zrange" not in client.info("commandstats"), "it is not read for each"
        client.zadd(redis_keys.MODELS, {"second": client.time()[0]})
        later_s = 2.0
        await queue.submit_many([{"model": "second", "messages": MESSAGES}])
    assert client.llen(LISTS[1]) == 2


async def test_one_read_of_the_models_serves_many_submissions(redis_server: RedisServer, client: redis.Redis) -> None:
    client.config_resetstat()
    async with PromptQueue(redis_server.url) as queue:
        for _ in range(20):
            await queue.submit(model="m", messages=MESSAGES)
    assert client.info("commandstats")["cmdstat_zrange"]["calls"] == 1


async def test_scripts_are_loaded_again_when_redis_forgot_them(queue: PromptQueue, client: redis.Redis) -> None:
    await queue.submit(model="m", messages=MESSAGES)
    client.script_flush()
    job = await queue.submit(model="m", messages=MESSAGES)
    assert await job.status() == "queued"


# -- cancelling


async def test_our_revoke_is_celerys(queue: PromptQueue, stock: Celery, redis_server: RedisServer) -> None:
    with redis_server.client() as client, client.pubsub(ignore_subscribe_messages=True) as listening:
        listening.psubscribe("*")
        await wait_until_async(lambda: client.pubsub_numpat() == 1, description="the subscription")
        job = await queue.submit(model="m", messages=MESSAGES)
        stock.control.revoke([job.id], terminate=True)
        assert await job.cancel()
        celerys, ours = [await wait_until_async(listening.get_message, description="a revoke") for _ in range(2)]
    assert ours["channel"] == celerys["channel"] == "/0.celery.pidbox"
    theirs, mine = json.loads(celerys["data"]), json.loads(ours["data"])
    command, our_command = (json.loads(base64.b64decode(each["body"])) for each in (theirs, mine))
    assert our_command.pop("arguments") == {**command.pop("arguments"), "marked": True}
    assert our_command == command
    for message in (theirs, mine):
        del message["body"], message["properties"]["delivery_tag"]
        assert set(message.pop("headers")) == {"clock", "expires"}
    assert mine == theirs


async def test_cancel_is_noted_for_workers_to_come(queue: PromptQueue, client: redis.Redis) -> None:
    job = await queue.submit(model="m", messages=MESSAGES)
    assert await job.cancel()
    noted = client.hget(redis_keys.job(job.id), "cancel")
    assert isinstance(noted, str) and abs(float(noted) - client.time()[0]) < 60
    assert client.zrange(redis_keys.CANCELLED, 0, -1) == [job.id]


async def test_a_mark_hits_only_what_was_submitted_before_it(queue: PromptQueue, client: redis.Redis) -> None:
    job = await queue.submit(model="m", messages=MESSAGES, id="again")
    assert await job.cancel()
    await queue.forget(job.id)
    assert client.zrange(redis_keys.CANCELLED, 0, -1) == [job.id], "its message may be in the queue still"
    await queue.submit(model="m", messages=MESSAGES, id="again")
    assert client.zcard(redis_keys.CANCELLED) == 0


async def test_an_unknown_id_is_not_cancelled_and_leaves_no_mark(queue: PromptQueue, client: redis.Redis) -> None:
    known = await queue.submit(model="m", messages=MESSAGES)
    with client.pubsub(ignore_subscribe_messages=True) as listening:
        listening.psubscribe("*")
        await wait_until_async(lambda: client.pubsub_numpat() == 1, description="the subscription")
        assert await queue.job("unknown").cancel() is False
        assert await known.cancel() is True
        message = await wait_until_async(listening.get_message, description="a revoke")
    assert json.loads(base64.b64decode(json.loads(message["data"])["body"]))["arguments"]["task_id"] == [known.id]
    assert client.zrange(redis_keys.CANCELLED, 0, -1) == [known.id]
    assert not client.exists(redis_keys.job("unknown"))


async def test_how_a_job_ended_outlives_its_result(queue: PromptQueue, client: redis.Redis) -> None:
    job = await queue.submit(model="m", messages=MESSAGES)
    client.hset(redis_keys.job(job.id), "state", "cancelled")  # as workers do for one that they never ran
    assert await job.status() == "cancelled"
    assert await job.cancel() is False
    with pytest.raises(JobCancelled):
        await job.result(timeout_s=5)


STOCK_WORKER = """
import time
from celery import Celery
app = Celery("stock", broker={url!r}, backend={url!r})
app.conf.update(worker_prefetch_multiplier=10, task_default_queue="prompts", broker_connection_retry_on_startup=True)

@app.task(name="prompts.chat", ignore_result=False)
def chat(text):
    while app.backend.client.get("release") is None:
        time.sleep(0.01)
    return "done"
"""


@pytest.fixture
def stock_worker(tmp_path: Path, redis_server: RedisServer) -> Iterator[None]:
    (tmp_path / "stockapp.py").write_text(STOCK_WORKER.format(url=redis_server.url))
    command = [sys.executable, "-m", "celery", "-A", "stockapp", "worker", "-P", "threads", "-c", "1", "-l", "error"]
    process = subprocess.Popen(
        [*command, "--without-gossip", "--without-mingle", "--without-heartbeat"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    yield
    with redis_server.client() as client:
        client.set("release", 1)
    process.send_signal(signal.SIGQUIT)
    try:
        process.wait(10)
    finally:
        process.kill()
        process.wait()


@pytest.mark.usefixtures("stock_worker")
async def test_a_stock_celery_worker_obeys_our_cancel(queue: PromptQueue, client: redis.Redis, stock: Celery) -> None:
    running = await queue.submit(model="m", messages=MESSAGES)
    waiting = await queue.submit(model="m", messages=MESSAGES)
    # Celery acks the one at its start; the other is prefetched and not acked.
    await wait_until_async(
        lambda: client.llen(LISTS[1]) == 0 and client.hlen("unacked") == 1, description="both are taken"
    )
    assert await waiting.cancel()
    inspect = stock.control.inspect(timeout=0.5)
    await wait_until_async(lambda: [waiting.id] in (inspect.revoked() or {}).values(), description="the worker knows")
    client.set("release", 1)
    await wait_until_async(
        lambda: _status(queue.job(waiting.id), "cancelled"), description="the waiting job is cancelled"
    )
    await wait_until_async(lambda: _status(queue.job(running.id), "failed"), description="its neighbour has run")


async def _status(job: Job, expected: str) -> bool:
    return await job.status() == expected


async def test_an_id_whose_result_outlived_its_record_is_known(queue: PromptQueue, client: redis.Redis) -> None:
    """A second call would be paid, and its answer thrown away: the stored one stands."""
    with_id: dict[str, Any] = {"model": "m", "messages": MESSAGES, "id": "mine"}
    stored = PromptResult("mine", "succeeded", text="stored", response={})
    client.set(redis_keys.result("mine"), celery_record("mine", stored))
    job = await queue.submit(**with_id)
    group = await queue.submit_many([with_id, with_id])
    assert client.llen(LISTS[1]) == 0
    assert (await job.result(timeout_s=10)).text == "stored"
    assert (await group.progress()).total == 0
    await queue.forget("mine")
    await queue.submit(**with_id)
    assert client.llen(LISTS[1]) == 1


async def test_a_new_id_costs_no_look_for_a_result(queue: PromptQueue, client: redis.Redis) -> None:
    before = client.info("commandstats").get("cmdstat_exists", {"calls": 0})["calls"]
    await queue.submit(model="m", messages=MESSAGES)
    assert client.info("commandstats").get("cmdstat_exists", {"calls": 0})["calls"] == before
    await queue.submit(model="m", messages=MESSAGES, id="mine")
    assert client.info("commandstats")["cmdstat_exists"]["calls"] == before + 1
