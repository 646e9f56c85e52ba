"""What is waited for is looked at again now and then, without holding up those that are heard of meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest

from tasks.redis.address import Address
from tasks.redis.connection import RedisConnection
from tasks.store import subscriptions
from tasks.store.place import Place
from tasks.store.streams.entries import Inbox, StreamEntries
from tests.support.ports import free_port


class Noting:
    """A listener that notes what it is to look at again."""

    def __init__(self) -> None:
        self.rechecked: list[list[str]] = []

    def receive(self, job_id: str, payload: bytes) -> None:
        """Nothing comes."""

    def look(self, job_ids: Iterable[str]) -> None:
        """No connection stands."""

    def recheck(self, job_ids: Iterable[str]) -> None:
        self.rechecked.append(list(job_ids))

    def note_alive(self) -> None:
        """Nothing comes."""

    def suffer(self, error: Exception) -> None:
        """No connection stands."""


@pytest.fixture
def connection() -> RedisConnection:
    """To nowhere."""
    return RedisConnection(Address.of(f"redis://127.0.0.1:{free_port()}/0"), timeout_s=1)


def seen(inbox: Inbox) -> list[object]:
    return list(inbox.take_now())


async def test_an_answer_that_is_heard_of_is_not_looked_at(connection: RedisConnection) -> None:
    settings = Place(
        connection.address, connection.address, timeout_s=1, outage_s=1, key_prefix="", result_key_prefix=""
    )
    entries = StreamEntries(connection, settings)
    heard, silent = entries.join("heard"), entries.join("silent")
    try:
        entries.receive("heard", b"1-3 t 24 ")
        seen(heard)
        entries.recheck(["heard", "silent"])
        assert (seen(heard), seen(silent)) == ([], [None])
        entries.recheck(["heard", "silent"])
        assert (seen(heard), seen(silent)) == ([None], [None]), "silent since the recheck before"
    finally:
        await entries.aclose()
        await connection.aclose()


async def test_many_are_looked_at_in_parts(connection: RedisConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscriptions, "_RECHECK_S", 0.001)
    monkeypatch.setattr(subscriptions, "_PART_S", 0.001)
    listener, wanted = Noting(), {f"job-{number}": None for number in range(1_001)}
    found = subscriptions.Subscriptions(connection, listener, prefix="", wanted=wanted)
    found.start()
    try:
        async with asyncio.timeout(30):
            while len(listener.rechecked) < 20:
                await asyncio.sleep(0.001)
        assert [len(part) for part in listener.rechecked[:20]] == [51] * 19 + [32]
        assert [job_id for part in listener.rechecked[:20] for job_id in part] == list(wanted)
    finally:
        await found.aclose()
        await connection.aclose()
