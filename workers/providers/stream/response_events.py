"""The Responses API's events, put together to the response that would have come as a whole.

The last event holds all of it. Servers are known to leave its `output` empty: then the items that came one by one take
its place.
"""

from __future__ import annotations

from typing import Any, Final

from .sse import DONE, fields_of

__all__ = ["ResponseAssembly"]

_STATES: Final = frozenset({"response.created", "response.queued", "response.in_progress"})
"""Servers are known to repeat them while nothing comes."""
_ENDS: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})


class ResponseAssembly:
    """One response. See `codec.Assembly`."""

    __slots__ = ("_items", "_response", "has_begun", "heard", "is_done", "size")

    def __init__(self) -> None:
        self.is_done = False
        self.has_begun = False
        self.size = 0
        self.heard = 0
        self._items: dict[int, dict[str, Any]] = {}
        self._response: dict[str, Any] = {}

    @property
    def is_whole(self) -> bool:
        """See `codec.Assembly`. Without its last event a response has no end."""
        return self.is_done

    def add(self, name: bytes, data: bytes) -> str:
        """See `codec.Assembly`."""
        if data == DONE:
            return ""
        event = fields_of(data)
        kind = str(event.get("type"))
        if kind.startswith("response.") and kind not in _STATES and event.get("delta") != "":
            self.heard += 1
        if kind == "response.output_text.delta":
            return self._add_text(event.get("delta"))
        if kind == "response.output_item.done" and isinstance(event.get("item"), dict):
            index = event.get("output_index")
            self._items[index if isinstance(index, int) else len(self._items)] = event["item"]
            self.has_begun = True
            self.size += len(data)
        elif kind in _ENDS and isinstance(event.get("response"), dict):
            self._end(event["response"])
        elif name == b"error" or kind == "error" or event.get("error"):
            self._response = event if isinstance(event.get("error"), dict) else {"error": event}
            self.is_done = True
        return ""

    def _add_text(self, delta: Any) -> str:
        if not isinstance(delta, str):
            return ""
        self.has_begun = True
        self.size += len(delta)
        return delta

    def _end(self, response: dict[str, Any]) -> None:
        if not response.get("output") and self._items:
            response = {**response, "output": [self._items[index] for index in sorted(self._items)]}
        self._response, self.is_done = response, True

    def whole(self) -> dict[str, Any]:
        """See `codec.Assembly`."""
        return self._response
