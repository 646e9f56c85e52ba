"""What a channel says to Redis: each script with its keys and arguments, and what becomes of the reply. No I/O.

A command's `on_reply` gets Redis's reply, or an exception: then nobody knows whether the command was carried out. All
may be said twice, because a fence is never given twice: what the first has done, the second leaves alone.
"""

from __future__ import annotations

import logging
import time
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import orjson

from tasks.redis.script import Script
from tasks.wire import redis_keys

from ..redis.clock import redis_clock
from ..streams import asked
from ..telemetry.counts import counts
from ..telemetry.notices import Notice, notices
from . import scripts
from .lanes import FURTHEST_MS
from .leases import Grave, Lease, Leases
from .messages import dead_letter

__all__ = ["TAKE_BYTES", "TAKE_LIMIT", "Command", "Commands", "Exchanged", "Reply"]

TAKE_LIMIT = 500
TAKE_BYTES = 4 * 1024 * 1024
"""One exchange takes at most so many messages, and stops after so many bytes."""

ACKS = 1000
"""One exchange carries at most so many acknowledgements."""

RECLAIM_LOOKS = 5_000
RECLAIM_BYTES = 32 * 1024 * 1024
"""How far a worker looks for a message whose lease was lost: in its queue from the front, and among other leases."""
SWEEPER_LOST_MS = 5_000
SWEEP_MESSAGES = 500
SWEEP_BYTES = 2 * 1024 * 1024
"""One piece of a sweep looks at so many messages, or bytes: some 5 ms of Redis's time."""

OFFER_LEASES = 3
"""An offer holds for so many leases, and is renewed with each."""

Reply = Any

logger = logging.getLogger("promptmill.broker")


@dataclass(frozen=True, slots=True)
class Command:
    """A command's words, and who gets the reply."""

    args: tuple[Any, ...]
    on_reply: Callable[[Reply], None]


@dataclass(frozen=True, slots=True)
class Exchanged:
    """What came of an exchange. `taken`: tag, queue and text of each message. Times by Redis's clock, in ms."""

    now_ms: int
    next_due_ms: int | None
    taken: list[tuple[str, str, bytes]]
    cancelled: list[str]
    """Ids of those among the jobs that are cancelled."""
    acked: int
    room: int
    asked_at: float
    """When the command was made, by the process's `RedisClock`."""

    @property
    def emptied(self) -> bool:
        """Whether the queues had no more."""
        return len(self.taken) < self.room and sum(len(raw) for _, _, raw in self.taken) < TAKE_BYTES


@dataclass(frozen=True, slots=True)
class _Load:
    """What an exchange carries to Redis: tags to acknowledge, and jobs that have started."""

    acks: list[Lease]
    started: dict[str, tuple[str, bool]]

    @classmethod
    def of(cls, leases: Leases) -> _Load:
        acks, leases.acks = leases.acks[:ACKS], leases.acks[ACKS:]
        return cls(acks, {tag: leases.started_jobs.pop(tag) for tag in list(leases.started_jobs)[:ACKS]})

    def put_back(self, leases: Leases) -> None:
        leases.acks[:0] = self.acks
        leases.started_jobs |= {tag: job for tag, job in self.started.items() if tag in leases.held}


class Commands:
    """Knows the keys of one broker. `prefix` is kombu's `global_keyprefix`, which stands before all of them."""

    def __init__(
        self,
        leases: Leases,
        *,
        prefix: str,
        unacked: str,
        index: str,
        steps: Sequence[int],
        separator: str,
        lease_s: float,
        record_ttl_s: int = redis_keys.RECORD_TTL_S,
    ) -> None:
        self._leases = leases
        self._prefix = prefix
        self._lease_keys = (prefix + unacked, prefix + index, prefix + redis_keys.LEASES)
        self._names = {
            "lists": {"steps": list(steps), "separator": separator},
            "prefix": prefix,
            "delayed": prefix + redis_keys.DELAYED_PREFIX,
            "records": prefix + redis_keys.job(""),
        }
        self._lease_ms = int(lease_s * 1000)
        self._record_ttl_s = record_ttl_s

    def exchange(
        self, queues: Sequence[str], lists: Callable[[str], list[str]], *, room: int, then: Callable[[Exchanged], None]
    ) -> Command:
        """Acknowledge what is done and take up to `room` messages. `lists` names a queue's lists, most urgent first."""
        room = max(min(room, TAKE_LIMIT), 0)
        load = _Load.of(self._leases)
        queue_keys = [[self.key(redis_keys.delayed(queue)), *map(self.key, lists(queue))] for queue in queues]
        args = (
            *_evalsha(
                scripts.EXCHANGE,
                *self._lease_keys,
                self.key(redis_keys.FENCE),
                self.key(redis_keys.CANCELLED),
                self.key(redis_keys.SUSPECTED),
                self.key(redis_keys.FORGOTTEN),
                self.key(redis_keys.STREAMS_ASKED),
                *chain.from_iterable(queue_keys),
            ),
            self._ask(
                messages=room,
                bytes=TAKE_BYTES,
                lease_ms=self._lease_ms,
                queues=queues,
                lists_each=len(queue_keys[0]) - 1 if queue_keys else 0,
                started=len(load.started),
                record_ttl_s=self._record_ttl_s,
            ),
            *chain.from_iterable(
                (self.key(redis_keys.job(job)), int(has_record), tag) for tag, (job, has_record) in load.started.items()
            ),
            *[lease.tag for lease in load.acks],
        )
        asked_at = redis_clock.asked()
        return Command(
            args, lambda reply: self._on_exchange(load, queues, reply, room=room, asked_at=asked_at, then=then)
        )

    def _on_exchange(
        self,
        load: _Load,
        queues: Sequence[str],
        reply: Reply,
        *,
        room: int,
        asked_at: float,
        then: Callable[[Exchanged], None],
    ) -> None:
        if isinstance(reply, Exception):
            load.put_back(self._leases)
            raise reply
        if load.acks:
            self._leases.note_acknowledged(load.acks, time.monotonic())
        now_ms, due_ms, cancelled, streams, *rest = reply
        taken = [(rest[i].decode(), queues[rest[i + 1] - 1], rest[i + 2]) for i in range(0, len(rest), 3)]
        ids = [job_id.decode() for job_id in cancelled]
        if streams:
            asked.hear(job_id.decode() for job_id in streams)
        due_at_ms = due_ms if due_ms >= 0 else None
        then(Exchanged(now_ms, due_at_ms, taken, ids, acked=len(load.acks), room=room, asked_at=asked_at))

    def heartbeat(
        self, tags: Sequence[str], *, seen_ms: int, heartbeat_s: float, on_reply: Callable[[Reply], None]
    ) -> Command:
        """Renew these leases, end those of the dead, and hear of cancellations after `seen_ms`."""
        args = (
            *_evalsha(
                scripts.HEARTBEAT,
                *self._lease_keys,
                self.key(redis_keys.REAPER),
                self.key(redis_keys.CANCELLED),
                self.key(redis_keys.SUSPECTED),
                self.key(redis_keys.FORGOTTEN),
            ),
            self._ask(lease_ms=self._lease_ms, heartbeat_ms=int(heartbeat_s * 1000), seen_ms=seen_ms),
            *tags,
        )
        return Command(args, on_reply)

    def cancel(self, job_ids: Sequence[str], *, on_reply: Callable[[Reply], None]) -> Command:
        """Have Redis remember that these jobs are cancelled."""
        return Command((*_evalsha(scripts.CANCEL, self.key(redis_keys.CANCELLED)), *job_ids), on_reply)

    def offer(self, aliases: Sequence[str], queues: Sequence[str]) -> Command:
        """Tell the other workers of these queues that this one can call these models."""
        offer_keys = [self.key(redis_keys.offers(queue)) for queue in queues]
        args = (*_evalsha(scripts.OFFER, *offer_keys), OFFER_LEASES * self._lease_ms, *aliases)
        return Command(args, _raise_errors)

    def sweep(
        self,
        queue: str,
        *,
        me: str,
        position: int,
        clock_was_set: bool,
        wanted_ms: int,
        is_last: bool,
        on_reply: Callable[[Reply], None],
    ) -> Command:
        """Go over a piece of the queue's delayed messages (sweep.lua). `me` tells this worker from the others."""
        sweep_keys = (redis_keys.SWEEP, redis_keys.CANCELLED, redis_keys.delayed(queue), queue)
        args = (
            *_evalsha(scripts.SWEEP, *map(self.key, sweep_keys)),
            self._ask(
                me=me,
                silent_ms=SWEEPER_LOST_MS,
                position=position,
                messages=SWEEP_MESSAGES,
                bytes=SWEEP_BYTES,
                furthest_ms=FURTHEST_MS,
                clock_was_set=clock_was_set,
                wanted_ms=wanted_ms,
                is_last=is_last,
            ),
        )
        return Command(args, on_reply)

    def purge(
        self, queue: str, lists: Sequence[str], *, job_ids: Sequence[str], on_reply: Callable[[Reply], None]
    ) -> Command:
        """Mark the jobs of the queue's next messages as cancelled; with their ids, take the messages off."""
        purge_keys = (redis_keys.CANCELLED, redis_keys.delayed(queue), *lists)
        args = (
            *_evalsha(scripts.PURGE, *map(self.key, purge_keys)),
            self._ask(messages=TAKE_LIMIT, bytes=TAKE_BYTES),
            *job_ids,
        )
        return Command(args, on_reply)

    def news(self, *, now_ms: int) -> list[Command]:
        """Everything that Redis must be told but acknowledgements, which travel with the exchange."""
        leases = self._leases
        commands: list[Command] = []
        if leases.returns:
            returns, leases.returns = leases.returns, []
            commands.append(self._hand_back(returns))
        delays, leases.delays = leases.delays, []
        commands += [self._delay(lease, due_ms, now_ms) for lease, due_ms in delays]
        graves, leases.graves = leases.graves, []
        commands += [self._bury(grave, now_ms) for grave in graves if leases.tell_end(grave)]
        if leases.doubted and leases.result_prefix is not None:
            doubted, leases.doubted = leases.doubted[:ACKS], leases.doubted[ACKS:]
            commands.append(self._verify(doubted, leases.result_prefix))
        commands += [self._count(field, n) for field, n in counts.take().items()]
        if notices:
            commands += self._tell(notices.take(), now_ms)
        return commands

    def key(self, name: str) -> str:
        """The key as it stands in Redis."""
        return self._prefix + name

    def _ask(self, **fields: Any) -> bytes:
        """A script's named arguments, as the JSON map that it reads, with what stays the same in all of them."""
        return orjson.dumps(self._names | fields)

    def _count(self, field: str, n: int) -> Command:
        return Command(("HINCRBY", self.key(redis_keys.COUNTS), field, n), partial(_count_again, field, n))

    def _tell(self, taken: Mapping[str, Notice], now_ms: int) -> list[Command]:
        key = self.key(redis_keys.NOTICES)
        words = chain.from_iterable((field, notice.record(now_ms)) for field, notice in taken.items())
        return [
            Command(("HSET", key, *words), partial(_tell_again, taken)),
            Command(("EXPIRE", key, redis_keys.NOTICES_TTL_S), _raise_errors),
        ]

    def _hand_back(self, returns: list[Lease]) -> Command:
        args = (
            *_evalsha(scripts.HAND_BACK, *self._lease_keys, self.key(redis_keys.SUSPECTED)),
            self._ask(),
            *(
                word
                for lease in returns
                for word in (lease.tag, 2 if lease.is_stray else int(lease.started), lease.job_id)
            ),
        )
        return Command(args, partial(_or_again, self._leases.returns, returns))

    def _verify(self, doubted: list[Lease], result_prefix: str) -> Command:
        args = (
            *_evalsha(scripts.VERIFY, *self._lease_keys, self.key(redis_keys.SUSPECTED)),
            self._ask(results=result_prefix),
            *(word for lease in doubted for word in (lease.tag, lease.job_id)),
        )
        return Command(args, partial(self._on_verified, doubted))

    def _on_verified(self, doubted: list[Lease], reply: Reply) -> None:
        _or_again(self._leases.doubted, doubted, reply)
        self._leases.note_acknowledged(doubted, time.monotonic())  # Redis may crash again
        if reply:
            counts.add("suspected_payments_total", "redis_lost", reply)
            logger.error("%d jobs had ended, and Redis has lost their results: they come back, flagged", reply)

    def reclaim(self, lost: Sequence[Lease], *, on_reply: Callable[[Reply], None]) -> Command:
        """Take back what Redis does not know as this worker's any more, unless it has ended or is another's by now."""
        args = (
            *_evalsha(scripts.RECLAIM, *self._lease_keys, self.key(redis_keys.SUSPECTED)),
            self._ask(
                lease_ms=self._lease_ms,
                results=self._leases.result_prefix or "",
                messages=RECLAIM_LOOKS,
                bytes=RECLAIM_BYTES,
            ),
            *(word for lease in lost for word in (lease.tag, lease.queue, lease.raw, lease.job_id)),
        )
        return Command(args, on_reply)

    def _delay(self, lease: Lease, due_ms: int, now_ms: int) -> Command:
        flight, token = lease.follows or (redis_keys.NO_KEY, "")
        others = (redis_keys.delayed(lease.queue), flight, redis_keys.SUSPECTED)
        delay_keys = (*self._lease_keys, *map(self.key, others))
        args = (
            *_evalsha(scripts.DELAY, *delay_keys),
            self._ask(
                tag=lease.tag,
                due_ms=due_ms,
                now_ms=now_ms,
                is_suspected=lease.is_suspected,
                memory="" if lease.memory is None else b64encode(lease.memory.encode()).decode(),
                follows=token,
                called=lease.job_id if lease.memory is not None and lease.follows is None else "",
                queue=lease.queue,
            ),
        )
        return Command(args, partial(_or_again, self._leases.delays, [(lease, due_ms)]))

    def _bury(self, grave: Grave, now_ms: int) -> Command:
        dead_keys = (*self._lease_keys, self.key(redis_keys.DEAD), self.key(redis_keys.DEAD_COUNTS))
        args = (
            *_evalsha(scripts.BURY, *dead_keys),
            self._ask(tag=grave.lease.tag, kind=grave.kind, kept=redis_keys.DEAD_LIMIT),
            dead_letter(grave, now_ms),
        )
        return Command(args, partial(_or_again, self._leases.graves, [grave]))


def _raise_errors(reply: Reply) -> None:
    if isinstance(reply, Exception):
        raise reply


def _count_again(field: str, n: int, reply: Reply) -> None:
    if isinstance(reply, Exception):
        counts.put_back({field: n})
        raise reply


def _tell_again(taken: Mapping[str, Notice], reply: Reply) -> None:
    if isinstance(reply, Exception):
        notices.put_back(taken)
        raise reply


def _evalsha(script: Script, *ks: str) -> tuple[Any, ...]:
    return ("EVALSHA", script.sha, len(ks), *ks)


def _or_again(queue: list[Any], items: list[Any], reply: Reply) -> None:
    """Keep what a command carried that may not have been carried out."""
    if isinstance(reply, Exception):
        queue[:0] = items
        raise reply
