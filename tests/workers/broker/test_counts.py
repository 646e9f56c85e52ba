"""What workers count gets to Redis once, and is kept while Redis is away."""

from __future__ import annotations

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from tasks.wire import redis_keys
from workers.broker.commands import Commands
from workers.broker.leases import Leases
from workers.telemetry.counts import counts

FIELD = "suspected_payments_total:timeout"


def commands_of(leases: Leases) -> Commands:
    return Commands(
        leases, prefix="p:", unacked="unacked", index="unacked_index", steps=(0,), separator=":", lease_s=6.0
    )


def test_counts_are_news_until_they_are_sent() -> None:
    leases = Leases()
    assert not leases.has_news
    counts.add("suspected_payments_total", "timeout", 2)
    counts.add("suspected_payments_total", "timeout")
    assert leases.has_news
    [command] = commands_of(leases).news(now_ms=0)
    assert command.args == ("HINCRBY", "p:" + redis_keys.COUNTS, FIELD, 3)
    command.on_reply(3)
    assert not leases.has_news


def test_what_redis_did_not_take_is_sent_again() -> None:
    leases = Leases()
    counts.add("suspected_payments_total", "timeout")
    [command] = commands_of(leases).news(now_ms=0)
    with pytest.raises(RedisConnectionError):
        command.on_reply(RedisConnectionError("away"))
    counts.add("suspected_payments_total", "timeout")
    [again] = commands_of(leases).news(now_ms=0)
    assert again.args[2:] == (FIELD, 2)


def test_an_event_that_is_not_listed_is_a_mistake() -> None:
    with pytest.raises(KeyError):
        counts.add("suspected_payments_total", "phase_of_the_moon")
