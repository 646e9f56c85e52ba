"""One reader of an answer as it comes: no gap, no repeat, and no text that is no part of the answer.

A stream is what the worker has written so far; what the answer is, the job's result says. So a reader ends with the
result: it yields what the stream had not, or says that what it has yielded belongs to another call.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from ...errors import JobFailed, QueueFull, QueueUnavailable
from ...redis.connection import RedisConnection, ScriptRunner
from ...redis.script import Script
from ...results import PromptResult
from ...streams import EventKind, StreamEvent, digest_of, number_of, place_of
from ...wire import redis_keys
from ..job_store import Sighting
from ..patience import Patience
from ..place import Place
from ..waiting import unknown_job
from .entries import Entry, StreamEntries

__all__ = ["Streams"]

ASK: Final = Script.read(Path(__file__).with_name("lua"), "ask")

Look = Callable[[str], Awaitable[Sighting]]
Wait = Callable[..., Coroutine[Any, Any, PromptResult]]


class Streams:
    """The answers in one Redis, for the readers of one event loop."""

    def __init__(self, broker: RedisConnection, place: Place, *, look: Look, wait: Wait) -> None:
        """`look` and `wait` are the store's."""
        self._broker = broker
        self._place = place
        self._look = look
        self._wait = wait
        self._entries = StreamEntries(broker, place)
        self._ask_script = ScriptRunner(broker.redis, ASK)

    async def events(
        self, job_id: str, *, after: int, timeout_s: float | None, is_new: bool, is_asked: bool
    ) -> AsyncGenerator[StreamEvent, None]:
        """See `Store.stream`."""
        reader = _Reader(job_id, self._entries, after)
        result: PromptResult | None = None
        if not is_new:
            patience = Patience(self._place.outage_s)
            sighting = await patience.until_answered(partial(self._look, job_id))
            if sighting.result is None and sighting.state is None:
                raise unknown_job(job_id)
            result = sighting.result
        if result is None:
            if not is_asked:
                await self._ask(job_id)
            waiting = asyncio.create_task(self._wait(job_id, timeout_s=timeout_s))
            try:
                async with aclosing(reader.follow(waiting)) as events:
                    async for event in events:
                        yield event
            finally:
                await _end(waiting)
            result = waiting.result()
        async for event in reader.finish(result):
            yield event

    async def _ask(self, job_id: str) -> None:
        """Without this the text comes at the end, in one piece."""
        channel = self._place.key(redis_keys.STREAMS_CHANNEL)
        names = [
            self._place.key(redis_keys.STREAMS_ASKED),
            self._place.key(redis_keys.stream(job_id)),
        ]
        with suppress(QueueFull):
            async with self._broker.border():
                await self._ask_script(names, [json.dumps({"id": job_id, "channel": channel})])

    async def aclose(self) -> None:
        await self._entries.aclose()


async def _end(waiting: asyncio.Task[PromptResult]) -> None:
    """Let go of the wait, whatever has become of it."""
    waiting.cancel()
    await asyncio.wait([waiting])


class _Reader:
    """Where one reader stands."""

    def __init__(self, job_id: str, entries: StreamEntries, after: int) -> None:
        self._job_id = job_id
        self._entries = entries
        self._run, self._chars = place_of(after)
        self._has_started = after > 0
        self._is_full = False
        self._digest: str | None = None
        """Of the answer that the run has brought to its end."""

    async def follow(self, waiting: asyncio.Future[PromptResult]) -> AsyncGenerator[StreamEvent, None]:
        """What comes until the job has ended."""
        inbox = self._entries.join(self._job_id)
        waiting.add_done_callback(lambda _: inbox.put(None))
        try:
            while True:
                for entry in await inbox.take():
                    if waiting.done():
                        return
                    if entry is not None and not self._misses_before(entry):
                        for event in self._take(entry):
                            yield event
                        continue
                    with suppress(QueueUnavailable):  # the wait for the result says when it is too much
                        for event in await self._look():
                            yield event
        finally:
            self._entries.leave(self._job_id, inbox)

    async def _look(self) -> list[StreamEvent]:
        found = await self._entries.read(self._job_id, run=self._run, chars=self._chars)
        # What is left of a call that broke off is for nobody. A piece after a gap is none: what is missing comes with
        # the result.
        last = [entry for entry in found if entry.run == found[-1].run]
        return [event for entry in last if not self._misses_before(entry) for event in self._take(entry)]

    def _misses_before(self, entry: Entry) -> bool:
        """Whether something stands in the stream before it that has not been read."""
        if entry.run > self._run:
            return entry.kind != "b"
        return entry.run == self._run and entry.kind == "t" and entry.chars - len(entry.text) > self._chars

    def _take(self, entry: Entry) -> Iterable[StreamEvent]:
        run, chars, kind, text = entry
        if kind == "t" and run == self._run and chars - len(text) == self._chars and text and self._has_started:
            self._chars = chars
            return (StreamEvent("text", number_of(run, chars), text),)  # nearly all
        return self._take_other(entry)

    def _take_other(self, entry: Entry) -> Iterator[StreamEvent]:
        run, chars, kind, text = entry
        if run < self._run:
            return
        if run > self._run:
            yield from self._begin_again(run)
        if kind == "b":
            yield from self._start()
        elif kind == "t" and chars > self._chars:
            yield from self._start()
            piece = text[len(text) - (chars - self._chars) :]
            self._chars = chars
            yield self._event("text", piece)
        elif kind == "f" and not self._is_full:
            self._is_full = True
            yield self._event("full")
        elif kind == "e":
            self._digest = text

    def _start(self) -> Iterator[StreamEvent]:
        if not self._has_started:
            self._has_started = True
            yield self._event("started")

    def _begin_again(self, run: int) -> Iterator[StreamEvent]:
        had_text, self._run, self._chars, self._digest = self._chars > 0, run, 0, None
        if had_text:
            self._has_started = True
            yield self._event("restarted")

    async def finish(self, result: PromptResult) -> AsyncIterator[StreamEvent]:
        """What is left when the job has ended. Raises `JobFailed`."""
        found: list[StreamEvent] = []
        with suppress(QueueUnavailable):
            found = await self._look()
        for event in found:
            yield event
        if not result.ok:
            raise JobFailed.of(result)
        text = result.text or ""
        if self._chars and not await self._belongs(text, result):
            for event in self._begin_again(self._run + 1):
                yield event
        for event in self._start():
            yield event
        if rest := text[self._chars :]:
            self._chars = len(text)
            yield self._event("text", rest)
        if result.usage.input_tokens or result.usage.output_tokens:
            yield StreamEvent("usage", self._number, usage=result.usage)
        yield self._event("end")

    async def _belongs(self, text: str, result: PromptResult) -> bool:
        """Whether what was read is the beginning of this text, of the same call."""
        if self._digest is not None:
            return self._digest == digest_of(text)
        with suppress(QueueUnavailable):
            entries = await self._entries.read(self._job_id, run=self._run, chars=0)
            if entries:
                return text.startswith(_text_of(entries, self._run)[: self._chars])
        # The stream is gone. Where there was one call alone, there was one text.
        is_only_call = self._run == 1 and result.attempts <= 1 and not result.suspected_double_payment
        return is_only_call and self._chars <= len(text)

    @property
    def _number(self) -> int:
        return number_of(self._run, self._chars)

    def _event(self, kind: EventKind, text: str = "") -> StreamEvent:
        return StreamEvent(kind, self._number, text)


def _text_of(entries: list[Entry], run: int) -> str:
    """The run's text, as far as it stands in the stream without a gap. Entries may overlap (feeds.py, `again`)."""
    text = ""
    for entry in entries:
        if entry.run == run and entry.kind == "t" and entry.chars - len(entry.text) <= len(text) < entry.chars:
            text += entry.text[len(text) - entry.chars :]
    return text
