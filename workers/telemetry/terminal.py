"""What others have written, shown to people: no control character of theirs reaches a terminal or begins a line."""

from __future__ import annotations

import json
import re

__all__ = ["printable", "printable_json", "printable_lines"]

_NOT_ASCII_TEXT = re.compile(r"[^\n -~]")


def printable(text: object) -> str:
    """The text in one line: what is not printable (ESC, line breaks, turns of direction) is written as an escape."""
    text = str(text)
    return text if text.isprintable() else "".join(map(_escaped, text))


def printable_lines(text: str, *, indent: str = "") -> str:
    """The same of each line, as of a traceback."""
    return "\n".join(indent + printable(line) for line in text.split("\n"))


def printable_json(text: str) -> str:
    """JSON that says the same: JSON itself lets DEL, C1 controls and turns of direction stand in a string."""
    return _NOT_ASCII_TEXT.sub(lambda match: _escaped_in_json(match[0]), text)


def _escaped(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def _escaped_in_json(character: str) -> str:
    return character if character.isprintable() else json.dumps(character)[1:-1]
