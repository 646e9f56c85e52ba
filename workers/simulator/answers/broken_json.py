"""JSON as models break it: in its syntax alone, or in what it says. No I/O."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

__all__ = ["KINDS", "broken"]

Break = Callable[[str, dict[str, Any]], str]

_BREAKS: Final[dict[str, Break]] = {
    "fence": lambda text, _: f"```json\n{text}\n```",
    "trailing comma": lambda text, _: f"{text[:-1]},}}",
    "single quotes": lambda _, value: repr(value),
    "prose": lambda text, _: f"Here is what you asked for:\n\n{text}\n\nLet me know if you need more.",
    "missing bracket": lambda text, _: text[:-1],
    # These two say something else, and no repair of the syntax helps.
    "wrong type": lambda _, value: json.dumps(_changed(value)),
    "missing field": lambda _, value: json.dumps(dict(list(value.items())[1:])),
}
KINDS: Final = tuple(_BREAKS)


def broken(text: str, kind: str) -> str:
    """The JSON text of an object, broken in one of `KINDS`. A text that is no object stays as it is."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return _BREAKS[kind](text, value) if isinstance(value, dict) and value else text


def _changed(value: dict[str, Any]) -> dict[str, Any]:
    """With a list in the first field's place, or a text where that is one."""
    name, first = next(iter(value.items()))
    return {**value, name: "a text" if isinstance(first, list) else [first]}
