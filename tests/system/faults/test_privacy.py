"""A canary key and a canary prompt, looked for everywhere: promises.md row 24."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.waiting import wait_until

from .test_messages import EMBEDDED, message

if TYPE_CHECKING:
    from .harness import World

KEY = "sk-canary-7d1f20c9e4b85a63"
PROMPT = "the canary sings in gallery nine"


@pytest.mark.promise(24)
def test_neither_key_nor_prompt_is_seen_outside_the_job(world: World) -> None:
    world.start_redis()
    seen: list[Any] = []
    environ = {"FAULTS_API_KEY": KEY}
    worker = world.start_worker(concurrency=2, environ=environ, options=["-E", "-l", "DEBUG", "-Q", "prompts"])
    client = world.celery()
    messages = [{"role": "user", "content": PROMPT}]
    with client.connection_for_read() as listening:
        receiver = client.events.Receiver(listening, handlers={"*": seen.append})
        with receiver.consumer_context() as (connection, *_):
            drained(connection)  # it subscribes when it first listens
            jobs = [world.queue.submit(model="slower", messages=messages)]
            # A stock producer puts the arguments' repr into the headers; nobody may show it.
            stock = client.send_task("prompts.chat", kwargs={"model": "slower", "messages": messages})
            failing = client.send_task("prompts.chat", kwargs={"model": "no such model", "messages": messages})
            broken = client.send_task("prompts.chat", args=[PROMPT], kwargs={"messages": messages})
            for task, body in [("prompts.chta", [[PROMPT], {}, EMBEDDED]), ("prompts.chat", [[PROMPT]])]:
                world.redis.lpush("prompts", message(task, body, job_id=f"bad-{task}"))
            world.redis.lpush("prompts", f'{{"body": "{PROMPT}"')
            world.wait_in_flight(jobs, model="slower")
            shown = inspected(client, [*[job.id for job in jobs], stock.id])
            assert all(result.ok for result in world.results(jobs))
            wait_until(lambda: all(task.ready() for task in (stock, failing, broken)), "all end")
            wait_until(lambda: len(world.dead()) == 3, "what can't be done is buried")
            wait_until(lambda: drained(connection) and {"task-received", "task-failed"} <= kinds(seen), "events arrive")
    places = {
        "the log": worker.log_text(),
        "events": json.dumps(seen, default=str),
        "inspect": json.dumps(shown, default=str),
        "failures": repr([(task.result, task.traceback) for task in (failing, broken)]),
    }
    assert "prompts.chat" in places["the log"] and stock.id in places["inspect"]
    for place, text in places.items():
        assert KEY not in text, place
        assert PROMPT not in text, place
    assert PROMPT in json.dumps(world.dead()), "the dead letters hold the message, for `promptmill dead show`"


def drained(connection: Any) -> bool:
    with contextlib.suppress(TimeoutError):
        connection.drain_events(timeout=0.1)
    return True


def kinds(events: list[Any]) -> set[str]:
    return {event["type"] for event in events}


def inspected(client: Any, ids: list[str]) -> list[Any]:
    inspect = client.control.inspect(timeout=1.5)
    shown = [inspect.active(), inspect.reserved(), inspect.scheduled(), inspect.revoked(), inspect.query_task(*ids)]
    return [*shown, inspect.stats(), inspect.conf()]
