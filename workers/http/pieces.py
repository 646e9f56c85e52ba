"""Reading an answer that comes in pieces, as server-sent events."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import orjson

from ..prompt.failure import Failure
from ..providers.stream.sse import EventStream, is_event_stream
from .errors import FOREIGN

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..providers import Assembly
    from ..providers.stream.sse import Event
    from .exchange import Response

__all__ = ["Pieces"]

DRAIN_S = 0.25
"""How long the connection's end is waited for after the answer's, so that the connection can be used again."""


class Pieces:
    """The pieces of one answer. All raise what a `Response` raises, and `Failure`."""

    def __init__(self, assembly: Assembly, on_text: Callable[[str], object], *, most: int, silent_s: float) -> None:
        """`most`: how many bytes the whole answer may take. `silent_s`: how long there may be nothing of the
        answer, but comments and pings."""
        self._assembly = assembly
        self._on_text = on_text
        self._most = most
        self._silent_s = silent_s
        self._stream = EventStream()

    async def read_first(self, response: Response) -> bytes | None:
        """Read until a first event has come. Of a body that is no event stream, returns what has come of it."""
        beginning = b""
        while not beginning.strip() and not response.at_eof():
            beginning += await response.read_some()
        if not is_event_stream(beginning):
            return beginning
        while not self._take(self._stream.feed(beginning)):
            if response.at_eof():
                break
            beginning = await response.read_some()
            self._check_size(response)
        return None

    async def read_rest(self, response: Response) -> bytes:
        """The whole answer, put together."""
        assembly = self._assembly
        try:
            with response.in_pieces():
                await self._read_on(response)
        except FOREIGN:
            if not assembly.is_whole:
                raise
            response.close()  # what is missing is the end's end, and the answer is paid for
        if not assembly.is_whole:
            raise _cut()
        return orjson.dumps(assembly.whole())

    async def _read_on(self, response: Response) -> None:
        loop = asyncio.get_running_loop()
        assembly, feed, take = self._assembly, self._stream.feed, self._take
        heard, silent_since = assembly.heard, 0.0
        while not assembly.is_done and (data := await response.read_some()):
            take(feed(data))
            if assembly.heard != heard:
                heard, silent_since = assembly.heard, 0.0
            elif not silent_since:
                silent_since = loop.time()
            elif loop.time() - silent_since > self._silent_s:
                raise TimeoutError
            self._check_size(response)
        if assembly.is_done:
            await _drain(response)
        else:
            self._take_last()

    def _take(self, events: Sequence[Event]) -> bool:
        """Whether there were any."""
        add = self._assembly.add
        for name, data in events:
            try:
                text = add(name, data)
            except (ValueError, Failure):
                raise Failure(
                    "bad_response",
                    "a piece of the streamed answer is not valid JSON",
                    retryable=True,
                    suspected_payment=True,
                ) from None
            if text:
                self._on_text(text)
        return bool(events)

    def _take_last(self) -> None:
        """An event whose end is missing: the connection's end may be its own, or have cut it."""
        with suppress(Failure):
            self._take(self._stream.close())

    def _check_size(self, response: Response) -> None:
        if self._assembly.size + self._stream.held_bytes > self._most:
            raise Failure(
                "too_large",
                f"the provider's answer is larger than {self._most:,} bytes; raise "
                "PROMPTMILL_HTTP__MAX_RESPONSE_BYTES, or limit the answer with max_tokens",
                http_status=response.status,
                suspected_payment=True,
            )


async def _drain(response: Response) -> None:
    if response.at_eof():
        return
    with suppress(TimeoutError, *FOREIGN):
        async with asyncio.timeout(DRAIN_S):
            while await response.read_some():
                pass
    if not response.at_eof():
        response.close()


def _cut() -> Failure:
    return Failure(
        "connection",
        "the provider ended the stream in the middle of its answer",
        retryable=True,
        suspected_payment=True,
    )
