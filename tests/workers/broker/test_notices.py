"""What workers tell people gets to Redis, holds for its time, and is kept while Redis is away."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from tasks.wire import redis_keys
from workers.telemetry.notices import LEAST_S, notices

from .broker import Broker

FIELD = "unreachable:mute"


def told(client: Any) -> dict[str, Any]:
    return {field.decode(): orjson.loads(record) for field, record in client.hgetall(redis_keys.NOTICES).items()}


def test_the_latest_of_each_subject_is_told_once(broker: Broker, client: Any) -> None:
    notices.tell("unreachable", "mute", "It is away.", lasts_s=20)
    notices.tell("unreachable", "mute", "It is away still.", lasts_s=30)
    notices.tell("unreachable", "deaf", "So is the other.", lasts_s=30)
    assert broker.leases.has_news
    broker.say_news()
    assert not broker.leases.has_news
    assert told(client) == {
        FIELD: {"text": "It is away still.", "until_ms": 30_000},
        "unreachable:deaf": {"text": "So is the other.", "until_ms": 30_000},
    }
    assert 0 < client.ttl(redis_keys.NOTICES) <= redis_keys.NOTICES_TTL_S


def test_a_notice_of_a_moment_holds_until_it_can_have_been_seen(broker: Broker, client: Any) -> None:
    notices.tell("unreachable", "mute", "It is away.", lasts_s=1)
    broker.say_news()
    assert told(client)[FIELD]["until_ms"] == LEAST_S * 1000


def test_what_redis_did_not_take_is_told_again_unless_outdated(broker: Broker) -> None:
    notices.tell("unreachable", "mute", "before", lasts_s=20)
    notices.tell("unreachable", "deaf", "the only one", lasts_s=20)
    write, _ = broker.commands.news(now_ms=0)
    notices.tell("unreachable", "mute", "after", lasts_s=20)
    with pytest.raises(RedisConnectionError):
        write.on_reply(RedisConnectionError("away"))
    assert {field: notice.text for field, notice in notices.take().items()} == {
        FIELD: "after",
        "unreachable:deaf": "the only one",
    }
