"""What a run finds of workers that are not its own."""

from __future__ import annotations

from typing import Any

import pytest

from workers.commands.run.errors import UnusableInput
from workers.commands.run.processes import services

URL = "redis://127.0.0.1:6379/0"


class Channel:
    """A Redis in which so many listen, at each look."""

    def __init__(self, *listeners: int) -> None:
        self.listeners = list(listeners)

    async def publish(self, channel: str, message: str) -> int:
        return self.listeners.pop(0)


async def found(channel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "LOOK_AGAIN_S", 0.0)
    await services._check_workers(channel, URL, key_prefix="")


async def test_a_worker_that_has_just_started_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    channel = Channel(0, 0, 1, 1)
    await found(channel, monkeypatch)
    assert channel.listeners == [1]


async def test_without_workers_a_run_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    channel = Channel(*[0] * services.LOOKS)
    with pytest.raises(UnusableInput, match=r"none listens at 127\.0\.0\.1:6379, database 0\. Start one"):
        await found(channel, monkeypatch)
    assert not channel.listeners
