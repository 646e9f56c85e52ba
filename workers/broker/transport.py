"""The transports: `broker_transport = "workers.broker:Transport"` with a redis:// URL, or the Sentinel one."""

from __future__ import annotations

from typing import Any

from kombu.transport import redis as kombu_redis

from .channel import Channel, SentinelChannel
from .poller import Poller

__all__ = ["SentinelTransport", "Transport"]


class Transport(kombu_redis.Transport):  # type: ignore[misc]  # kombu publishes no types
    """kombu's Redis transport with leases."""

    Channel = Channel

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cycle = Poller()


class SentinelTransport(Transport):
    """The same for sentinel:// URLs."""

    Channel = SentinelChannel
    default_port = 26379
