"""JSON that every reader takes: what may stand in it, and where something stands that may not. No I/O.

Python's own encoder lets NaN and half surrogate pairs through, and recursion ends a reader's process at some depth or
other. A refusal names the place (`messages[0].content`), never the value: prompts are private.
"""

from __future__ import annotations

import math
from json import JSONEncoder
from typing import Any, Final

__all__ = ["MAX_DEPTH", "NotJson", "check", "encoded", "is_unicode", "kind_of"]

MAX_DEPTH: Final = 100
"""How deep objects and lists may nest. Celery's encoders recurse, and their stack is smaller than a parser's."""

_encode: Final = JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode

_HALF_A_PAIR: Final = "holds half of a surrogate pair, which is not text; decode it rightly"

# Where a value stands: (where its parent stands, its key or index). A linked tuple costs 30 ns a value, a ready
# made string 200; only a refusal ever turns it into text.
_Path = tuple[Any, Any] | None


class NotJson(ValueError):
    """A value that JSON can't hold, or not every reader takes. The text says where and what, never the value."""


def encoded(value: dict[str, Any]) -> str:
    """The value as JSON. Raises `NotJson` unless every reader takes it."""
    _check_object(value, None, 1)
    try:
        text = _encode(value)
        text.encode()
    except UnicodeEncodeError:
        _check_texts(value, None)  # far dearer than encoding it all at once
        raise
    except ValueError:  # an integer of more than 4,300 digits (sys.set_int_max_str_digits)
        raise NotJson("the job holds a number too long to be written as JSON") from None
    return text


def check(value: Any, *, place: str = "", depth: int = 1) -> None:
    """Raises `NotJson` unless every reader takes the value.

    `place` is the key under which it stands, `depth` at which level: 0 for an envelope that does not count.
    """
    path = (None, place) if place else None
    _check(value, path, depth)
    _check_texts(value, path)


def _check(value: Any, path: _Path, depth: int) -> None:
    if isinstance(value, str) or value is None or isinstance(value, int):
        return
    if isinstance(value, float):
        if not math.isfinite(value):
            raise NotJson(f"{_where(path)}: is NaN or infinite, which JSON can't hold")
    elif isinstance(value, dict):
        _check_object(value, path, depth)
    elif isinstance(value, list | tuple):
        _check_depth(path, depth)
        for index, item in enumerate(value):
            _check(item, (path, index), depth + 1)
    else:
        raise NotJson(f"{_where(path)}: is {kind_of(value)}, which JSON can't hold; convert it to plain values")


def _check_object(value: dict[Any, Any], path: _Path, depth: int) -> None:
    _check_depth(path, depth)
    for key, item in value.items():
        if not isinstance(key, str):
            raise NotJson(f"{_where(path)}: has a key that is {kind_of(key)}; keys must be texts")
        _check(item, (path, key), depth + 1)


def _check_depth(path: _Path, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise NotJson(f"{_where(path)}: is nested more than {MAX_DEPTH} levels deep")


def _check_texts(value: Any, path: _Path) -> None:
    if isinstance(value, str):
        if not is_unicode(value):
            raise NotJson(f"{_where(path)}: {_HALF_A_PAIR}")
    elif isinstance(value, dict):
        for key, item in value.items():
            if not is_unicode(key):
                raise NotJson(f"a key of {_where(path)}: {_HALF_A_PAIR}")
            _check_texts(item, (path, key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_texts(item, (path, index))


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can hold it: Python's strings, and JSON's escapes, may hold half of a surrogate pair."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def kind_of(value: object) -> str:
    """Its type, as in "a list"."""
    return f"a {type(value).__name__}"


def _where(path: _Path) -> str:
    steps: list[Any] = []
    while path is not None:
        path, step = path
        steps.append(step)
    if len(steps) > 12:
        steps[4:-6] = ["..."]  # `steps` runs from the value up to the root
    text = ""
    for step in reversed(steps):
        text += f"[{step}]" if isinstance(step, int) else f".{_shown(step)}"
    return text.removeprefix(".") or "the job"


def _shown(key: str) -> str:
    shown = key if len(key) <= 40 else f"{key[:37]}..."
    return shown.encode("ascii", "backslashreplace").decode()
