"""How kombu's consumer counts, acknowledges and rejects what it holds: through the leases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
from kombu.transport import redis as kombu_redis
from kombu.transport import virtual

from tasks.wire import redis_keys

from ..commands import TAKE_LIMIT

if TYPE_CHECKING:
    from ..leases import Leases

__all__ = ["Message", "QoS"]

SPARE_SHARE = 25
"""One message in so many may wait in the worker: a free place is filled without a round trip to Redis, and no
more than these few are kept from a worker that is idle."""

RESTORE_LIMIT = 100
"""Messages of dead stock workers given back in one go."""


class QoS(kombu_redis.QoS):  # type: ignore[misc]  # kombu publishes no types
    """Counts what the consumer holds, and passes acknowledgements on to the leases."""

    @property
    def _leases(self) -> Leases:
        leases: Leases = self.channel.leases
        return leases

    def can_consume(self) -> bool:
        return self.room() > 0

    def room(self) -> int:
        """How many more messages may be taken now: for the free places, and at 25 places and more a few to spare."""
        limit = int(self.prefetch_count or TAKE_LIMIT)
        return limit + limit // SPARE_SHARE - len(self._leases.held)

    def append(self, message: Any, delivery_tag: str) -> None:
        self._delivered[delivery_tag] = message

    def ack(self, delivery_tag: str) -> None:
        self.channel.leases.ack(delivery_tag)
        self._delivered.pop(delivery_tag, None)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        if requeue:
            self._leases.hand_back(delivery_tag)
        else:
            self._leases.bury(delivery_tag)
        self._delivered.pop(delivery_tag, None)

    def delay(self, delivery_tag: str, due_ms: int, **known: Any) -> None:
        """As `Leases.delay`."""
        self._leases.delay(delivery_tag, due_ms, **known)
        self._delivered.pop(delivery_tag, None)

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """kombu calls it when the channel closes. Leases outlive it; see `Channel.close`."""
        self._on_collect.cancel()

    def restore_unacked(self, client: Any = None) -> None:
        for tag in tuple(self._delivered):
            self._leases.hand_back(tag)
        self._delivered.clear()

    def restore_visible(self, start: int = 0, num: int | None = None, interval: int = 10) -> None:
        """Give back what stock workers took and did not end within the visibility timeout, by Redis's clock.

        kombu's own asks this machine's clock, and would give back our leases too: with a clock that is hours ahead,
        all jobs of all workers at once.
        """
        self._vrestore_count += 1
        if (self._vrestore_count - 1) % (interval or 1):
            return
        with self.channel.conn_or_acquire() as client:
            taken_before_s = client.time()[0] - self.visibility_timeout
            # ZRANGE is one of the few commands that get kombu's `global_keyprefix` by themselves.
            old = client.zrange(
                self.unacked_index_key, 0, taken_before_s, byscore=True, offset=0, num=num or RESTORE_LIMIT
            )
            for tag in old:
                if not tag.startswith(redis_keys.LEASE_TAG_PREFIX.encode()):
                    self.restore_by_tag(tag, client)


class Message(virtual.Message):  # type: ignore[misc]  # kombu publishes no types
    """A message whose body can't be read is buried when Celery drops it."""

    def forget_body(self) -> None:
        """Keep `payload` alone. The body as it came and as it was decoded would take twice the prompt's size for as
        long as its job runs; should the message go back, or to the dead letters, its lease has it."""
        self.body = self._raw["body"] = None

    def _decode(self) -> Any:
        try:
            return _prompt_body(self.body) or super()._decode()
        except Exception as exc:
            # The exception's own text may quote the body.
            reason = f"its body can't be decoded ({type(exc).__name__}, content type {self.content_type!r})"
            self.channel.leases.condemn(self.delivery_tag, "unreadable", reason[:500])
            raise


def _prompt_body(body: Any) -> list[Any] | None:
    """The body of a message from our client, without kombu's slower decoder: one text, and nothing that follows it.

    Any other body is kombu's to read: its hooks turn `__type__` into dates and the like, and its integers are exact.
    """
    start = body[:3]
    if start not in (b'[["', '[["'):
        return None
    parsed = orjson.loads(body)
    if len(parsed) != 3 or parsed[1] or any(parsed[2].values()):
        return None
    args: list[Any] = parsed[0]
    return parsed if len(args) == 1 and isinstance(args[0], str) else None
