"""kombu's poller, which also serves the connections on which messages are taken under leases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kombu.transport import redis as kombu_redis
from kombu.utils.eventio import ERR, READ

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from kombu.asynchronous import Hub

__all__ = ["HubOfPoller", "Poller"]


class HubOfPoller:
    """Celery's hub, to which kombu adds every connection in each turn: a system call and an exception for each.

    This one is passed on once. A number alone tells nothing, because a new socket gets that of a closed one. A closed
    socket is passed on each time: the hub's error is how the consumer hears that it must reconnect.
    """

    def __init__(self, hub: Hub, poller: Poller) -> None:
        self._hub = hub
        self._poller = poller
        self._added: dict[int, socket.socket | None] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._hub, name)

    def add_reader(self, fd: int, callback: Callable[..., Any], *args: Any) -> None:
        current = self._poller.socket_of(fd)
        if current is not None and self._added.get(fd) is current and fd in self._hub.readers:
            return
        self._hub.add_reader(fd, callback, *args)
        self._added[fd] = current


class Poller(kombu_redis.MultiChannelPoller):  # type: ignore[misc]  # kombu publishes no types
    """Has each channel send what is due before it sleeps, and wakes the channel whose connection has something to read.

    Queues that are read without acknowledgement stay kombu's, with BRPOP.
    """

    eventflags = READ | ERR

    def socket_of(self, fd: int) -> socket.socket | None:
        """The open connection of this number."""
        return next((each for each in self._chan_to_sock.values() if each.fileno() == fd), None)

    def on_poll_start(self) -> None:
        self._update_brpop_polling()
        for channel in self._channels:
            if (queues := channel.take_queues) or channel.has_news:
                channel.send_if_due(self, queues)
            elif channel.active_queues and channel.qos.can_consume():
                self._register_BRPOP(channel)
            if channel.active_fanout_queues:
                self._register_LISTEN(channel)

    def on_readable(self, fileno: int) -> Any:
        channel, kind = self._fd_to_chan.get(fileno, (None, None))
        # What is broadcast (remote control, events) is there to be read however full the worker is. kombu would leave
        # it and be woken by it again at once, for as long as that lasts. A broadcast task waits in the pool's line.
        if channel is not None and kind in {"TAKE", "WAKE", "LISTEN"}:
            return channel.handlers[kind]()
        return super().on_readable(fileno)

    def check_replies(self) -> None:
        """Raise when a reply is long overdue."""
        for channel in tuple(self._channels):
            channel.check_reply_is_not_overdue()
