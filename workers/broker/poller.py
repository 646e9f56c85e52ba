"""kombu's poller, which also serves the connections on which messages are taken under leases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kombu.transport import redis as kombu_redis
from kombu.utils.eventio import ERR, READ

if TYPE_CHECKING:
    import socket

    from kombu.asynchronous import Hub

__all__ = ["Poller"]


class Poller(kombu_redis.MultiChannelPoller):  # type: ignore[misc]  # kombu publishes no types
    """Has each channel send what is due before it sleeps, and wakes the channel whose connection has something to read.

    Queues that are read without acknowledgement stay kombu's, with BRPOP.
    """

    eventflags = READ | ERR

    def __init__(self) -> None:
        super().__init__()
        self.hub: Hub | None = None
        """Celery's, once it listens to these connections."""
        self._sockets: dict[int, socket.socket] = {}
        self._added: dict[int, socket.socket | None] = {}

    def _register(self, channel: Any, client: Any, kind: str) -> None:
        super()._register(channel, client, kind)
        registered: socket.socket = self._chan_to_sock[channel, client, kind]
        self._sockets[registered.fileno()] = registered

    @property
    def fds(self) -> list[int]:
        """What the hub is to listen to, and does not yet.

        kombu has it add every connection in each turn, which is a system call and an exception for each. A number
        alone tells nothing, because a new socket gets that of a closed one. A closed one stays here: the hub's error is
        how the consumer hears that it must reconnect.
        """
        new = [fd for fd in super().fds if not self._is_added(fd)]
        self._added.update((fd, self._sockets.get(fd)) for fd in new)
        return new

    def _is_added(self, fd: int) -> bool:
        current = self._sockets.get(fd)
        if self.hub is None or current is None or self._added.get(fd) is not current:
            return False
        return fd in self.hub.readers and current.fileno() == fd

    def on_poll_start(self) -> None:
        self._update_brpop_polling()
        for channel in self._channels:
            if channel.take_queues or channel.has_news:
                channel.send_if_due(self)
            elif channel.active_queues and channel.qos.can_consume():
                self._register_BRPOP(channel)
            if channel.active_fanout_queues:
                self._register_LISTEN(channel)

    def on_readable(self, fileno: int) -> Any:
        channel, kind = self._fd_to_chan.get(fileno, (None, None))
        # What is broadcast (remote control, events) is there to be read however full the worker is. kombu would leave
        # it and be woken by it again at once, for as long as that lasts.
        if channel is not None and kind in {"TAKE", "WAKE", "LISTEN"}:
            return channel.handlers[kind]()
        return super().on_readable(fileno)

    def check_replies(self) -> None:
        """Raise when a reply is long overdue."""
        for channel in tuple(self._channels):
            channel.check_reply_is_not_overdue()
