"""The Messages API's events, put together to the message that would have come as a whole."""

from __future__ import annotations

from typing import Any

import orjson

from ..stream.sse import fields_of

__all__ = ["MessageAssembly"]

Fields = dict[str, Any]

_GROWING = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}
_INPUT = "partial_json"


class MessageAssembly:
    """One message. See `codec.Assembly`."""

    __slots__ = ("_blocks", "_error", "_message", "_pieces", "has_begun", "is_done", "size")

    def __init__(self) -> None:
        self.is_done = False
        self.has_begun = False
        self.size = 0
        self._message: Fields = {}
        self._blocks: dict[int, Fields] = {}
        self._pieces: dict[tuple[int, str], list[str]] = {}
        self._error: Fields | None = None

    @property
    def heard(self) -> int:
        """See `codec.Assembly`."""
        return self.size

    @property
    def is_whole(self) -> bool:
        """See `codec.Assembly`."""
        return self.is_done or self._message.get("stop_reason") is not None

    def add(self, name: bytes, data: bytes) -> str:
        """See `codec.Assembly`."""
        event = fields_of(data)
        match event.get("type"):
            case "content_block_delta":
                return self._grow(event.get("index"), event.get("delta"), len(data))
            case "content_block_start":
                self.size += len(data)
                return self._begin_block(event.get("index"), event.get("content_block"))
            case "message_start":
                self.has_begun = True
                self._message = dict(event.get("message") or {})
            case "message_delta":
                self._message.update(event.get("delta") or {})
                # The counts of the whole message so far, not of what came since.
                counted = {name: count for name, count in (event.get("usage") or {}).items() if count is not None}
                self._message["usage"] = {**(self._message.get("usage") or {}), **counted}
            case "message_stop":
                self.is_done = True
            case "error":
                self._error, self.is_done = event, True
            case _ if event.get("error") or name == b"error":
                self._error, self.is_done = event if event.get("error") else {"error": event}, True
        return ""

    def _begin_block(self, index: Any, block: Any) -> str:
        if type(index) is not int or type(block) is not dict:
            return ""
        self._blocks[index] = dict(block)
        text = block.get("text") if block.get("type") == "text" else None
        return text if type(text) is str else ""

    def _grow(self, index: Any, delta: Any, data_bytes: int) -> str:
        if type(index) is not int or type(delta) is not dict or index not in self._blocks:
            return ""
        kind = delta.get("type")
        if kind == "citations_delta":
            self.size += data_bytes
            self._blocks[index].setdefault("citations", None)
            self._blocks[index]["citations"] = [*(self._blocks[index]["citations"] or ()), delta.get("citation")]
            return ""
        field = _INPUT if kind == "input_json_delta" else _GROWING.get(str(kind))
        piece = delta.get(field) if field else None
        if field is None or type(piece) is not str:
            return ""
        self._pieces.setdefault((index, field), []).append(piece)
        self.size += len(piece)
        return piece if kind == "text_delta" else ""

    def whole(self) -> Fields:
        """See `codec.Assembly`."""
        if self._error is not None:
            return self._error
        return {**self._message, "content": [self._block(index) for index in sorted(self._blocks)]}

    def _block(self, index: int) -> Fields:
        block = dict(self._blocks[index])
        for field in _GROWING.values():
            if pieces := self._pieces.get((index, field)):
                block[field] = (block.get(field) or "") + "".join(pieces)
        if pieces := self._pieces.get((index, _INPUT)):
            block["input"] = _input("".join(pieces)) or block.get("input") or {}
        return block


def _input(text: str) -> Any:
    """A tool's input; none where the limit on tokens cut it."""
    try:
        return orjson.loads(text) if text else None
    except ValueError:
        return None
