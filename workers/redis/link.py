"""Script calls to Redis that share connections: those of one turn of the loop travel together."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from redis.exceptions import NoScriptError, RedisError

from tasks.redis.cancellation import stop, within

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from redis.asyncio import Redis

    from tasks.redis.script import Script

__all__ = ["AWAY", "BATCH_TIMEOUT_S", "Link", "portions"]

T = TypeVar("T")

AWAY = (RedisError, OSError, TimeoutError)
"""What asking a Redis that is away raises."""

MOST_CONNECTIONS = 4
MOST_CALLS_IN_BATCH = 64
BATCH_TIMEOUT_S = 1.0

TURNS = 60
"""Of the loop, at least, before Redis is taken to be away: a busy loop reads replies late. A call that has to connect
and to send its script takes 30; through TLS and Sentinel more."""


def portions(items: Sequence[T], most: int) -> Iterator[Sequence[T]]:
    """The items, so many at a time: a script holds Redis up for as long as it runs."""
    for start in range(0, len(items), most):
        yield items[start : start + most]


class _Call(NamedTuple):
    script: Script
    names: Sequence[str]
    args: Sequence[Any]
    reply: asyncio.Future[Any]


class Link:
    """One for all that speak of the same thing, such as the limiters of a process: hundreds need a few connections."""

    def __init__(self, redis: Redis, *, timeout_s: float = BATCH_TIMEOUT_S) -> None:
        """A batch that takes longer than `timeout_s` is given up."""
        self._redis = redis
        self._timeout_s = timeout_s
        self._waiting: list[_Call] = []
        self._senders: set[asyncio.Task[None]] = set()
        self._starts = False

    async def run(self, script: Script, names: Sequence[str], args: Sequence[Any]) -> Any:
        """The script's reply. Raises what the client raises, and `TimeoutError`."""
        loop = asyncio.get_running_loop()
        call = _Call(script, names, args, loop.create_future())
        self._waiting.append(call)
        if not self._starts and len(self._senders) < MOST_CONNECTIONS:
            self._starts = True  # what comes in this turn of the loop goes along
            sender = loop.create_task(self._send())
            self._senders.add(sender)
            sender.add_done_callback(self._senders.discard)
        return await call.reply

    async def close(self) -> None:
        """What is under way is given up."""
        for sender in list(self._senders):
            await stop(sender)

    async def _send(self) -> None:
        self._starts = False
        while self._waiting:
            batch, self._waiting = self._waiting[:MOST_CALLS_IN_BATCH], self._waiting[MOST_CALLS_IN_BATCH:]
            # Whose caller has given up must not be done later: it will come again.
            batch = [call for call in batch if not call.reply.done()]
            try:
                with within(self._timeout_s, turns=TURNS):
                    replies = await self._exchange(batch)
            except asyncio.CancelledError:
                for call in batch:
                    call.reply.cancel()
                raise
            except Exception as error:  # noqa: BLE001 - each caller hears of it, of whatever kind it is
                replies = [error] * len(batch)
            for call, reply in zip(batch, replies, strict=True):
                _answer(call, reply)

    async def _exchange(self, batch: Sequence[_Call]) -> list[Any]:
        replies = await self._execute(batch, by_digest=True)
        unknown = [position for position, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:
            again = await self._execute([batch[position] for position in unknown], by_digest=False)
            for position, reply in zip(unknown, again, strict=True):
                replies[position] = reply
        return replies

    async def _execute(self, batch: Sequence[_Call], *, by_digest: bool) -> list[Any]:
        if not batch:
            return []
        async with self._redis.pipeline(transaction=False) as commands:
            for script, names, args, _ in batch:
                if by_digest:
                    commands.evalsha(script.sha, len(names), *names, *args)
                else:
                    commands.eval(script.text, len(names), *names, *args)
            return list(await commands.execute(raise_on_error=False))


def _answer(call: _Call, reply: Any) -> None:
    if call.reply.done():
        return
    if isinstance(reply, BaseException):
        call.reply.set_exception(reply)
    else:
        call.reply.set_result(reply)
