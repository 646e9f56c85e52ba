"""Redis URLs of every kind: what they mean, what is shown of them, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks import JobFailed, PromptmillError, PromptQueue
from tasks.redis.address import Address
from tests.support.redis_server import RedisServer

PASSWORD = "canary-password-5d1f"
SENTINELS = f"sentinel://:{PASSWORD}@a:1;sentinel://[::1]/4?master_name=mill&sentinel_password={PASSWORD}"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost", "localhost:6379, database 0"),
        (f"redis://:{PASSWORD}@10.0.0.1:7000/5", "10.0.0.1:7000, database 5"),
        ("redis://localhost:6379/1?db=2", "localhost:6379, database 2"),
        (f"rediss://user:{PASSWORD}@cache.example:6380/1", "cache.example:6380, database 1"),
        (f"unix://:{PASSWORD}@/run/redis.sock?db=2", "/run/redis.sock, database 2"),
        (SENTINELS, "the master mill of the sentinels a:1, ::1:26379, database 4"),
    ],
)
def test_an_address_never_shows_its_password(url: str, shown: str) -> None:
    address = Address.of(url)
    assert str(address) == shown
    assert PASSWORD not in repr(address) + repr(address.sentinels) + repr(PromptQueue(url))
    client, async_client = address.client(), address.async_client()
    assert PASSWORD not in repr(client) + repr(async_client)
    assert client.get_connection_kwargs().get("db", 0) == address.database
    assert async_client.get_connection_kwargs().get("db", 0) == address.database


def test_the_parts_of_a_sentinel_url_are_told_once_or_alike() -> None:
    address = Address.of("sentinel://u:p%2Fw@a;sentinel://u:p%2Fw@b:7/3?master_name=mill;sentinel://a")
    assert (address.username, address.password, address.database) == ("u", "p/w", 3)
    assert address.sentinels is not None
    assert address.sentinels.hosts == (("a", 26379), ("b", 7))
    assert (address.sentinels.username, address.sentinels.password) == (None, None), "Redis's are Redis's alone"


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        (f"http://{PASSWORD}", "begins with redis://, rediss://, unix:// or sentinel://"),
        ("", "begins with redis://"),
        (f"redis://:{PASSWORD}@host:port/0", "valid host and port"),
        (f"redis://:{PASSWORD}@host/0#x", "number of a Redis database"),
        (f"redis://:{PASSWORD}@host/0?db=x", "number of a Redis database"),
        (f"redis:///{PASSWORD}", "number of a Redis database"),
        (f"sentinel://:{PASSWORD}@a:26379", "as in .master_name=mymaster"),
        (f"sentinel://:{PASSWORD}@a:26379,b:26379/0?master_name=m", "valid host and port"),
        (f"sentinel://a;{PASSWORD}/0?master_name=m", "begins with"),
        (f"sentinel://a;redis://:{PASSWORD}@b/0?master_name=m", "each sentinel with scheme and host"),
        (f"sentinel://:{PASSWORD}@a;sentinel://:x{PASSWORD}@b/0?master_name=m", "one password for all"),
        ("sentinel://a/1;sentinel://b/2?master_name=m", "one database for all"),
        (f"sentinel://a/0?master_name=m&password={PASSWORD}", "no option 'password'; with Sentinel there are"),
    ],
)
def test_an_unusable_url_is_refused_without_showing_it(url: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as caught:
        PromptQueue(url)
    assert "Redis URL" in str(caught.value)
    assert PASSWORD not in str(caught.value)
    assert not isinstance(caught.value, PromptmillError | JobFailed)


async def test_a_socket_leads_to_redis(tmp_path: Path) -> None:
    server = RedisServer(tmp_path, f"unixsocket {tmp_path / 'redis.sock'}")
    try:
        url = f"unix://{tmp_path / 'redis.sock'}?db=1"
        async with PromptQueue(url) as queue:
            job = await queue.submit(model="m", messages=[{"role": "user", "content": "hello"}])
            assert await queue.job(job.id).status() == "queued"
        with Address.of(url).client(socket_connect_timeout=5) as client:
            assert client.exists("prompts\x06\x163")
    finally:
        server.close()
