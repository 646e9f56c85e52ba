"""kombu's Redis channel, taking and acknowledging in batches, under leases.

What goes over the wire stays kombu's: the queue lists, the messages, the fanout topics and `unacked`, so that stock
producers and workers, Flower and `celery inspect` work with it. What differs is how a consumer takes: where kombu sends
BRPOP and records the message in a second step, we send one script that takes many, records them and acknowledges those
that are done (exchange.lua). Queues read without acknowledgement (replies to remote control) are left to kombu.

An empty queue is waited for without polling: Redis tells us when one of its lists is written to (client-side caching,
redirected to a second connection). Where it can't, we look `POLL_S` often.
"""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import orjson
import redis as redis_py
from celery.worker.state import active_requests
from kombu.asynchronous import get_event_loop
from kombu.transport import redis as kombu_redis
from kombu.transport import virtual
from kombu.utils.eventio import ERR, READ
from kombu.utils.json import loads as kombu_loads
from redis.exceptions import NoScriptError, RedisError, ResponseError

from tasks import keys

from . import scripts
from .leases import Grave, Lease, Leases

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Channel", "Poller", "SentinelChannel"]

logger = logging.getLogger("promptmill.broker")

TAKE_LIMIT = 500
TAKE_BYTES = 4 * 1024 * 1024
"""One exchange takes at most so many messages, and stops after so many bytes."""

IDLE_LOOK_S = 1.0
"""An idle worker looks so often without being told: for messages that are due, and in case a notification was lost."""

POLL_S = 0.2
"""How often an idle worker looks where Redis can't notify it: five commands a second, the most we allow ourselves."""

BUSY_ITEMS = 8
LINGER_S = 0.005
"""After an exchange of at least so many messages, the next one waits so long for company."""

INVALIDATIONS = "__redis__:invalidate"

Reply = Any
Command = tuple[tuple[Any, ...], "Callable[[Reply], None]"]

_leases: dict[tuple[Any, ...], Leases] = {}


class _Line:
    """A connection of ours in kombu's poller, which knows connections by the clients that hold them."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection


class QoS(kombu_redis.QoS):  # type: ignore[misc]  # kombu publishes no types
    """Counts what the consumer holds, and passes acknowledgements on to the leases."""

    def can_consume(self) -> bool:
        return self.room() > 0

    def room(self) -> int:
        """How many more messages may be taken now."""
        limit = self.prefetch_count or TAKE_LIMIT
        return int(limit) - len(self.channel.leases.held)

    def append(self, message: Any, delivery_tag: str) -> None:
        virtual.QoS.append(self, message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        self.channel.leases.ack(delivery_tag)
        virtual.QoS.ack(self, delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        if requeue:
            self.channel.leases.hand_back(delivery_tag)
        else:
            self.channel.leases.bury(delivery_tag)
        virtual.QoS.ack(self, delivery_tag)

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """kombu calls it when the channel closes. Leases outlive it; see `Channel.close`."""
        self._on_collect.cancel()

    def restore_unacked(self, client: Any = None) -> None:
        for tag in tuple(self._delivered):
            self.channel.leases.hand_back(tag)
        self._delivered.clear()


class Message(virtual.Message):  # type: ignore[misc]  # kombu publishes no types
    """A message whose body can't be read is buried when Celery drops it."""

    def _decode(self) -> Any:
        try:
            return super()._decode()
        except Exception as exc:
            self.channel.leases.condemn(self.delivery_tag, "unreadable", f"its body can't be decoded: {exc!r}"[:500])
            raise


class Channel(kombu_redis.Channel):  # type: ignore[misc]  # kombu publishes no types
    """A channel that takes messages under leases."""

    QoS = QoS
    Message = Message

    lease_s = 6.0
    """How long a message stays a worker's without a heartbeat: a dead worker's come back after this."""
    max_deliveries = 5
    """A message whose worker died so often is buried."""
    socket_timeout = 10.0
    socket_connect_timeout = 5.0

    from_transport_options = (*kombu_redis.Channel.from_transport_options, "lease_s", "max_deliveries")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._no_ack_queues: set[str] = set()
        self._expected: deque[Callable[[Reply], None]] = deque()
        self._commands: list[Command] = []
        self._taken: list[tuple[str, str, bytes]] = []
        self._sent_at = 0.0
        self._look_at = 0.0
        self._waiting = False
        self._take_line: _Line | None = None
        self._wake_line: _Line | None = None
        self._may_be_notified = True
        self.redis_ms = 0
        """Redis's clock at the last exchange."""
        self._has_taken = False
        super().__init__(*args, **kwargs)
        client = self.connection.client
        broker = (client.hostname, client.port, client.virtual_host, self.global_keyprefix)
        self.leases = _leases.setdefault(broker, Leases())
        """The process's leases at this broker; they outlive the channel."""
        self.handlers["TAKE"] = self._on_reply
        self.handlers["WAKE"] = self._on_wake

    # -- kombu's interface ---------------------------------------------------------------------------------------------

    def basic_consume(self, queue: str, no_ack: bool, *args: Any, **kwargs: Any) -> Any:
        if no_ack:
            self._no_ack_queues.add(queue)
        self._waiting = False
        return super().basic_consume(queue, no_ack, *args, **kwargs)

    def basic_get(self, queue: str, no_ack: bool = False, **kwargs: Any) -> Any:
        """Take one message now, waiting for Redis's reply."""
        if no_ack:
            return super().basic_get(queue, no_ack=True, **kwargs)
        self._has_taken = True
        self._run_now(*self._exchange([queue], room=1))
        for tag, name, raw in self._take_in():
            message = self._readable(tag, name, raw)
            if message is not None:
                message = self.Message(message, channel=self)
                self.qos.append(message, message.delivery_tag)
                return message
        return None

    def close(self) -> None:
        """Tell Redis what is still to be said, and hand back what has not started.

        After a lost connection Celery's running jobs go on (celery/worker/consumer/consumer.py, `on_close`), and so do
        their leases; at shutdown no job is running any more.
        """
        if not self.closed and self._has_taken:
            self._hand_back_unstarted()
            try:
                self.flush()
            except (RedisError, OSError) as exc:
                logger.warning("The broker is gone (%r): what it must know is kept for the next connection", exc)
        super().close()

    def _hand_back_unstarted(self) -> None:
        running = {request.message.delivery_tag for request in active_requests}
        for tag in tuple(self.qos._delivered):
            if tag not in running:
                self.leases.hand_back(tag)

    @property
    def has_news(self) -> bool:
        """Whether Redis must be told something, besides what the channel's own queues ask for."""
        return self._has_taken and (bool(self._expected or self._commands) or self.leases.has_news)

    def flush(self) -> None:
        """Say what is to be said now, waiting for Redis's replies. Raises redis's errors; nothing is lost by them."""
        for command in self._news():
            self._run_now(*command)
        if self.leases.acks:
            self._run_now(*self._exchange([], room=0))

    def _run_now(self, args: tuple[Any, ...], on_reply: Callable[[Reply], None]) -> None:
        client: Any = redis_py.Redis(connection_pool=self.pool)
        try:
            reply = client.execute_command(*args)
        except NoScriptError:
            self._load_scripts(client)
            reply = client.execute_command(*args)
        on_reply(reply)

    @staticmethod
    def _load_scripts(client: Any) -> None:
        for script in (scripts.EXCHANGE, scripts.HEARTBEAT, scripts.HAND_BACK, scripts.DELAY, scripts.BURY):
            client.execute_command("SCRIPT", "LOAD", script.text)

    # -- commands ------------------------------------------------------------------------------------------------------

    def _key(self, name: str) -> str:
        return f"{self.global_keyprefix}{name}"

    @property
    def _lease_keys(self) -> tuple[str, str, str]:
        return self._key(self.unacked_key), self._key(self.unacked_index_key), self._key(keys.LEASES)

    @property
    def _steps(self) -> str:
        return ",".join(map(str, self.priority_steps))

    @property
    def take_queues(self) -> list[str]:
        """Queues consumed with acknowledgement, in the order in which they are looked at."""
        return [queue for queue in self.active_queues if queue not in self._no_ack_queues]

    def _lists(self, queue: str) -> list[str]:
        return [self._key(self._q_for_pri(queue, step)) for step in self.priority_steps]

    def _exchange(self, queues: list[str], *, room: int) -> Command:
        acks, self.leases.acks = self.leases.acks[:1000], self.leases.acks[1000:]
        started, self.leases.started_jobs = self.leases.started_jobs[:1000], self.leases.started_jobs[1000:]
        queue_keys = [key for queue in queues for key in (self._key(keys.delayed(queue)), *self._lists(queue))]
        args = (
            *_evalsha(scripts.EXCHANGE, [*self._lease_keys, self._key(keys.FENCE), *queue_keys]),
            max(min(room, TAKE_LIMIT), 0),
            TAKE_BYTES,
            int(self.lease_s * 1000),
            len(self.priority_steps),
            self._steps,
            self.sep,
            len(queues),
            len(started),
            *map(json.dumps, queues),
            *(self._key(keys.job(job_id)) for job_id in started),
            *acks,
        )
        return args, partial(self._on_exchange, tuple(queues), room, acks)

    def _on_exchange(self, queues: tuple[str, ...], room: int, acks: list[str], reply: Reply) -> None:
        if isinstance(reply, Exception):
            self.leases.acks[:0] = acks
            raise reply
        self.redis_ms, next_due_ms, *taken = reply
        for i in range(0, len(taken), 3):
            self._taken.append((taken[i].decode(), queues[taken[i + 1] - 1], taken[i + 2]))
        n = len(taken) // 3
        is_empty = n < min(room, TAKE_LIMIT) and sum(map(len, taken[2::3])) < TAKE_BYTES
        if n:
            self._waiting = False
        if room > 0 and is_empty:
            if not self._waiting or time.monotonic() >= self._look_at:
                self._wait(next_due_ms)
        else:
            self._look_in(LINGER_S if n + len(acks) >= BUSY_ITEMS else 0.0)

    def _wait(self, next_due_ms: int) -> None:
        """The queues are empty: be told of the next message, and look again when one is due."""
        look_in_s = IDLE_LOOK_S if self._may_be_notified else POLL_S
        if next_due_ms >= 0:
            look_in_s = min(look_in_s, max(next_due_ms - self.redis_ms, 0) / 1000 + 0.001)
        self._look_in(look_in_s)
        self._waiting = True
        if self._may_be_notified:
            lists = [key for queue in self.take_queues for key in self._lists(queue)]
            self._commands.append((("EXISTS", *lists), self._on_exists))

    def _on_exists(self, reply: Reply) -> None:
        # Reading the lists makes Redis watch them; one that was filled after our exchange shows here.
        if isinstance(reply, Exception):
            raise reply
        if reply:
            self._look_now()

    def _look_now(self) -> None:
        self._waiting = False
        self._look_at = 0.0

    def _look_in(self, delay_s: float) -> None:
        self._look_at = time.monotonic() + delay_s
        hub = get_event_loop()
        if hub is not None and delay_s:
            # The hub's poll would sleep through it; a timer ends the poll, and the next tick looks.
            hub.call_later(delay_s, _nothing)

    def _news(self) -> list[Command]:
        """Everything but acknowledgements, which travel with the exchange."""
        leases = self.leases
        commands: list[Command] = []
        if leases.returns:
            returns, leases.returns = leases.returns, []
            pairs = [value for lease in returns for value in (lease.tag, int(lease.started))]
            args = (
                *_evalsha(scripts.HAND_BACK, self._lease_keys),
                self._steps,
                self.sep,
                self.global_keyprefix,
                *pairs,
            )
            commands.append((args, partial(_or_again, leases.returns, returns)))
        delays, leases.delays = leases.delays, []
        for lease, due_ms in delays:
            args = (
                *_evalsha(scripts.DELAY, [*self._lease_keys, self._key(keys.delayed(lease.queue))]),
                lease.tag,
                due_ms,
            )
            commands.append((args, partial(_or_again, leases.delays, [(lease, due_ms)])))
            self._look_in(min(max(due_ms - self.redis_ms, 1) / 1000, max(self._look_at - time.monotonic(), 0.001)))
        graves, leases.graves = leases.graves, []
        for grave in graves:
            dead_keys = [*self._lease_keys, self._key(keys.DEAD), self._key(keys.DEAD_COUNTS)]
            letter = _dead_letter(grave, self.redis_ms)
            args = (*_evalsha(scripts.BURY, dead_keys), grave.lease.tag, letter, grave.kind, keys.DEAD_LIMIT)
            commands.append((args, partial(self._on_buried, grave)))
        return commands

    def _on_buried(self, grave: Grave, reply: Reply) -> None:
        _or_again(self.leases.graves, [grave], reply)
        if reply:
            logger.error("A message was buried (%s): %s. See it with `promptmill dead list`.", grave.kind, grave.reason)
            self.leases.on_buried(grave)

    def heartbeat(self, tags: list[str], seen_ms: int, heartbeat_s: float, on_reply: Callable[[Reply], None]) -> None:
        """Have the next batch of commands renew leases (heartbeat.lua)."""
        args = (
            *_evalsha(scripts.HEARTBEAT, [*self._lease_keys, self._key(keys.REAPER), self._key(keys.CANCELLED)]),
            int(self.lease_s * 1000),
            int(heartbeat_s * 1000),
            self._steps,
            self.sep,
            self.global_keyprefix,
            keys.DELAYED_PREFIX,
            seen_ms,
            keys.RECORD_TTL_S * 1000,
            *tags,
        )
        self._commands.append((args, on_reply))

    def command(self, args: tuple[Any, ...], on_reply: Callable[[Reply], None]) -> None:
        """Have the next batch of commands carry one more."""
        self._commands.append((args, on_reply))

    # -- asynchronous input and output, driven by the poller -----------------------------------------------------------

    def send_if_due(self, poller: Poller) -> None:
        """Send a batch of commands if there is something to say, or time to look, and none is on its way."""
        if self._expected:
            return
        queues = self.take_queues
        now = time.monotonic()
        room = self.qos.room() if queues else 0
        is_due = now >= self._look_at
        exchanges = (room > 0 and is_due) or (self.leases.acks and (is_due or self._waiting))
        if not (exchanges or self._commands or self.leases.has_more_than_acks):
            return
        self._has_taken = True
        self._connect(poller)
        commands, self._commands = self._commands, []
        commands += self._news()
        if exchanges:
            commands.append(self._exchange(queues if room > 0 else [], room=room))
        connection = self._take_connection
        connection.send_packed_command(connection.pack_commands([args for args, _ in commands]))
        self._expected.extend(on_reply for _, on_reply in commands)
        self._sent_at = now

    @property
    def _take_connection(self) -> Any:
        return self._take_line.connection if self._take_line is not None else None

    def _connect(self, poller: Poller) -> None:
        if self._take_connection is not None and self._take_connection._sock is not None:
            return
        self._expected.clear()
        # Not kombu's `client`: on its connection a BRPOP for a reply queue may be waiting.
        self._take_line = _Line(self.async_pool.get_connection())
        self._load_scripts(redis_py.Redis(connection_pool=self.pool))
        if self._may_be_notified:
            self._ask_to_be_notified(poller)
        poller._register(self, self._take_line, "TAKE")

    def _ask_to_be_notified(self, poller: Poller) -> None:
        pool = self.async_pool
        # In RESP2 an invalidation is a message like any other; in RESP3 redis-py handles it out of our sight.
        wake = pool.connection_class(**{**pool.connection_kwargs, "protocol": 2})
        try:
            client_id = _ask(wake, "CLIENT", "ID")
            _ask(wake, "SUBSCRIBE", INVALIDATIONS)
            _ask(self._take_connection, "CLIENT", "TRACKING", "ON", "REDIRECT", client_id, "NOLOOP")
        except ResponseError as exc:
            logger.warning("Redis can't tell us of new messages (%s); looking every %.1f s instead", exc, POLL_S)
            self._may_be_notified = False
            wake.disconnect()
            return
        self._wake_line = _Line(wake)
        poller._register(self, self._wake_line, "WAKE")

    def _close_clients(self) -> None:
        super()._close_clients()
        for line in (self._take_line, self._wake_line):
            if line is not None:
                connection, line.connection = line.connection, None
                connection.disconnect()
        self._take_line = self._wake_line = None

    def _on_reply(self) -> bool:
        """Read the replies to the batch on its way, then deliver what was taken."""
        connection = self._take_connection
        try:
            while self._expected:
                try:
                    reply = connection.read_response()
                except ResponseError as exc:
                    reply = exc
                self._handle(self._expected.popleft(), reply)
        except self.connection_errors:
            connection.disconnect()
            raise
        return self._deliver_taken()

    def _handle(self, on_reply: Callable[[Reply], None], reply: Reply) -> None:
        try:
            on_reply(reply)
        except NoScriptError:
            # SCRIPT FLUSH, or a replica took over. What the command carried is said again.
            self._load_scripts(redis_py.Redis(connection_pool=self.pool))
            self._look_now()
        except ResponseError as exc:
            logger.error("Redis refused a command of the broker: %s", exc)  # noqa: TRY400 - the text says it all
            self._look_in(IDLE_LOOK_S)

    def _on_wake(self) -> None:
        connection = cast("_Line", self._wake_line).connection
        connection.read_response()
        while connection.can_read(timeout=0):
            connection.read_response()
        self._look_now()

    def check_reply_is_not_overdue(self) -> None:
        """Raise when Redis has not answered for `socket_timeout` seconds: the link is half-open."""
        if self._expected and time.monotonic() - self._sent_at > (self.socket_timeout or 10.0):
            self._take_connection.disconnect()
            raise redis_py.ConnectionError(f"Redis did not answer within {self.socket_timeout} s")

    # -- messages ------------------------------------------------------------------------------------------------------

    def _deliver_taken(self) -> bool:
        delivered = False
        for tag, queue, raw in self._take_in():
            payload = self._readable(tag, queue, raw)
            if payload is None:
                continue
            try:
                self.connection._deliver(payload, queue)
            except Exception as exc:
                # One bad message must not drop those behind it.
                logger.exception("A message could not be delivered to its consumer")
                self.leases.condemn(tag, "undeliverable", repr(exc)[:500])
                self.leases.bury(tag)
            delivered = True
        return delivered

    def _take_in(self) -> list[tuple[str, str, bytes]]:
        taken, self._taken = self._taken, []
        for tag, queue, raw in taken:
            self.leases.held[tag] = Lease(tag, queue, raw)
        return taken

    def _readable(self, tag: str, queue: str, raw: bytes) -> dict[str, Any] | None:
        """The message as kombu wants it; None where it was buried, or is kept until it is due."""
        try:
            payload = _parse(raw)
        except ValueError as exc:
            self.leases.condemn(tag, "garbage", f"it is not a Celery message: {exc}")
            self.leases.bury(tag)
            return None
        history = payload.pop("promptmill", None) or {}
        headers, properties = payload["headers"], payload["properties"]
        deliveries = history.get("deliveries", 0)
        if deliveries >= self.max_deliveries:
            self.leases.condemn(tag, "poison", f"its worker died {deliveries} times while it had this message")
            self.leases.bury(tag)
            return None
        due_ms = _due_ms(headers.get("eta"))
        if due_ms is not None and due_ms > self.redis_ms:
            self.leases.delay(tag, due_ms)
            return None
        # It is due by Redis's clock; left in, Celery would ask this machine's clock again.
        headers["eta"] = None
        if history:
            headers["redelivered"] = True
            headers["suspected_double_payment"] = bool(history.get("suspected"))
            properties.setdefault("delivery_info", {})["redelivered"] = True
        properties["delivery_tag"] = tag
        return payload


def _nothing() -> None:
    pass


def _ask(connection: Any, *command: Any) -> Any:
    connection.send_command(*command)
    return connection.read_response()


def _evalsha(script: scripts.Script, ks: Any) -> tuple[Any, ...]:
    return ("EVALSHA", script.sha, len(ks), *ks)


def _or_again(queue: list[Any], items: list[Any], reply: Reply) -> None:
    """Keep what a refused command carried."""
    if isinstance(reply, Exception):
        queue[:0] = items
        raise reply


def _parse(raw: bytes) -> dict[str, Any]:
    # Headers may carry what kombu encodes with `__type__` (dates); that needs kombu's decoder, which is slower.
    payload = kombu_loads(raw.decode()) if b'"__type__"' in raw else orjson.loads(raw)
    if not isinstance(payload, dict):
        raise ValueError("it is JSON, but not an object")  # noqa: TRY004 - callers ask "readable or not?"
    for name in ("headers", "properties"):
        if not isinstance(payload.get(name), dict):
            raise ValueError(f"it has no {name}")  # noqa: TRY004 - as above
    if not isinstance(payload.get("body"), str):
        raise ValueError("it has no body")  # noqa: TRY004 - as above
    return payload


def _due_ms(eta: Any) -> int | None:
    """When a message with this `eta` header is due (ms since the epoch). None: now, or for Celery to complain about."""
    if isinstance(eta, datetime):
        when = eta
    elif isinstance(eta, str):
        try:
            when = datetime.fromisoformat(eta)
        except ValueError:
            return None
    else:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return int(when.timestamp() * 1000)


def _dead_letter(grave: Grave, at_ms: int) -> str:
    raw = grave.lease.raw.decode("utf-8", "backslashreplace")
    try:
        headers = orjson.loads(grave.lease.raw)["headers"]
        job_id, task = headers.get("id"), headers.get("task")
    except (ValueError, KeyError, TypeError, AttributeError):
        job_id = task = None
    letter = {
        "id": job_id or grave.lease.tag,
        "task": task,
        "queue": grave.lease.queue,
        "kind": grave.kind,
        "reason": grave.reason,
        "at": at_ms / 1000,
        "message": raw,
    }
    return json.dumps(letter)


class SentinelChannel(Channel, kombu_redis.SentinelChannel):  # type: ignore[misc]  # kombu publishes no types
    """The same, with the master found through Sentinel."""

    from_transport_options = (*kombu_redis.SentinelChannel.from_transport_options, "lease_s", "max_deliveries")


class Poller(kombu_redis.MultiChannelPoller):  # type: ignore[misc]  # kombu publishes no types
    """kombu's poller, which also serves connections that take under leases."""

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
