"""The broker's scripts in a real Redis, case by case."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Any

import pytest
from redis.exceptions import ResponseError

from tasks.wire import redis_keys
from workers.broker import commands, scripts
from workers.broker.messages import read
from workers.streams import asked

from .broker import LONG_S, Broker, list_name, message


def history(raw: bytes) -> tuple[int, bool]:
    delivery = read(raw)
    return delivery.deliveries, delivery.suspected


def test_the_most_urgent_come_first_and_the_oldest_of_them(broker: Broker) -> None:
    for number, step in enumerate([9, 0, 3, 9, 0, 6]):
        broker.put(message(f"{number}", priority=step), step=step)
    taken = [json.loads(raw)["headers"]["id"] for _, raw in broker.take()]
    assert taken == ["1", "4", "2", "5", "0", "3"]


def test_no_more_is_taken_than_there_is_room_for(broker: Broker) -> None:
    for number in range(5):
        broker.put(message(f"{number}"))
    assert len(broker.take(room=2)) == 2
    assert len(broker.take(room=0)) == 0
    assert len(broker.waiting()) == 3


def test_bytes_are_bounded_too_but_one_message_always_passes(broker: Broker) -> None:
    for number in range(3):
        broker.put(message(f"{number}", body="x" * 3_000_000))
    assert len(broker.take()) == 2
    exchanged = broker.exchange("q")
    assert len(exchanged.taken) == 1 and exchanged.emptied


def test_a_fence_is_never_given_twice_even_if_redis_forgot(broker: Broker, client: Any) -> None:
    tags = set()
    for forget in (
        lambda: None,
        client.flushall,
        lambda: client.set(redis_keys.FENCE, 5),
        lambda: client.delete(redis_keys.FENCE),
    ):
        forget()
        for number in range(3):
            broker.put(message(f"{number}"))
        tags |= {tag for tag, _ in broker.take()}
    assert len(tags) == 12
    assert all(tag.startswith(redis_keys.LEASE_TAG_PREFIX) and tag[3:].isdigit() for tag in tags)


def test_what_is_acknowledged_is_gone(broker: Broker, client: Any) -> None:
    broker.put(message("a"))
    ((tag, _),) = broker.take()
    assert client.hlen("unacked") == client.zcard("unacked_index") == client.zcard(redis_keys.LEASES) == 1
    broker.leases.ack(tag)
    broker.exchange()
    assert not client.exists("unacked", "unacked_index", redis_keys.LEASES)


def test_more_than_one_command_can_carry(broker: Broker, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "TAKE_LIMIT", 2_000)
    monkeypatch.setattr(commands, "ACKS", 2_000)
    for number in range(1_300):
        broker.put(message(f"{number}"))
    taken = broker.take(room=1_300)
    assert [json.loads(raw)["headers"]["id"] for _, raw in taken] == [f"{number}" for number in range(1_300)]
    assert client.hlen("unacked") == client.zcard("unacked_index") == client.zcard(redis_keys.LEASES) == 1_300
    for tag, raw in taken:
        assert json.loads(client.hget("unacked", tag))[0] == json.loads(raw)
        broker.leases.ack(tag)
    broker.exchange()
    assert not client.exists("unacked", "unacked_index", redis_keys.LEASES)


def test_a_list_that_is_none_loses_nobody_and_holds_nobody_up(broker: Broker, client: Any) -> None:
    for number in range(5):
        broker.put(message(f"{number}"))
    client.set("other", "a string")
    assert len(broker.take("q", "other")) == 5
    assert client.hlen("unacked") == client.zcard(redis_keys.LEASES) == 5
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        broker.take("q", "other")


@pytest.mark.parametrize("key", ["unacked", "unacked_index", redis_keys.LEASES, redis_keys.FENCE, redis_keys.CANCELLED])
def test_no_message_is_taken_where_it_could_not_be_recorded(broker: Broker, client: Any, key: str) -> None:
    broker.put(message("a"))
    client.rpush(key, "a list")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        broker.take()
    assert len(broker.waiting()) == 1


def test_records_of_unacked_are_kombus(broker: Broker, client: Any) -> None:
    raw = message("a", queue='a "queue" of ours/ö')
    broker.put(raw, queue='a "queue" of ours/ö')
    ((tag, _),) = broker.take('a "queue" of ours/ö')
    record = json.loads(client.hget("unacked", tag))
    assert record == [json.loads(raw), "", 'a "queue" of ours/ö']
    broker.leases.hand_back(tag)
    broker.say_news()
    assert broker.waiting('a "queue" of ours/ö') == [raw]


@pytest.mark.parametrize(("started", "past"), [(False, (0, False)), (True, (0, True))])
def test_handed_back_they_are_next_and_say_if_they_may_have_cost(
    broker: Broker, started: bool, past: tuple[int, bool]
) -> None:
    broker.put(message("a", priority=3), step=3)
    broker.put(message("b", priority=3), step=3)
    ((tag, _),) = broker.take(room=1)
    if started:
        broker.leases.start(tag, "a")
    broker.leases.hand_back(tag)
    broker.say_news()
    first, second = broker.waiting(step=3)
    assert json.loads(first)["headers"]["id"] == "a"
    assert history(first) == past
    assert history(second) == (0, False)


def test_an_ended_lease_comes_back_once_and_its_past_is_counted(client: Any) -> None:
    dying, other = Broker(client, lease_s=-1), Broker(client)
    raw = message("a", priority=6)
    dying.put(raw, step=6)
    dying.take()
    assert other.heartbeat()[2] == 1
    assert other.heartbeat()[2] == 0
    (back,) = other.waiting(step=6)
    assert history(back) == (1, True)
    payload = read(back).payload
    assert payload == read(raw).payload, "nothing else has changed"
    assert payload["headers"]["empty"] == [] and payload["headers"]["big"] == 2**60 + 1


def test_from_the_second_death_on_it_waits_a_little(client: Any) -> None:
    dying, other = Broker(client, lease_s=-1), Broker(client)
    dying.put(message("a"))
    dying.take()
    other.heartbeat()
    dying.take()
    now_ms = other.heartbeat()[0]
    assert other.waiting() == []
    ((raw, due_ms),) = client.zrange(redis_keys.delayed("q"), 0, -1, withscores=True)
    assert history(raw) == (2, True)
    assert 1_000 <= due_ms - now_ms <= 2_000
    exchanged = other.exchange("q")
    assert exchanged.taken == [] and exchanged.next_due_ms == due_ms
    client.zadd(redis_keys.delayed("q"), {raw: now_ms - 1})
    assert [raw for _, raw in other.take()] == [raw]


def test_neighbours_of_a_poison_do_not_come_back_with_it(client: Any) -> None:
    dying, other = Broker(client, lease_s=-1), Broker(client)
    for number in range(6):
        dying.put(message(f"{number}"))
    for _ in range(2):
        dying.take()
        other.heartbeat()
    due = sorted(score for _, score in client.zrange(redis_keys.delayed("q"), 0, -1, withscores=True))
    assert min(later - sooner for sooner, later in pairwise(due)) > 50


def test_a_lease_that_is_renewed_stays_and_a_lost_one_is_told(client: Any) -> None:
    dying, keeper = Broker(client, lease_s=-1), Broker(client)
    dying.put(message("a"))
    ((tag, _),) = dying.take()
    assert keeper.heartbeat([tag, "pm-1"])[1:3] == [[b"pm-1"], 0]
    assert client.zscore(redis_keys.LEASES, tag) > client.time()[0] * 1000 + 0.9 * LONG_S * 1000
    assert keeper.heartbeat([tag])[1:3] == [[], 0]


def test_after_a_silence_nobody_is_declared_dead_for_a_lease(client: Any) -> None:
    dying, other = Broker(client, lease_s=-1), Broker(client)
    dying.put(message("a"))
    dying.take()
    assert other.heartbeat(heartbeat_s=1.5)[2] == 0, "nobody has beaten before"
    grace_until = int(client.hget(redis_keys.REAPER, "grace_until"))
    assert grace_until >= client.time()[0] * 1000 + 0.9 * LONG_S * 1000
    client.hset(redis_keys.REAPER, "grace_until", 0)
    assert other.heartbeat(heartbeat_s=1.5)[2] == 1
    client.hset(redis_keys.REAPER, "at", int(client.hget(redis_keys.REAPER, "at")) - 3_001)
    assert other.heartbeat(heartbeat_s=1.5)[2] == 0
    assert int(client.hget(redis_keys.REAPER, "grace_until")) >= grace_until


def test_what_is_not_due_waits_in_redis_and_its_record_says_so(broker: Broker, client: Any) -> None:
    raw = message("a")
    client.hset(redis_keys.job("a"), "state", "running")
    broker.put(raw)
    ((tag, _),) = broker.take()
    broker.leases.delay(tag, 99_999_999_999_999)
    assert broker.say_news() == [1]
    assert client.zrange(redis_keys.delayed("q"), 0, -1) == [raw]
    assert client.hget(redis_keys.job("a"), "state") == b"queued"
    assert client.hlen("unacked") == 0


@pytest.mark.parametrize("suspected", [False, True])
def test_a_memory_replaces_the_last_and_outlives_a_lost_worker(broker: Broker, client: Any, suspected: bool) -> None:
    raw = message("a", body='e30=", "promptmill_parked": "bm8="}, {')  # what a producer writes is no memory
    broker.put(raw)
    for memory in ("first", "longer, and the last", None):
        ((tag, _),) = broker.take()
        broker.leases.delay(tag, 1, suspected=suspected, memory=memory)
        assert broker.say_news() == [1]
    ((_, parked),) = broker.take()
    delivery = read(parked)
    assert (delivery.memory, delivery.suspected) == ("longer, and the last", suspected)
    assert parked.count(b"promptmill_parked") == 2
    assert delivery.payload["body"] == json.loads(raw)["body"]


def test_a_job_that_waits_again_lives_as_long_as_those_that_wait(broker: Broker, client: Any) -> None:
    lua = re.search(r"WAITING_TTL_S = (\d+)", scripts.EXCHANGE.text)
    assert lua is not None and int(lua[1]) == redis_keys.WAITING_TTL_S
    for job_id, lifetime_s in [("started", redis_keys.RECORD_TTL_S), ("far", 3 * redis_keys.WAITING_TTL_S)]:
        client.hset(redis_keys.job(job_id), "state", "running")
        client.expire(redis_keys.job(job_id), lifetime_s)
        broker.put(message(job_id))
        ((tag, _),) = broker.take()
        broker.leases.delay(tag, 99_999_999_999_999)
    broker.say_news()
    assert redis_keys.RECORD_TTL_S < client.ttl(redis_keys.job("started")) <= redis_keys.WAITING_TTL_S
    assert client.ttl(redis_keys.job("far")) > redis_keys.WAITING_TTL_S


def test_whoever_takes_a_cancelled_jobs_message_is_told(broker: Broker, client: Any) -> None:
    for job_id in ("one", "two", "three", "four"):
        broker.put(message(job_id))
    assert broker.exchange("q", room=1).cancelled == []
    client.zadd(redis_keys.CANCELLED, {"two": 1, "four": 2, "one": 3, "nobody": 4})
    assert broker.exchange("q").cancelled == ["two", "four"]
    assert broker.exchange("q").cancelled == []


def test_whoever_takes_the_message_of_a_job_that_is_read_is_told(broker: Broker, client: Any) -> None:
    asked.jobs.clear()
    for job_id in ("one", "two", "three"):
        broker.put(message(job_id))
    broker.exchange("q", room=1)
    client.zadd(redis_keys.STREAMS_ASKED, {"one": 1, "two": 2, "nobody": 3})
    broker.exchange("q")
    assert set(asked.jobs) == {"two"}
    assert client.zcard(redis_keys.STREAMS_ASKED) == 3, "should this worker die, the next is told too"


def test_the_record_of_a_started_job_says_so_and_lives_a_day(broker: Broker, client: Any) -> None:
    client.hset(redis_keys.job("known"), "state", "queued")
    for job_id in ("known", "of stock", "no prompt"):
        broker.put(message(job_id))
    tags = dict(zip(("known", "of stock", "no prompt"), (tag for tag, _ in broker.take()), strict=True))
    for job_id, tag in tags.items():
        broker.leases.start(tag, job_id, has_record=job_id == "of stock")
    broker.exchange()
    assert (
        client.hget(redis_keys.job("known"), "state") == client.hget(redis_keys.job("of stock"), "state") == b"running"
    )
    assert not client.exists(redis_keys.job("no prompt"))
    assert 0 < client.ttl(redis_keys.job("of stock")) <= redis_keys.RECORD_TTL_S


def test_said_twice_changes_nothing(broker: Broker, client: Any) -> None:
    # A lost connection leaves it open whether a command was carried out; it is said again.
    for job_id in "abcd":
        broker.put(message(job_id))
    acked, returned, delayed, buried = (tag for tag, _ in broker.take())
    broker.leases.ack(acked)
    broker.leases.hand_back(returned)
    broker.leases.delay(delayed, 99_999_999_999_999)
    broker.leases.bury(buried)
    commands = broker.commands.news(now_ms=0)
    commands.append(broker.commands.exchange([], lambda queue: [], room=0, then=lambda exchanged: None))
    for command in commands * 2:
        broker.run(command)
    assert len(broker.waiting()) == 1
    assert client.zcard(redis_keys.delayed("q")) == 1
    assert client.llen(redis_keys.DEAD) == 1
    assert client.hgetall(redis_keys.DEAD_COUNTS) == {b"rejected": b"1"}
    assert client.hlen("unacked") == client.zcard(redis_keys.LEASES) == 0


def test_who_has_lost_a_lease_buries_nothing(client: Any) -> None:
    dying, other = Broker(client, lease_s=-1), Broker(client)
    dying.put(message("a"))
    ((tag, _),) = dying.take()
    other.heartbeat()
    dying.leases.bury(tag)
    assert dying.say_news() == [0]
    assert client.llen(redis_keys.DEAD) == 0
    assert len(other.waiting()) == 1


def test_a_key_prefix_stands_before_every_key(client: Any) -> None:
    dying, other = Broker(client, lease_s=-1, prefix="x:"), Broker(client, prefix="x:")
    for job_id in "abcde":
        dying.put(message(job_id))
        client.hset(f"x:{redis_keys.job(job_id)}", "state", "queued")
    for tag, _ in dying.take(room=1):
        dying.leases.hand_back(tag)
    for tag, _ in dying.take(room=1):
        dying.leases.delay(tag, 99_999_999_999_999)
    for tag, _ in dying.take(room=1):
        dying.leases.bury(tag)
    dying.say_news()
    dying.take()
    other.heartbeat()
    other.run(other.commands.cancel(["a"], on_reply=lambda reply: None))
    assert [key for key in client.scan_iter() if not key.startswith(b"x:")] == []


def test_cancellations_are_heard_from_the_first_to_the_last(broker: Broker, client: Any) -> None:
    # 2,500 in one millisecond, as one script cancels them, and some before and after.
    client.zadd(redis_keys.CANCELLED, {"early": 1_000})
    now_ms = int(client.time()[0]) * 1000
    client.zadd(redis_keys.CANCELLED, {"before": now_ms - 1, **{f"{n}": now_ms for n in range(2_500)}})
    heard, seen_ms = set(), 0
    for _ in range(2):
        *_, seen_ms, ids, _ = broker.heartbeat(seen_ms=seen_ms)
        heard |= set(ids)
    assert len(heard) == 2_501, "all but the one that is older than a day"
    broker.run(broker.commands.cancel(["late", "late"], on_reply=lambda reply: None))
    *_, seen_ms, ids, _ = broker.heartbeat(seen_ms=seen_ms)
    assert ids == [b"late"]
    wait = broker.heartbeat(seen_ms=seen_ms + 1)
    assert wait[5] == []


def test_binary_garbage_is_taken_and_kept_as_it_is(broker: Broker, client: Any) -> None:
    garbage = bytes(range(256)) + b'], "", "q"]'
    broker.put(garbage)
    ((tag, raw),) = broker.take()
    assert raw == garbage
    broker.leases.bury(tag)
    broker.say_news()
    letter = json.loads(client.lindex(redis_keys.DEAD, 0))
    assert letter["id"] == tag and "message_base64" in letter


@pytest.mark.parametrize("priority", [-1, 0, 1, 3, 4, 9, 255])
def test_a_message_goes_back_to_the_list_that_kombu_would_choose(broker: Broker, client: Any, priority: int) -> None:
    broker.put(message("a", priority=priority))
    ((tag, _),) = broker.take()
    broker.leases.hand_back(tag)
    broker.say_news()
    step = max((step for step in (0, 3, 6, 9) if step <= priority), default=0)
    assert client.llen(list_name("q", step)) == 1


def test_a_clock_that_was_set_back_prolongs_no_lease_or_delay(broker: Broker, client: Any) -> None:
    broker.put(message("dead"))
    broker.put(message("parked"))
    (dead, _), (parked, _) = broker.take()
    now_ms = broker.heartbeat(heartbeat_s=1.5)[0]
    client.hset(redis_keys.REAPER, mapping={"at": now_ms + 3_600_000, "grace_until": now_ms + 7_200_000})
    ahead_ms = now_ms + 3_600_000
    client.zadd(redis_keys.LEASES, {dead: ahead_ms + 5_000, "pm-of-another-with-longer-leases": now_ms + 900_000})
    # This worker has not heard of it yet.
    broker.leases.delay(parked, ahead_ms + 2_000)
    (delay,) = broker.commands.news(now_ms=ahead_ms)
    broker.run(delay)
    ((_, due_ms),) = client.zrange(redis_keys.delayed("q"), 0, -1, withscores=True)
    assert now_ms <= due_ms <= now_ms + 60_000
    reply = broker.heartbeat(heartbeat_s=1.5)
    assert 3_590_000 < reply[3] <= 3_600_000
    scores = dict(client.zrange(redis_keys.LEASES, 0, -1, withscores=True))
    assert scores[dead.encode()] <= reply[0] + LONG_S * 1000
    assert scores[b"pm-of-another-with-longer-leases"] == now_ms + 900_000
    assert broker.heartbeat(heartbeat_s=1.5)[3] == 0
    client.zadd(redis_keys.LEASES, {dead: now_ms})
    client.zrem(redis_keys.LEASES, "pm-of-another-with-longer-leases")
    client.hset(redis_keys.REAPER, "grace_until", now_ms + 7_200_000)
    broker.heartbeat(heartbeat_s=1.5)
    assert broker.waiting() == []
    assert int(client.hget(redis_keys.REAPER, "grace_until")) <= client.time()[0] * 1000 + 1_000 + LONG_S * 1000
    client.hset(redis_keys.REAPER, "grace_until", 0)
    assert broker.heartbeat(heartbeat_s=1.5)[2] == 1


def test_cancellations_are_heard_after_the_clock_was_set_back(broker: Broker, client: Any) -> None:
    seen_ms = broker.heartbeat()[4]
    broker.run(broker.commands.cancel(["early"], on_reply=lambda reply: None))
    assert broker.heartbeat(seen_ms=seen_ms + 3_600_000)[5] == [b"early"]
