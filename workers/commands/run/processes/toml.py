"""The tables of a catalogue file that a run writes for its workers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["table"]


def table(section: str, name: str, values: Mapping[str, Any]) -> str:
    """`[section."name"]` and a line for each value."""
    return "\n".join([f"[{section}.{_toml(name)}]", *_lines(values), ""])


def _lines(values: Mapping[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        yield f"{name} = {_toml(value)}"


def _toml(value: Any) -> str:
    match value:
        case dict():
            return "{ " + ", ".join(_lines(value)) + " }"
        case list():
            return "[" + ", ".join(map(_toml, value)) + "]"
        case _:
            # JSON's texts, numbers and booleans are TOML's too, but for escaped surrogate pairs.
            return json.dumps(value, ensure_ascii=False)
