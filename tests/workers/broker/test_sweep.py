"""The messages of cancelled jobs leave Redis; the end of each job is recorded once."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.wire import redis_keys
from workers.broker.lanes import FURTHEST_MS
from workers.broker.lookout import Lookout

from .broker import Broker, message


def sweep(broker: Broker, *, me: str = "me", position: int = 0, wanted_ms: int = 0, **options: Any) -> int:
    given = {"clock_was_set": False, "is_last": True, **options}
    command = broker.commands.sweep(
        "q", me=me, position=position, wanted_ms=wanted_ms, on_reply=lambda reply: None, **given
    )
    return int(broker.run(command))


def delay(client: Any, job_id: str, due_ms: int, **headers: Any) -> bytes:
    raw = message(job_id, **headers)
    client.zadd(redis_keys.delayed("q"), {raw: due_ms})
    return raw


def now_ms(client: Any) -> int:
    return int(client.time()[0]) * 1000


def test_of_cancelled_jobs_the_ended_go_and_the_others_are_due(broker: Broker, client: Any) -> None:
    later = now_ms(client) + 3_600_000
    kept = delay(client, "kept", later)
    delay(client, "ended", later + 1)
    delay(client, "ending", later + 2)
    not_ended = delay(client, "not-ended", later + 3)
    without_record = delay(client, "without-record", later + 4)
    client.zadd(redis_keys.CANCELLED, dict.fromkeys(("ended", "ending", "not-ended", "without-record"), 1))
    client.hset(redis_keys.job("ended"), "state", "cancelled")
    client.hset(redis_keys.job("ending"), mapping={"state": "queued", "ending": now_ms(client)})
    client.hset(redis_keys.job("not-ended"), mapping={"state": "queued", "ending": now_ms(client) - 60_000})
    assert sweep(broker) == -1
    left = client.zrange(redis_keys.delayed("q"), 0, -1)
    assert kept in left and len(left) == 2, "one is being ended by another worker"
    assert sorted(broker.waiting()) == sorted([not_ended, without_record])


def test_a_pass_goes_on_where_the_piece_before_ended(broker: Broker, client: Any) -> None:
    for number in range(1_700):
        delay(client, f"{number}", now_ms(client) + 3_600_000 + number)
    odd = [f"{number}" for number in range(1, 1_700, 2)]
    client.zadd(redis_keys.CANCELLED, dict.fromkeys(odd, 1))
    for job_id in odd:
        client.hset(redis_keys.job(job_id), "state", "cancelled")
    position, pieces = 0, 0
    while position >= 0:
        position, pieces = sweep(broker, position=position), pieces + 1
    assert position == -1 and 3 < pieces < 10
    assert client.zcard(redis_keys.delayed("q")) == 850


def test_one_worker_at_a_time_and_nobody_again_without_a_reason(broker: Broker, client: Any) -> None:
    for number in range(600):
        delay(client, f"{number}", now_ms(client) + 3_600_000)
    wanted_ms = now_ms(client) - 1_000
    position = sweep(broker, me="first", wanted_ms=wanted_ms)
    assert position > 0
    assert sweep(broker, me="second", wanted_ms=wanted_ms) == -2
    client.hset(redis_keys.SWEEP, "at", now_ms(client) - 60_000)
    assert sweep(broker, me="second", wanted_ms=wanted_ms) > 0, "the first has died"
    assert sweep(broker, me="second", position=600, wanted_ms=wanted_ms) == -1
    assert sweep(broker, me="first", wanted_ms=wanted_ms) == -3
    assert sweep(broker, me="first", wanted_ms=now_ms(client) + 60_000) > 0
    assert 0 < client.ttl(redis_keys.SWEEP) <= 3_600


def test_what_was_parked_before_the_clock_was_set_back_is_due(broker: Broker, client: Any) -> None:
    now = now_ms(client)
    parked = delay(client, "parked", now + FURTHEST_MS + 60_000, eta=None)
    delay(client, "soon", now + FURTHEST_MS - 60_000, eta=None)
    delay(client, "with-eta", now + FURTHEST_MS + 60_000, eta="2100-01-01T00:00:00+00:00")
    assert sweep(broker) == -1
    assert client.zcard(redis_keys.delayed("q")) == 3
    assert sweep(broker, clock_was_set=True) == -1
    assert broker.waiting() == [parked]
    assert client.zcard(redis_keys.delayed("q")) == 2


def test_a_message_whose_jobs_end_is_recorded_is_not_taken(broker: Broker, client: Any) -> None:
    for job_id in ("ended", "not-ended", "kept"):
        broker.put(message(job_id))
        client.hset(redis_keys.job(job_id), "state", "queued")
    client.zadd(redis_keys.CANCELLED, {"ended": 1, "not-ended": 1})
    client.hset(redis_keys.job("ended"), "state", "cancelled")
    exchanged = broker.exchange("q")
    assert len(exchanged.taken) == 2 and exchanged.cancelled == ["not-ended"]
    assert broker.waiting() == []


@pytest.mark.promise(49)
def test_a_delayed_job_is_cancelled_beyond_the_life_of_its_mark(broker: Broker, client: Any) -> None:
    delay(client, "a", now_ms(client) - 1)
    client.hset(redis_keys.job("a"), mapping={"state": "queued", "cancel": "1.0"})
    assert broker.exchange("q").cancelled == ["a"]


@pytest.mark.parametrize("useful", [0, 10])
def test_who_leaves_jobs_to_others_stands_back(broker: Broker, useful: int, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [1_000.0]
    monkeypatch.setattr("workers.broker.lookout.time.monotonic", lambda: now_s[0])
    lookout = Lookout()
    for number in range(20):
        broker.put(message(f"{number}"))
    lookout.learn(broker.exchange("q"))
    assert lookout.portion(20) == 20
    for _ in range(20 - useful):
        lookout.left()
    assert lookout.portion(20) == max(1, useful)
    lookout.learn(broker.exchange("q"))
    assert lookout.portion(20) == 0, "those that can do the jobs come first"
    now_s[0] += 0.1
    assert lookout.portion(20) == max(1, useful)
    now_s[0] += 2
    assert lookout.portion(20) == 20
