"""kombu's poller, which also serves the connections on which messages are taken under leases."""

from __future__ import annotations

from typing import Any

from kombu.transport import redis as kombu_redis
from kombu.utils.eventio import ERR, READ

__all__ = ["Poller"]


class Poller(kombu_redis.MultiChannelPoller):  # type: ignore[misc]  # kombu publishes no types
    """Has each channel send what is due before it sleeps, and wakes the channel whose connection has something to read.

    Queues that are read without acknowledgement stay kombu's, with BRPOP.
    """

    eventflags = READ | ERR

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
        if channel is not None and kind in {"TAKE", "WAKE"}:
            return channel.handlers[kind]()
        return super().on_readable(fileno)

    def check_replies(self) -> None:
        """Raise when a reply is long overdue."""
        for channel in tuple(self._channels):
            channel.check_reply_is_not_overdue()
