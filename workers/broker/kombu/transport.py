"""The transports, one for each kind of URL: `broker_transport = "workers.broker:Transport"` with redis://."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as kombu_redis

from tasks.redis.sentinel import MasterConnection, MasterPool

from .channel import OPTIONS, Channel
from .poller import HubOfPoller, Poller

if TYPE_CHECKING:
    from kombu.asynchronous import Hub

    from tasks.redis.sentinel import Sentinels

__all__ = ["SentinelTransport", "SocketTransport", "Transport"]


class Transport(kombu_redis.Transport):  # type: ignore[misc]  # kombu publishes no types
    """kombu's Redis transport with leases."""

    Channel = Channel

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cycle = Poller()

    def register_with_event_loop(self, connection: Any, loop: Hub) -> None:
        super().register_with_event_loop(connection, HubOfPoller(loop, self.cycle))


class SocketChannel(Channel):
    """The same through a Unix socket.

    kombu reads the login from the socket's URL, and shows that URL to all who inspect the worker. Here it is the
    connection's own, which kombu shows without the password.
    """

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        client = self.connection.client
        params: dict[str, Any] = super()._connparams(asynchronous)
        return params | {"username": client.userid, "password": client.password}


class SocketTransport(Transport):
    """The same for socket:///path. kombu hands such a URL on whole, or would take its own transport for it."""

    Channel = SocketChannel
    can_parse_url = True


# Where Celery shows its settings, it asks kombu whose URL this is.
TRANSPORT_ALIASES["socket"] = f"workers.broker:{SocketTransport.__name__}"


class SentinelChannel(Channel, kombu_redis.SentinelChannel):  # type: ignore[misc]  # kombu publishes no types
    """The same, with the master found through Sentinel.

    kombu reads the sentinels from the URL, as its alternates. After a failed attempt it would go on to the next one by
    its URL alone: with kombu's own transport, without leases. Here the URL names one, and an option all of them.
    """

    from_transport_options = (*kombu_redis.SentinelChannel.from_transport_options, *OPTIONS, "sentinels")
    sentinels: Sentinels
    connection_class = MasterConnection

    def _sentinel_managed_pool(self, asynchronous: bool = False) -> MasterPool:
        params = self._connparams(asynchronous)
        del params["host"], params["port"]
        return MasterPool(self.sentinels, **params)


class SentinelTransport(Transport):
    """The same behind Sentinel: the URL names one sentinel, the option `sentinels` all (`tasks.redis.sentinel`)."""

    Channel = SentinelChannel
    default_port = 26379
