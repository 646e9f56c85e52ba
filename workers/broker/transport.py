"""The transports, one for each kind of URL: `broker_transport = "workers.broker:Transport"` with redis://."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as kombu_redis

from .channel import Channel, SentinelChannel, SocketChannel
from .poller import HubOfPoller, Poller

if TYPE_CHECKING:
    from kombu.asynchronous import Hub

__all__ = ["SentinelTransport", "SocketTransport", "Transport"]


class Transport(kombu_redis.Transport):  # type: ignore[misc]  # kombu publishes no types
    """kombu's Redis transport with leases."""

    Channel = Channel

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cycle = Poller()

    def register_with_event_loop(self, connection: Any, loop: Hub) -> None:
        super().register_with_event_loop(connection, HubOfPoller(loop, self.cycle))


class SocketTransport(Transport):
    """The same for socket:///path. kombu hands such a URL on whole, or would take its own transport for it."""

    Channel = SocketChannel
    can_parse_url = True


# Where Celery shows its settings, it asks kombu whose URL this is.
TRANSPORT_ALIASES["socket"] = f"{__package__}:{SocketTransport.__name__}"


class SentinelTransport(Transport):
    """The same behind Sentinel: the URL names one sentinel, the option `sentinels` all (`tasks.redis.sentinel`)."""

    Channel = SentinelChannel
    default_port = 26379
