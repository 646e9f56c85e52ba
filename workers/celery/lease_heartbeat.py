"""The worker's heartbeat: it keeps the leases of running jobs, and hears of leases lost and jobs cancelled.

A step of Celery's consumer (docs.celeryq.dev, "Extensions and Bootsteps"). It beats on the hub's thread, and only while
the pool's loop is alive too: a worker that can't run its jobs must not keep them from others.
"""

from __future__ import annotations

import logging
import math
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from celery import bootsteps
from celery.worker import state as worker_state

from tasks.wire import redis_keys

from ..broker.cancellations import cancellations
from ..broker.kombu.channel import Channel
from ..broker.leases import Lease, Leases
from ..broker.messages import MARKS
from ..pipeline.offers import offers
from ..redis.clock import redis_clock
from ..results.endings import endings
from ..telemetry.counts import counts
from . import control  # noqa: F401 - registers `revoke`
from .dead_letters import tell_end
from .events import EventDispatcher
from .sweep import Sweeper

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kombu.asynchronous import Hub

    from ..results.names import Names

__all__ = ["Heartbeat"]

logger = logging.getLogger("promptmill.broker")

BEATS_PER_LEASE = 4

RECLAIM_AT_ONCE = 100
"""Lost leases that one script takes back."""

CLOCK_SET_MS = 1_000
REVOKED_LOOK_S = 0.25
"""How soon Redis hears of what remote control revoked."""

REVOKED_LIMIT = 1_000_000
"""Cancelled jobs that a worker remembers, for as long as Redis does. One that it has forgotten all the same is named
again when its message is taken (exchange.lua)."""


class Heartbeat(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery publishes no types
    """Renews the consumer's leases while it has a connection, and while its last jobs are being finished."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        self._seen_ms = 0
        self._strays: dict[str, float] = {}
        self._sweeper: Sweeper | None = None
        self._offered: tuple[frozenset[str], tuple[str, ...]] = (frozenset(), ())
        self._offered_at = -math.inf
        worker_state.revoked.maxlen = REVOKED_LIMIT
        worker_state.revoked.expires = redis_keys.WAITING_TTL_S
        super().__init__(consumer, **kwargs)

    def register_with_event_loop(self, consumer: Any, hub: Hub) -> None:
        """Start beating. Celery calls it for each connection, and cancels the timers of the one before."""
        channel = consumer.task_consumer.channel
        if not isinstance(channel, Channel):
            return
        channel.leases.tell_end = partial(tell_end, consumer.app)
        _know_results(consumer.app.backend, channel.leases)
        was_sweeping, self._sweeper = self._sweeper is not None and self._sweeper.is_sweeping, Sweeper(channel, hub)
        if was_sweeping:
            self._sweeper.want()
        every_s = channel.lease_s / BEATS_PER_LEASE
        self._beat(consumer, channel, every_s)
        endings.attend(hub)
        cancellations.announce = partial(_announce, consumer)
        hub.call_repeatedly(every_s, self._beat, consumer, channel, every_s)
        hub.call_repeatedly(every_s, self._hand_back_strays, consumer, channel, every_s)
        hub.call_repeatedly(REVOKED_LOOK_S, self._publish_revoked, channel)
        hub.call_repeatedly(1.0, channel.connection.cycle.check_replies)

    def _beat(self, consumer: Any, channel: Channel, every_s: float) -> None:
        tags = list(channel.leases.held) if self._loop_may_move(consumer, channel) else []
        on_reply = partial(self._on_beat, consumer, channel, every_s, redis_clock.asked())
        channel.say(channel.commands.heartbeat(tags, seen_ms=self._seen_ms, heartbeat_s=every_s, on_reply=on_reply))
        self._offer(channel)

    def _offer(self, channel: Channel) -> None:
        """Announce what this worker can call, once a lease and when it changes. One that is stopping takes no more."""
        aliases, queues = offered = offers.now(), tuple(channel.take_queues)
        if not aliases or not queues:
            return
        if offered != self._offered or time.monotonic() - self._offered_at >= channel.lease_s:
            self._offered, self._offered_at = offered, time.monotonic()
            channel.say(channel.commands.offer(sorted(aliases), queues))

    def _loop_may_move(self, consumer: Any, channel: Channel) -> bool:
        """Whether this worker's leases are to be renewed: its loop moves, or is waited for still.

        While a task blocks the loop, nothing new is taken, and what has not begun goes back. The neighbours' calls are
        paid for: they are this worker's until `loop_patience_s` is over.
        """
        leases, pool = channel.leases, consumer.pool
        beat_at = getattr(pool, "beat_at", None)
        still_s = time.monotonic() - beat_at if beat_at else 0.0
        was_blocked, leases.is_blocked = leases.is_blocked, still_s >= channel.lease_s / 2
        if not leases.is_blocked:
            return True
        if not was_blocked:
            logger.error(
                "The pool's loop has not moved for %.1f s: it is blocked by %s. Use `await` there, or a plain `def` "
                "task. What has not started goes back to the queue",
                still_s,
                pool.what_blocks(),
            )
        for request in pool.withdraw():
            request.forsake()
            leases.hand_back_unstarted(request.message.delivery_tag)
        if still_s < channel.lease_s + channel.loop_patience_s:
            return True
        logger.error("The pool's loop has not moved for %.0f s; its messages are left to other workers", still_s)
        return False

    def _on_beat(self, consumer: Any, channel: Channel, every_s: float, asked_at: float, reply: Any) -> None:
        _raise_errors(reply)
        now_ms, lost, given_back, set_back_ms, self._seen_ms, cancelled, suspected = reply
        channel.lookout.heard(now_ms, asked_at=asked_at)
        if set_back_ms > CLOCK_SET_MS:
            logger.warning(
                "Redis's clock was set back by about %.0f s; leases were shortened by as much", set_back_ms / 1000
            )
        if given_back:
            counts.add("suspected_payments_total", "worker_lost", given_back)
            logger.warning("%d messages of workers that have died are back in their queues", given_back)
        if lost:
            _reclaim(consumer, channel, [tag.decode() for tag in lost])
        if suspected:
            _flag({tag.decode() for tag in suspected})
        self._cancel(consumer, [job_id.decode() for job_id in cancelled])
        if self._sweeper is not None and (cancelled or set_back_ms > CLOCK_SET_MS):
            self._sweeper.want(clock_was_set=set_back_ms > CLOCK_SET_MS)
        if self._seen_ms < now_ms:
            self._beat(consumer, channel, every_s)  # there are more cancellations than one reply carries

    def _hand_back_strays(self, consumer: Any, channel: Channel, every_s: float) -> None:
        """Whatever is held runs, is on its way to run, or on its way back. What does not is renewed for ever, by us.

        What was a stray at the last look and still is one goes back to its queue.
        """
        now_s = time.monotonic()
        strays = _strays(consumer, channel)
        self._strays = {tag: self._strays.get(tag, now_s) for tag in strays}
        tags = [tag for tag, seen_s in self._strays.items() if now_s - seen_s > every_s / 2]
        if tags and (n := channel.leases.hand_back_strays(tags)):
            logger.error("%d messages were held by this worker without being run; they are back in their queues", n)

    def _cancel(self, consumer: Any, job_ids: list[str]) -> None:
        """Jobs of which remote control has told us itself are left out: it has done what it was asked to."""
        news = [job_id for job_id in job_ids if job_id not in worker_state.revoked]
        if not news:
            return
        cancellations.hear(news)
        for job_id in news:
            request = worker_state.requests.get(job_id)
            if request is not None and request in worker_state.active_requests:
                _terminate(request, consumer.pool)
        if hasattr(consumer.app.backend, "revoke"):
            cancellations.end(consumer.app.backend, news, known_only=True)

    def _publish_revoked(self, channel: Channel) -> None:
        """Have Redis remember what remote control revoked, for workers that start later."""
        news = cancellations.new()
        if news:
            channel.say(channel.commands.cancel(sorted(news), on_reply=partial(self._on_published, news)))

    def _on_published(self, news: set[str], reply: Any) -> None:
        if isinstance(reply, Exception):
            cancellations.not_told(news)
            raise reply
        cancellations.are_marked(news)


def _announce(consumer: Any, ended: list[tuple[str, str]]) -> None:
    """Tell Flower of cancelled jobs whose messages nobody will take: they have no request, whose part it would be."""
    dispatcher = consumer.event_dispatcher
    if not isinstance(dispatcher, EventDispatcher) or not dispatcher.sends("task"):
        return
    for job_id, task in ended:
        if job_id not in worker_state.requests:
            dispatcher.send("task-revoked", uuid=job_id, name=task, terminated=False, signum=None, expired=False)


def _raise_errors(reply: Any) -> None:
    if isinstance(reply, Exception):
        raise reply


def _terminate(request: Any, pool: Any) -> None:
    try:
        request.terminate(pool, signal="TERM")
    except Exception:
        logger.exception("The end of the cancelled job %s could not be recorded yet", request.id)


def _strays(consumer: Any, channel: Channel) -> set[str]:
    """Tags of messages that this process holds and nobody here is going to run."""
    leases = channel.leases
    strays = set(leases.held) - leases.ending - leases.answered
    for other in tuple(leases.channels):
        if other is not channel:
            strays.difference_update(other.delivered)  # a consumer of the user's own acknowledges when it likes
    if strays:
        strays.difference_update(request.message.delivery_tag for request in _requests_on_their_way(consumer))
    consumes = consumer.task_consumer.consuming_from
    delivered = set(channel.delivered)
    return {tag for tag in strays if tag not in delivered or consumes(leases.held[tag].queue)}


def _requests_on_their_way(consumer: Any) -> Iterator[Any]:
    yield from tuple(worker_state.active_requests)
    yield from tuple(worker_state.scheduled_requests)
    for bucket in consumer.task_buckets.values():
        if bucket is not None:
            yield from (request for request, _ in tuple(bucket.contents))
    waiting = getattr(consumer.pool, "requests_to_start", None)
    yield from tuple(worker_state.reserved_requests) if waiting is None else waiting()


def _know_results(backend: Any, leases: Leases) -> None:
    """Let the broker see results, and the backend leases. Backends that are not ours know nothing of either."""
    names: Names | None = getattr(backend, "names", None)
    leases.result_prefix = None if names is None else names.for_broker
    leases.have_ended = getattr(backend, "have_ended", None)
    if leases.have_ended is not None:
        backend.may_be_reclaimed = leases.held.__contains__


def _reclaim(consumer: Any, channel: Channel, tags: list[str]) -> None:
    """Keep the jobs whose leases Redis does not know. Their calls are paid for: nobody is to make them again."""
    lost = [channel.leases.held[tag] for tag in tags if tag in channel.leases.held]
    for start in range(0, len(lost), RECLAIM_AT_ONCE):
        part = lost[start : start + RECLAIM_AT_ONCE]
        channel.say(channel.commands.reclaim(part, on_reply=partial(_on_reclaimed, consumer, channel, part)))


def _on_reclaimed(consumer: Any, channel: Channel, lost: list[Lease], reply: Any) -> None:
    _raise_errors(reply)  # said again with the next beat, which names the same leases
    kept = [lease for lease, is_kept in zip(lost, reply, strict=True) if is_kept]
    if kept:
        logger.warning("%d leases were lost and taken back: Redis has lost its last words, or stood still", len(kept))
    held = channel.leases.held
    channel.leases.started_jobs |= {
        lease.tag: (lease.job_id, lease.has_record) for lease in kept if lease.started and lease.tag in held
    }
    _abandon(consumer, channel, [lease.tag for lease, is_kept in zip(lost, reply, strict=True) if not is_kept])


def _flag(tags: set[str]) -> None:
    """Jobs under way of which there has been a call before, by a worker that has lost its lease since."""
    for request in tuple(worker_state.requests.values()):
        if request.message.delivery_tag in tags:
            request.message.properties.setdefault(MARKS, {})["suspected_double_payment"] = True


def _abandon(consumer: Any, channel: Channel, tags: list[str]) -> None:
    """End jobs whose messages other workers have by now. What they still store is refused (store.lua)."""
    lost = {lease.tag for lease in channel.leases.lose(tags)}
    if not lost:
        return
    logger.error("%d leases were lost: this worker, or its link to Redis, stood still for too long", len(lost))
    for request in tuple(worker_state.reserved_requests):
        if request.message.delivery_tag in lost:
            if request in worker_state.active_requests:
                counts.add("suspected_payments_total", "redis_lost")
                request.cancel(consumer.pool, emit_retry=False)
            else:
                request.forsake()
