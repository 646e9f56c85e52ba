"""OpenAI's chunks, put together to the completion that would have come as a whole: of a chat, or of a text.

The servers that speak this protocol differ most in tool calls: an `index` that is missing, or the same for two calls;
an `id` and a name in each piece; several pieces of one call in one chunk (openai/openai-python#3201, #2806).
"""

from __future__ import annotations

from typing import Any, ClassVar

from ..answers import text_of
from .sse import DONE, fields_of

__all__ = ["ChatAssembly", "CompletionAssembly"]

Fields = dict[str, Any]

_WHOLE = frozenset({"id", "index", "name", "role", "type"})
"""Strings that do not grow: the first that is not empty counts."""
_PADDING = "obfuscation"
"""OpenAI pads its chunks with it, so that their lengths tell nothing."""


class ChatAssembly:
    """One chat completion. See `codec.Assembly`."""

    __slots__ = ("_choices", "_error", "_head", "_last", "is_done", "size")

    def __init__(self) -> None:
        self.is_done = False
        self.size = 0
        self._head: Fields = {}
        self._last: Fields = {}
        """What the last chunk said beside its choices. Most say the same, and to compare costs less than to merge."""
        self._choices: dict[int, _Choice] = {}
        self._error: Fields | None = None

    @property
    def heard(self) -> int:
        """See `codec.Assembly`."""
        return self.size

    @property
    def has_begun(self) -> bool:
        """See `codec.Assembly`."""
        return bool(self._choices)

    @property
    def is_whole(self) -> bool:
        """See `codec.Assembly`."""
        if self.is_done:
            return True
        return bool(self._choices) and all(choice.finish_reason is not None for choice in self._choices.values())

    def add(self, name: bytes, data: bytes) -> str:
        """See `codec.Assembly`."""
        if data == DONE:
            self.is_done = True
            return ""
        chunk = fields_of(data)
        choices = chunk.pop("choices", None)
        if name == b"error" or chunk.get("error") or (choices is None and chunk.get("object") == "error"):
            self._fail(chunk)
            return ""
        if chunk != self._last:
            self._last = chunk
            for field, value in chunk.items():
                if value is not None or field not in self._head:
                    self._head[field] = value
        text = ""
        for choice in choices or ():
            if type(choice) is dict:
                text += self._add_choice(choice, len(data))
        return text

    def _add_choice(self, piece: Fields, data_bytes: int) -> str:
        """The text that it adds to the first choice."""
        index = piece.get("index")
        index = index if type(index) is int else 0
        choice = self._choices.get(index)
        if choice is None:
            choice = self._choices[index] = self._new_choice()
        size, text = choice.add(piece, data_bytes)
        self.size += size
        return text if index == 0 else ""

    def _new_choice(self) -> _Choice:
        return _ChatChoice()

    def _fail(self, chunk: Fields) -> None:
        self._error = chunk if chunk.get("error") or chunk.get("object") == "error" else {"error": chunk}
        self.is_done = True

    def whole(self) -> Fields:
        """See `codec.Assembly`."""
        if self._error is not None:
            return self._error
        head = {name: value for name, value in self._head.items() if name != _PADDING}
        if head.get("object") == "chat.completion.chunk":
            head["object"] = "chat.completion"
        if head.get("usage", self) is None:
            del head["usage"]
        return {**head, "choices": [self._choices[index].whole(index) for index in sorted(self._choices)]}


class CompletionAssembly(ChatAssembly):
    """One text completion, of so many choices: `n` for each prompt."""

    __slots__ = ("_count",)

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count = count

    @property
    def is_whole(self) -> bool:
        """See `codec.Assembly`."""
        return self.is_done or (super().is_whole and len(self._choices) >= self._count)

    def _new_choice(self) -> _Choice:
        return _TextChoice()


class _Choice:
    """What the choices of chats and of texts have in common."""

    __slots__ = ("_fields", "_last", "_logprobs", "finish_reason")

    own: ClassVar[frozenset[str]]
    """The fields of a piece that are put together. Others of a server's are taken as they are."""

    def __init__(self) -> None:
        self.finish_reason: Any = None
        self._logprobs: Fields | None = None
        self._fields: Fields = {}
        self._last: Fields = {}
        """What the last piece said beside its text, unless it had something that grows."""

    def add(self, piece: Fields, data_bytes: int) -> tuple[int, str]:
        """Merge it. About how many bytes it adds, of an event of `data_bytes`; and the text that came."""
        raise NotImplementedError

    def whole(self, index: int) -> Fields:
        """The choice that would have come as a whole."""
        raise NotImplementedError

    def _add_rest(self, piece: Fields) -> None:
        if (reason := piece.get("finish_reason")) is not None:
            self.finish_reason = reason
        self._last = piece
        if type(logprobs := piece.get("logprobs")) is dict:
            self._last = {}
            self._logprobs = {} if self._logprobs is None else self._logprobs
            _merge(self._logprobs, logprobs)
        if not piece.keys() <= self.own:
            self._fields.update({name: value for name, value in piece.items() if name not in self.own})

    def _whole(self, index: int, name: str, content: Any) -> Fields:
        return {
            "index": index,
            name: content,
            "logprobs": self._logprobs,
            "finish_reason": self.finish_reason,
            **self._fields,
        }


class _ChatChoice(_Choice):
    __slots__ = ("_calls", "_content", "_message")

    own = frozenset({"delta", "finish_reason", "index", "logprobs"})

    def __init__(self) -> None:
        super().__init__()
        self._content: list[Any] = []
        self._message: Fields = {"role": "assistant", "content": None}
        self._calls: list[Fields] = []

    def add(self, piece: Fields, data_bytes: int) -> tuple[int, str]:
        delta = piece.pop("delta", None)
        if piece != self._last:
            self._add_rest(piece)
        if type(delta) is not dict:
            return 0, ""
        if len(delta) == 1 and type(text := delta.get("content")) is str:  # nearly all
            if text:
                self._content.append(text)
            return len(text), text
        return self._size_of(delta, data_bytes), self._add_delta(delta)

    @staticmethod
    def _size_of(delta: Fields, data_bytes: int) -> int:
        size = 0
        for name, value in delta.items():
            if name != "role":  # in each piece of some servers, those that keep a connection alive too
                size += len(value) if type(value) is str else data_bytes if value else 0
        return size

    def _add_delta(self, delta: Fields) -> str:
        text = ""
        for name, value in delta.items():
            if name == "content":
                if value:
                    self._content.append(value)
                    text = value if type(value) is str else text_of(value)
            elif name == "tool_calls":
                for call in value or ():
                    if type(call) is dict:
                        _merge(self._call(call), call)
            else:
                _merge_field(self._message, name, value)
        return text

    def _call(self, piece: Fields) -> Fields:
        """The call that a piece belongs to."""
        index, own_id = piece.get("index"), piece.get("id")
        found = next((call for call in reversed(self._calls) if index is None or call.get("index") == index), None)
        if found is None or (own_id and found.get("id") and found["id"] != own_id):
            found = {}
            self._calls.append(found)
        return found

    def whole(self, index: int) -> Fields:
        message = {**self._message, "content": _joined(self._content)}
        if self._calls:
            message["tool_calls"] = [
                {name: value for name, value in call.items() if name != "index"}
                for call in sorted(self._calls, key=_place)
            ]
        return self._whole(index, "message", _strings_joined(message))


class _TextChoice(_Choice):
    __slots__ = ("_text",)

    own = frozenset({"finish_reason", "index", "logprobs", "text"})

    def __init__(self) -> None:
        super().__init__()
        self._text: list[str] = []

    def add(self, piece: Fields, data_bytes: int) -> tuple[int, str]:
        text = piece.pop("text", None)
        if piece != self._last:
            self._add_rest(piece)
        text = text if type(text) is str else ""
        if text:
            self._text.append(text)
        return data_bytes if piece.get("logprobs") else len(text), text

    def whole(self, index: int) -> Fields:
        return self._whole(index, "text", "".join(self._text))


def _place(call: Fields) -> int:
    return call["index"] if type(call.get("index")) is int else 0


class _Growing(list[str]):
    """A string in pieces: adding to one that is kept in a dict takes time by its length."""


def _merge(into: Fields, delta: Fields) -> None:
    for name, value in delta.items():
        _merge_field(into, name, value)


def _merge_field(into: Fields, name: str, value: Any) -> None:
    known = into.get(name)
    match value:
        case None:
            into.setdefault(name, None)
        case str() if name in _WHOLE:
            into[name] = known or value
        case str():
            if type(known) is _Growing:
                known.append(value)
            else:
                into[name] = _Growing([value])
        case dict():
            if type(known) is not dict:
                known = into[name] = {}
            _merge(known, value)
        case list():
            into[name] = [*known, *value] if type(known) is list else value
        case _:
            into[name] = value


def _strings_joined(value: Any) -> Any:
    if type(value) is _Growing:
        return "".join(value) or None
    if type(value) is dict:
        return {
            name: _arguments(each) if name == "arguments" else _strings_joined(each) for name, each in value.items()
        }
    return [_strings_joined(each) for each in value] if type(value) is list else value


def _arguments(value: Any) -> Any:
    """Of a call; one that has none has an empty text."""
    return "".join(value) if type(value) is _Growing else value


def _joined(pieces: list[Any]) -> Any:
    """A text, or a list of parts where some came as parts; None for nothing."""
    if all(type(piece) is str for piece in pieces):
        return "".join(pieces) or None
    parts: list[Any] = []
    for piece in pieces:
        for part in [{"type": "text", "text": piece}] if type(piece) is str else piece if type(piece) is list else ():
            last = parts[-1] if parts else None
            if last is not None and _is_text(part) and _is_text(last):
                parts[-1] = {**last, "text": last["text"] + part["text"]}
            else:
                parts.append(part)
    return parts


def _is_text(part: Any) -> bool:
    return type(part) is dict and part.keys() == {"type", "text"} and type(part["text"]) is str
