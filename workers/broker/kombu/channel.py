"""kombu's Redis channel, taking and acknowledging in batches, under leases.

What goes over the wire stays kombu's: the queue lists, the messages, the fanout topics and `unacked`, so that stock
producers and workers, Flower and `celery inspect` work with it. What differs is how a consumer takes: where kombu sends
BRPOP and records the message in a second step, we send one script that takes many, records them and acknowledges those
that are done (exchange.lua). Queues read without acknowledgement (replies to remote control) are left to kombu.

An empty queue is waited for without polling: Redis tells us when one of its lists is written to (client-side caching,
redirected to a second connection). Where it can't, we look often (docs/adr/0003-waiting-on-empty-queues.md).
"""

from __future__ import annotations

import logging
import time
from binascii import a2b_base64
from collections import deque
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import redis as redis_py
from celery import current_app
from celery.worker.state import active_requests
from kombu.transport import redis as kombu_redis
from redis.exceptions import OutOfMemoryError, RedisError

from tasks.wire import redis_keys

from ...results.endings import endings
from .. import scripts
from ..cancellations import cancellations
from ..commands import TAKE_LIMIT, Command, Commands, Exchanged, Reply
from ..direct import Direct
from ..leases import SETTLE_S, Lease, Leases
from ..link import Link
from ..lookout import Lookout
from ..triage import Triage
from .qos import Message, QoS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .poller import Poller

__all__ = ["OPTIONS", "Channel"]

logger = logging.getLogger("promptmill.broker")

OPTIONS = ("lease_s", "max_deliveries", "record_ttl_s", "loop_patience_s", "other_steps", "other_separator")

_leases: dict[tuple[Any, ...], Leases] = {}


class Channel(kombu_redis.Channel):  # type: ignore[misc]  # kombu publishes no types
    """A channel that takes messages under leases.

    More than 25 methods, because kombu asks one class for all: a third are kombu's own.
    """

    QoS = QoS
    Message = Message

    lease_s = 6.0
    """How long a message stays a worker's without a heartbeat: a dead worker's come back after this."""
    max_deliveries = 5
    """A message whose worker died so often is buried."""
    other_steps: Sequence[int] = ()
    other_separator = ""
    """How producers with settings of their own name their lists (`tasks.wire.redis_keys.queue_lists`)."""
    loop_patience_s = 60.0
    """How much longer than a lease the jobs of a worker whose loop is blocked stay its own."""
    record_ttl_s = redis_keys.RECORD_TTL_S
    """How long a job's record lives from its start on: not less than its result will."""
    socket_timeout = 10.0
    socket_connect_timeout = 5.0

    from_transport_options = (*kombu_redis.Channel.from_transport_options, *OPTIONS)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._no_ack_queues: set[str] = set()
        self._list_names: dict[str, list[str]] = {}
        self._said: list[Command] = []
        self._taken: deque[Lease] = deque()
        self._has_taken = False
        self.direct = Direct(lambda: self.pool)
        self.link = Link(load_scripts=self.direct.load_scripts)
        self.lookout = Lookout()
        super().__init__(*args, **kwargs)
        client = self.connection.client
        broker = (client.hostname, client.port, client.virtual_host, self.global_keyprefix)
        self.leases = _leases.setdefault(broker, Leases())
        """The process's leases at this broker; they outlive the channel."""
        self.leases.channels.add(self)
        self.commands = Commands(
            self.leases,
            prefix=self.global_keyprefix,
            unacked=self.unacked_key,
            index=self.unacked_index_key,
            steps=self.priority_steps,
            separator=self.sep,
            lease_s=self.lease_s,
            record_ttl_s=self.record_ttl_s,
        )
        self.triage = Triage(
            self.leases,
            self.lookout,
            max_deliveries=self.max_deliveries,
            capacity=lambda: int(self.qos.prefetch_count or TAKE_LIMIT),
            decode_body=self.decode_body,
        )
        self.handlers["TAKE"] = self._on_reply
        self.handlers["WAKE"] = self._on_wake

    # -- kombu's interface ---------------------------------------------------------------------------------------------

    @cached_property
    def qos(self) -> Any:
        """As kombu's, which looks twice a message whether there is one."""
        return super().qos

    def basic_consume(self, queue: str, no_ack: bool, *args: Any, **kwargs: Any) -> Any:
        if no_ack:
            self._no_ack_queues.add(queue)
        self.lookout.is_waiting = False
        return super().basic_consume(queue, no_ack, *args, **kwargs)

    def basic_get(self, queue: str, no_ack: bool = False, **kwargs: Any) -> Any:
        """Take one message now, waiting for Redis's reply."""
        if no_ack:
            return super().basic_get(queue, no_ack=True, **kwargs)
        self._has_taken = True
        self.direct.run(self.commands.exchange([queue], self._lists, room=1, then=self._on_taken_alone))
        while (lease := self._next_taken()) is not None:
            payload = self.triage.readable(lease)
            if payload is not None:
                message = self.Message(payload, channel=self)
                self.qos.append(message, message.delivery_tag)
                return message
        return None

    def decode_body(self, body: Any, encoding: str | None = None) -> Any:
        """As kombu's, which takes four calls to it."""
        if encoding is None:  # our client's
            return body
        return a2b_base64(body) if encoding == "base64" else super().decode_body(body, encoding)

    def close(self) -> None:
        """Tell Redis what is still to be said, and hand back what has not started.

        After a lost connection Celery's running jobs go on (celery/worker/consumer/consumer.py, `on_close`), and so do
        their leases; at shutdown no job is running any more.
        """
        self.link.forsake()
        self.leases.channels.discard(self)
        if not self.closed and self._has_taken:
            self._hand_back_unstarted()
            try:
                self.flush()
            except (RedisError, OSError) as exc:
                logger.warning("The broker is gone (%r): what it must know is kept for the next connection", exc)
        super().close()

    @property
    def delivered(self) -> list[str]:
        """Tags of the messages that a consumer of this channel was given and has not acknowledged."""
        return list(self.qos._delivered)

    def _hand_back_unstarted(self) -> None:
        held = [*self.delivered, *(lease.tag for lease in self._taken)]
        self._taken.clear()
        running = _running_tags() | self.leases.answered
        for tag in reversed(held):  # the first taken is put back last, and so is the next to be taken
            if tag not in running:
                self.leases.hand_back(tag)

    def _close_clients(self) -> None:
        super()._close_clients()
        self.link.close()

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        try:
            super()._queue_bind(exchange, routing_key, pattern, queue)
        except OutOfMemoryError:
            table, members = self.keyprefix_queue % exchange, self.keyprefix_binding_permanent % exchange
            member = self.sep.join([routing_key or "", pattern or "", queue or ""])
            # kombu's client puts the prefix before the first key only.
            self._refresh_binding(keys=[table, self.commands.key(members)], args=[member, exchange, 0])

    @cached_property
    def _refresh_binding(self) -> Any:
        return self._create_client().register_script(scripts.BIND.text)

    def _purge(self, queue: str) -> int:
        """Take all messages off the queue, delayed ones too, and end their jobs as cancelled. How many there were."""
        backend = current_app.backend
        if not hasattr(backend, "revoke"):
            return int(super()._purge(queue))
        self.direct.load_scripts()
        purged, replies = 0, list[Any]()
        lists = self._lists(queue)
        while True:
            self.direct.run(self.commands.purge(queue, lists, job_ids=(), on_reply=replies.append))
            ids = [job_id.decode() for job_id in replies.pop()]
            if not ids:
                return purged
            backend.revoke([job_id for job_id in ids if job_id], known_only=False)
            self.direct.run(self.commands.purge(queue, lists, job_ids=ids, on_reply=replies.append))
            purged += replies.pop()

    def _get_client(self) -> Any:
        super()._get_client()
        return partial(_Client, global_keyprefix=self.global_keyprefix)

    @property
    def take_queues(self) -> list[str]:
        """Queues consumed with acknowledgement, in the order in which they are looked at."""
        return [queue for queue in self.active_queues if queue not in self._no_ack_queues]

    def _lists(self, queue: str) -> list[str]:
        lists = self._list_names.get(queue)
        if lists is None:
            names = redis_keys.queue_lists(queue, other_steps=self.other_steps, other_separator=self.other_separator)
            lists = self._list_names[queue] = list(names)
        return lists

    # -- saying things now, and waiting for the reply ------------------------------------------------------------------

    def flush(self) -> None:
        """Say what is to be said now, waiting for Redis's replies. Raises redis's errors; nothing is lost by them."""
        if self.leases.has_news:
            self._meet(self.direct.server())
        while self.leases.has_news:
            self._ask_for_results()
            for command in self.commands.news(now_ms=self.lookout.redis_ms):
                self.direct.run(command)
            if self.leases.acks or self.leases.started_jobs:
                self.direct.run(self.commands.exchange([], self._lists, room=0, then=self._on_taken_alone))

    # -- saying and hearing things when it is their turn; the poller drives it -----------------------------------------

    def say(self, command: Command) -> None:
        """Have the next batch carry this command."""
        self._said.append(command)

    @property
    def has_news(self) -> bool:
        """Whether Redis must be told something, besides what the channel's own queues ask for."""
        return self._has_taken and (self.link.is_waiting or bool(self._said) or self.leases.has_news)

    def send_if_due(self, poller: Poller, queues: Sequence[str]) -> None:
        """Send a batch of commands if there is something to say, or time to look, and none is on its way.

        `queues`: `take_queues`.
        """
        if self.link.is_waiting:
            return
        room = self.lookout.portion(self._room()) if queues else 0
        is_due = self.lookout.is_due
        exchanges = (room > 0 and is_due) or (self.leases.has_acks and (is_due or self.lookout.is_waiting))
        if not (exchanges or self._said or self.leases.has_more_than_acks):
            return
        self._has_taken = True
        self._connect(poller)
        self.leases.doubt_acks(time.monotonic())
        self._ask_for_results()
        room = min(room, self._room())
        said, self._said = self._said, []
        batch = said + self.commands.news(now_ms=self.lookout.redis_ms)
        if exchanges:
            queues = queues if room > 0 else []
            batch.append(self.commands.exchange(queues, self._lists, room=room, then=self._on_exchanged))
        if batch:
            self.link.send(batch)

    def _room(self) -> int:
        leases = self.leases
        return 0 if leases.is_blocked or time.monotonic() < leases.take_from_s else self.qos.room()

    def _connect(self, poller: Poller) -> None:
        if self.link.is_open:
            return
        self.link.open(self.async_pool, ask_for_news=self.lookout.may_be_notified)
        self._meet(self.link.server)
        poller._register(self, self.link.commands, "TAKE")
        if self.link.wake is not None:
            poller._register(self, self.link.wake, "WAKE")
        else:
            self.lookout.may_be_notified = False

    def _meet(self, server: str | None) -> None:
        if self.leases.meet(server, time.monotonic()):
            self.lookout.within(SETTLE_S)

    def _ask_for_results(self) -> None:
        """Where results are in another Redis than the messages, ask that one before acknowledging what is doubted."""
        leases = self.leases
        if not leases.doubted or leases.result_prefix is not None:
            return
        doubted, leases.doubted = leases.doubted, []
        if leases.have_ended is None or not endings.is_attended:
            leases.acks += doubted
            leases.doubt_until_s = 0.0
            return
        ended: list[bool] = []
        have_ended = partial(leases.have_ended, [lease.job_id for lease in doubted])
        endings.put(lambda: ended.extend(have_ended()), partial(self._on_results, doubted, ended))

    def _on_results(self, doubted: list[Lease], ended: list[bool], problem: Exception | None) -> None:
        if problem is not None:
            logger.warning("It is not known whether %d jobs' results are stored (%r)", len(doubted), problem)
            return  # nobody renews their leases: the messages come back, flagged, and whoever takes them asks again
        for lease, has_ended in zip(doubted, ended, strict=True):
            lease.has_result = False  # asked once
            (self.leases.acks if has_ended else self.leases.returns).append(lease)

    def _on_reply(self) -> bool:
        """Read the replies to the batch on its way, then deliver what was taken."""
        if not self.link.read_replies():
            self.lookout.later()
        return self._deliver_taken()

    def _on_exchanged(self, exchanged: Exchanged) -> None:
        self._take_over(exchanged)
        if self.lookout.learn(exchanged) and self.lookout.may_be_notified:
            # Reading the lists makes Redis watch them; one that was filled after our exchange shows here.
            lists = [self.commands.key(name) for queue in self.take_queues for name in self._lists(queue)]
            self.say(Command(("EXISTS", *lists), self._on_exists))

    def _on_taken_alone(self, exchanged: Exchanged) -> None:
        self.lookout.heard(exchanged.now_ms, asked_at=exchanged.asked_at)
        self._take_over(exchanged)

    def _take_over(self, exchanged: Exchanged) -> None:
        for tag, queue, raw in exchanged.taken:
            lease = self.leases.held[tag] = Lease(tag, queue, raw)
            self._taken.append(lease)
        # Celery discards a job that it knows to be revoked, and records its end.
        cancellations.hear_taken(exchanged)

    def _on_exists(self, reply: Reply) -> None:
        if isinstance(reply, Exception):
            raise reply
        if reply:
            self.lookout.now()

    def _on_wake(self) -> None:
        self.link.read_news()
        self.lookout.now()

    def check_reply_is_not_overdue(self) -> None:
        """Raise when Redis has not answered for `socket_timeout` seconds: the link is half-open."""
        timeout_s = self.socket_timeout or Channel.socket_timeout
        if self.link.is_overdue(timeout_s):
            self.link.close()
            raise redis_py.ConnectionError(f"Redis did not answer within {timeout_s} s")

    # -- messages ------------------------------------------------------------------------------------------------------

    def _next_taken(self) -> Lease | None:
        """The next message to deliver. One that an error has left undelivered is delivered later, or handed back."""
        while self._taken:
            lease = self._taken.popleft()
            if lease.tag in self.leases.held:
                return lease
        return None

    def _deliver_taken(self) -> bool:
        delivered = False
        while (lease := self._next_taken()) is not None:
            payload = self.triage.readable(lease)
            if payload is not None:
                self._deliver(payload, lease)
                delivered = True
        return delivered

    def _deliver(self, payload: dict[str, Any], lease: Lease) -> None:
        tag = lease.tag
        try:
            self.connection._deliver(payload, lease.queue)
        except self.connection_errors:
            if tag not in _running_tags():
                self.qos.reject(tag, requeue=True)
            raise
        except Exception as exc:
            # One bad message must not drop those behind it. The exception's own text may quote it.
            logger.exception("A message could not be delivered to its consumer")
            self.leases.condemn(tag, "undeliverable", f"its consumer raised {type(exc).__name__}")
            self.qos.reject(tag)


class _Client(kombu_redis.PrefixedStrictRedis):  # type: ignore[misc]  # kombu publishes no types
    """A full Redis refuses even reads inside MULTI, with which kombu begins a pipeline unless told otherwise."""

    def pipeline(self, transaction: bool = False, shard_hint: Any = None) -> Any:
        return super().pipeline(transaction, shard_hint)


def _running_tags() -> set[str]:
    return {request.message.delivery_tag for request in active_requests}
