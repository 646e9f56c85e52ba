"""Server-sent events, from bytes as they come (html.spec.whatwg.org, "Server-sent events", section 9.2.6).

Events are what is between blank lines. Beyond the book, one whose blank line is missing at the stream's end counts:
some servers leave it out after `[DONE]`.
"""

from __future__ import annotations

from typing import Any, Final

import orjson

from ..answers import loads

__all__ = ["DONE", "Event", "EventStream", "fields_of", "is_event_stream"]

DONE: Final = b"[DONE]"
"""The data of OpenAI's last event."""

Event = tuple[bytes, bytes]
"""The event's name, empty as a rule, and its data."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_NO_EVENTS: list[Event] = []


def is_event_stream(beginning: bytes) -> bool:
    """Whether a body that begins so is one. Neither JSON nor HTML can be: no field of an event is named like that.

    `Content-Type` does not tell: gateways are known to send JSON as an event stream, and the other way round.
    """
    start = beginning.removeprefix(_BYTE_ORDER_MARK).lstrip()
    return bool(start) and not start.startswith((b"{", b"[", b"<", b"null"))


def fields_of(data: bytes) -> dict[str, Any]:
    """The JSON object that an event holds. Raises ValueError, and `Failure` (`bad_response`)."""
    try:
        fields = orjson.loads(data)
    except ValueError:
        fields = loads(data)
    if type(fields) is not dict:
        raise ValueError("a piece of the stream is no JSON object")
    return fields


class EventStream:
    """Reads one stream. Feed it each piece of the body; it holds what is not a whole event yet."""

    __slots__ = ("_buffer", "_has_begun", "_skips_newline")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._has_begun = False
        self._skips_newline = False

    @property
    def held_bytes(self) -> int:
        """How much has come of the event that is not whole yet."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[Event]:
        """The events that are whole now. Those without data are none."""
        if self._skips_newline and data:
            self._skips_newline = False
            data = data.removeprefix(b"\n")
        if b"\r" in data:
            # A line ends with CR, LF or both; whether an LF follows the last CR shows later.
            self._skips_newline = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if not self._has_begun:
            if (begun := self._begin(data)) is None:
                return _NO_EVENTS
            data = begun
        if self._buffer:
            seen = len(self._buffer) - 1
            self._buffer += data
            if self._buffer.find(b"\n\n", max(0, seen)) < 0:
                return _NO_EVENTS
            data = bytes(self._buffer)
        *blocks, rest = data.split(b"\n\n")
        self._buffer = bytearray(rest)
        return [event for block in blocks if (event := _event(block)) is not None]

    def close(self) -> list[Event]:
        """What was left when the stream ended: at most one event, perhaps the beginning of one."""
        event = _event(bytes(self._buffer))
        self._buffer.clear()
        return [] if event is None else [event]

    def _begin(self, data: bytes) -> bytes | None:
        """The first bytes without a byte order mark; None while they may be part of one."""
        self._buffer += data
        if len(self._buffer) < len(_BYTE_ORDER_MARK) and _BYTE_ORDER_MARK.startswith(self._buffer):
            return None
        self._has_begun = True
        begun, self._buffer = bytes(self._buffer), bytearray()
        return begun.removeprefix(_BYTE_ORDER_MARK)


def _event(block: bytes) -> Event | None:
    if block.startswith(b"data: ") and b"\n" not in block:  # nearly all
        return b"", block[6:]
    name, data = b"", []
    for line in block.split(b"\n"):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value
    return (name, b"\n".join(data)) if data else None
