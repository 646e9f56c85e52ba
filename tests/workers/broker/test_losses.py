"""A Redis that has lost its last words: leases, results and acknowledgements of which it does not know."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tasks.wire import redis_keys
from workers.broker.leases import LOSS_S, Lease, Leases
from workers.broker.messages import read
from workers.telemetry.counts import counts

from .broker import Broker, list_name, message

SUCCESS = '{"status": "SUCCESS", "result": 1}'


@pytest.fixture
def broker(broker: Broker) -> Iterator[Broker]:
    counts.take()
    broker.leases.result_prefix = redis_keys.RESULT_PREFIX
    yield broker
    counts.take()  # they are the process's


def take(broker: Broker, *, job_id: str = "a", step: int = 0) -> tuple[str, bytes]:
    """Take a job, and start it."""
    broker.put(message(job_id, priority=step), step=step)
    ((tag, raw),) = broker.take(room=1)
    broker.leases.start(tag, job_id, has_record=True, has_result=True)
    return tag, raw


def reclaim(broker: Broker, *tags: str) -> list[int]:
    return list(broker.run(broker.commands.reclaim([broker.leases.held[tag] for tag in tags], on_reply=lambda _: None)))


def forget(client: Any, tag: str) -> None:
    """As a Redis that came back without its last second."""
    client.hdel("unacked", tag)
    client.zrem("unacked_index", tag)
    client.zrem(redis_keys.LEASES, tag)


def assert_leased(client: Any, tag: str, raw: bytes) -> None:
    assert json.loads(client.hget("unacked", tag)) == [json.loads(raw), "", "q"]
    assert client.zscore(redis_keys.LEASES, tag) and client.zscore("unacked_index", tag)


@pytest.mark.parametrize("step", [0, 3])
@pytest.mark.parametrize("place", ["waiting", "given back", "delayed", "nowhere"])
def test_a_lease_that_redis_lost_is_taken_back_with_its_message(
    broker: Broker, client: Any, step: int, place: str
) -> None:
    tag, raw = take(broker, step=step)
    forget(client, tag)
    for n in range(250):
        broker.put(message(f"other-{n}", priority=step), step=step)
    past = raw[:-1] + b', "promptmill": {"deliveries": 1, "suspected": 1}}'
    if place == "delayed":
        client.zadd(redis_keys.delayed("q"), {past: 5})
    elif place != "nowhere":
        client.rpush(list_name("q", step), raw if place == "waiting" else past)
    assert reclaim(broker, tag) == [1]
    assert_leased(client, tag, raw)
    assert len(broker.waiting(step=step)) == 250 and not client.exists(redis_keys.delayed("q"))
    assert client.zcard(redis_keys.SUSPECTED) == (place == "nowhere")
    assert reclaim(broker, tag) == [1], "said twice"
    assert 0 < client.ttl(redis_keys.SUSPECTED) <= redis_keys.RECORD_TTL_S or place != "nowhere"


def test_a_job_that_another_has_is_given_up_and_flagged_there(broker: Broker, client: Any) -> None:
    tag, raw = take(broker)
    forget(client, tag)
    other = Broker(client)
    other.put(raw)
    ((others_tag, _),) = other.take()
    assert reclaim(broker, tag) == [0]
    assert client.hkeys("unacked") == [others_tag.encode()]
    assert other.heartbeat([others_tag])[6] == [others_tag.encode()]
    assert other.heartbeat([others_tag])[6] == [], "told once"
    other.leases.hand_back(others_tag)
    other.say_news()
    assert read(other.waiting()[0]).suspected, "whatever becomes of the other"


def test_a_job_that_has_ended_is_given_up(broker: Broker, client: Any) -> None:
    tag, _ = take(broker)
    forget(client, tag)
    client.set(redis_keys.RESULT_PREFIX + "a", SUCCESS)
    assert reclaim(broker, tag) == [0]
    assert not client.exists("unacked", redis_keys.LEASES, redis_keys.SUSPECTED)


def test_a_message_that_turns_up_later_is_flagged_when_taken(broker: Broker, client: Any) -> None:
    tag, raw = take(broker)
    forget(client, tag)
    assert reclaim(broker, tag) == [1]
    broker.put(raw)
    broker.put(message("b"))
    taken = {json.loads(text)["headers"]["id"]: read(text).suspected for _, text in Broker(client).take()}
    assert taken == {"a": True, "b": False}
    assert not client.exists(redis_keys.SUSPECTED)


def test_a_lost_lease_of_an_unstarted_job_is_taken_back_too(broker: Broker, client: Any) -> None:
    broker.put(message("a"))
    ((tag, raw),) = broker.take()
    forget(client, tag)
    broker.put(raw)
    assert reclaim(broker, tag) == [1]
    assert broker.waiting() == []


def end(broker: Broker, tag: str) -> None:
    broker.leases.ack(tag)
    broker.exchange()


def test_an_acknowledgement_is_doubted_after_a_change_of_server(broker: Broker, client: Any) -> None:
    """Of two jobs that had ended, one's result is lost, and both acknowledgements are."""
    leases = broker.leases
    assert not leases.meet("first", 0)
    kept, lost, unanswered = (take(broker, job_id=name)[0] for name in ("kept", "lost", "unanswered"))
    for tag in (kept, lost, unanswered):
        leases.ack(tag)
    client.set(redis_keys.RESULT_PREFIX + "kept", SUCCESS)
    client.set(redis_keys.RESULT_PREFIX + "lost", '{"status": "STARTED"}')
    assert not leases.meet("first", 1), "the same server as before"
    assert len(leases.acks) == 3
    assert leases.meet("second", 2)
    assert not leases.acks
    broker.say_news()
    assert not client.exists("unacked", "unacked_index", redis_keys.LEASES)
    waiting = {json.loads(raw)["headers"]["id"]: read(raw).suspected for raw in broker.waiting()}
    assert waiting == {"lost": True, "unanswered": True}
    assert dict(counts.take()) == {"suspected_payments_total:redis_lost": 2}


def test_what_was_acknowledged_before_the_loss_is_verified_too(broker: Broker, client: Any) -> None:
    broker.leases.meet("first", 0)
    tag, raw = take(broker)
    end(broker, tag)
    assert not client.exists("unacked")
    broker.put(raw)  # Redis comes back without the lease, the result and the acknowledgement
    assert broker.leases.meet("second", 0)
    broker.say_news()
    ((_, text),) = broker.take()
    assert read(text).suspected


def test_an_acknowledgement_that_redis_forgot_is_said_again(broker: Broker, client: Any) -> None:
    broker.leases.meet("first", 0)
    tag, _ = take(broker)
    record = client.hget("unacked", tag)
    end(broker, tag)
    client.hset("unacked", tag, record)
    client.zadd(redis_keys.LEASES, {tag: 1})
    client.set(redis_keys.RESULT_PREFIX + "a", SUCCESS)
    assert broker.leases.meet("second", 0)
    broker.say_news()
    assert not client.exists("unacked", redis_keys.LEASES, "q", redis_keys.SUSPECTED)


def test_a_second_loss_is_met_like_the_first(broker: Broker, client: Any) -> None:
    """What was acknowledged in doubt is remembered too."""
    broker.leases.meet("first", 0)
    broker.leases.meet("second", 0)
    tag, raw = take(broker)
    client.set(redis_keys.RESULT_PREFIX + "a", SUCCESS)
    broker.leases.ack(tag)
    broker.leases.doubt_acks(1)
    broker.say_news()
    assert not client.exists("unacked")
    client.delete(redis_keys.RESULT_PREFIX + "a")
    broker.put(raw)
    broker.leases.meet("third", 2)
    broker.say_news()
    ((_, text),) = broker.take()
    assert read(text).suspected


@pytest.mark.parametrize("how", ["parked after a call", "parked uncalled", "handed back", "handed back unstarted"])
def test_a_call_is_told_of_whose_lease_redis_lost(broker: Broker, client: Any, how: str) -> None:
    """The job gives its message back, which waits in its queue again and knows of no call."""
    tag, raw = take(broker)
    forget(client, tag)
    broker.put(raw)
    match how:
        case "parked after a call":
            broker.leases.delay(tag, 1, memory='{"attempts":1}')
        case "parked uncalled":
            broker.leases.delay(tag, 1)
        case "handed back":
            broker.leases.hand_back(tag)
        case _:
            broker.leases.hand_back_unstarted(tag)
    broker.say_news()
    ((_, text),) = broker.take()
    assert read(text).suspected == (how in {"parked after a call", "handed back"})
    assert not client.exists(redis_keys.SUSPECTED, redis_keys.delayed("q"))


def test_tasks_without_results_are_acknowledged_as_ever() -> None:
    leases = Leases()
    leases.meet("first", 0)
    leases.held["t"] = Lease("t", "q", b"{}")
    leases.start("t", "a")
    leases.ack("t")
    leases.meet("second", 0)
    assert [lease.tag for lease in leases.acks] == ["t"]
    assert not leases.doubted


def test_doubt_lasts_until_old_connections_are_gone() -> None:
    leases = Leases()
    leases.meet("first", 0)
    leases.meet("second", 100)
    for now_s, doubted in ((101, 1), (200, 1)):
        leases.held["t"] = Lease("t", "q", b"{}", has_result=True)
        leases.ack("t")
        leases.doubt_acks(now_s)
        assert len(leases.doubted) == doubted


def test_a_server_without_a_name_is_another_each_time() -> None:
    leases = Leases()
    assert not leases.meet(None, 0)
    assert leases.meet(None, 0)


def test_acknowledgements_are_remembered_for_a_few_seconds() -> None:
    leases = Leases()
    for now_s in (0, 1, LOSS_S + 2):
        leases.note_acknowledged([Lease(f"{now_s}", "q", b"long")], now_s)
    assert [(now_s, [lease.raw for lease in each]) for now_s, each in leases.acknowledged] == [(LOSS_S + 2, [b""])]


def test_records_are_told_again_what_runs() -> None:
    leases = Leases()
    leases.meet("first", 0)
    leases.held = {tag: Lease(tag, "q", b"{}") for tag in ("runs", "waits")}
    leases.start("runs", "a", has_record=True)
    leases.started_jobs.clear()
    leases.meet("second", 0)
    assert leases.started_jobs == {"runs": ("a", True)}
