"""What becomes of a message that was just taken: it is delivered, waits until it is due, or is dead-lettered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .compression import why_unreadable
from .messages import Delivery, Unreadable, read

if TYPE_CHECKING:
    from collections.abc import Callable

    from .leases import DeadLetterKind, Lease, Leases
    from .lookout import Lookout

__all__ = ["Triage"]

PORTION_WAIT_MS = 500
"""A message that is one too many of those whose workers died is looked at again after this, and up to a second more."""


class Triage:
    """Looks at each message before Celery does."""

    def __init__(
        self,
        leases: Leases,
        lookout: Lookout,
        *,
        max_deliveries: int,
        capacity: Callable[[], int],
        decode_body: Callable[[Any, str | None], Any],
    ) -> None:
        """A message whose worker died `max_deliveries` times is dead-lettered. `capacity`: how many messages this
        process may hold. `decode_body` undoes a body's transfer encoding.
        """
        self._leases = leases
        self._lookout = lookout
        self._max_deliveries = max_deliveries
        self._capacity = capacity
        self._decode_body = decode_body

    def readable(self, lease: Lease) -> dict[str, Any] | None:
        """The message as kombu wants it; None where it was buried, or is kept until it is due."""
        tag = lease.tag
        try:
            delivery = read(lease.raw)
        except Unreadable as exc:
            self._bury(tag, "garbage", f"it is not a Celery message: {exc}")
            return None
        if self._is_buried(tag, delivery):
            return None
        due_ms = self._not_before_ms(lease, delivery)
        if due_ms is not None:
            self._leases.delay(tag, due_ms)
            return None
        return delivery.ready(tag)

    def _is_buried(self, tag: str, delivery: Delivery) -> bool:
        if delivery.deliveries >= self._max_deliveries:
            self._bury(tag, "poison", f"its worker died {delivery.deliveries} times while it had this message")
            return True
        if (reason := self._why_unreadable(delivery.payload)) is not None:
            self._bury(tag, "unreadable", reason)
            return True
        return False

    def _not_before_ms(self, lease: Lease, delivery: Delivery) -> int | None:
        """When the message may be started; None: now."""
        now_ms = self._lookout.redis_ms
        if delivery.due_ms is not None and delivery.due_ms > now_ms:
            self._lookout.within((delivery.due_ms - now_ms) / 1000)
            return delivery.due_ms
        if delivery.lane and (turn_ms := self._leases.lanes.turn_ms(delivery.lane, now_ms=now_ms)) is not None:
            return turn_ms
        if delivery.deliveries and not self._has_portion(lease, delivery.deliveries):
            return now_ms + PORTION_WAIT_MS + int(lease.tag[-3:])  # not all of them in the same moment
        return None

    def _why_unreadable(self, payload: dict[str, Any]) -> str | None:
        method = payload["headers"].get("compression")
        if not isinstance(method, str):
            return None
        try:
            body = self._decode_body(payload["body"], payload["properties"].get("body_encoding"))
        except ValueError:
            return None  # kombu meets the same error
        return why_unreadable(body if isinstance(body, bytes) else body.encode(), method)

    def _has_portion(self, lease: Lease, deliveries: int) -> bool:
        """Whether this worker may have one more of the messages whose workers died, `deliveries` times in this one's
        case. What has killed a worker, together, is to be fewer each time, until the one that does it is alone."""
        lease.deliveries = deliveries
        limit = self._capacity()
        portion = max(limit >> (2 * deliveries), 1)
        together = sum(1 for each in self._leases.held.values() if each.deliveries and each is not lease)
        if together < portion:
            return True
        lease.deliveries = 0
        return False

    def _bury(self, tag: str, kind: DeadLetterKind, reason: str) -> None:
        self._leases.condemn(tag, kind, reason)
        self._leases.bury(tag)
