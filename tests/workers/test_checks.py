"""What a worker looks at before it takes jobs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from tests.support.redis_server import RedisServer
from workers.checks import check_redis


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Redis]:
    server = RedisServer(tmp_path / "redis")
    with Redis.from_url(server.url, decode_responses=True) as client:
        yield client
    server.close()


def refused(client: Redis) -> list[str]:
    return [finding.text for finding in check_redis(client, subject="Redis") if finding.level == "refused"]


def test_a_redis_whose_scripts_must_declare_keys_is_refused(client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Dragonfly answers (dragonflydb.io, "Scripting with Lua")."""

    def strict(script: str, numkeys: int, *names: Any) -> None:
        raise ResponseError("Error running script (call to f_1): @user_script:1: script tried accessing undeclared key")

    client.config_set("maxmemory-policy", "noeviction")
    assert not refused(client)
    monkeypatch.setattr(client, "eval", strict)
    [text] = refused(client)
    assert "Use Redis itself" in text
