"""JSON whose syntax alone is broken, made whole without adding a value.

Each scalar of the result stands in the text, and none of the text's is lost: that is the rule, and where it can't be
held the text is not repaired. So a text or number that may have been cut is never completed, a bracket is only added
where there is one place for it, and of two objects none is chosen.

json-repair, the usual library, completes and guesses (docs/adr/0021-schema-ladder.md).
"""

from __future__ import annotations

import json
import re
from typing import Final

import orjson

__all__ = ["MAX_DEPTH", "NotRepairable", "repaired"]

MAX_DEPTH: Final = 100
"""How deep a repaired answer may nest: this reader recurses."""

_SPACE = re.compile(r"[ \t\r\n\u00a0\ufeff]*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_WORD = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*")
_STRING = {
    '"': re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL),
    "'": re.compile(r"'[^'\\]*(?:\\.[^'\\]*)*'", re.DOTALL),
}
_LITERALS = {"true": "true", "false": "false", "null": "null", "True": "true", "False": "false", "None": "null"}
"""JSON's, and Python's, which come with single quotes."""

_ESCAPED_OR_QUOTE = re.compile(r'\\.|"', re.DOTALL)
_CLOSED_BY = {"{": "}", "[": "]"}
_OPENING = re.compile(r"[{\[]")
_BRACKET = re.compile(r"[{}\[\]]")
_FENCE = "```"


class NotRepairable(ValueError):
    """The text is no JSON with broken syntax, or its repair would add or lose something."""


def repaired(text: str, *, is_whole: bool = True) -> str:
    """The JSON in `text`: without the prose, code fence or reasoning around it, and with JSON's own quotes, commas and
    brackets. `is_whole`: nothing says that the text was cut; of one that was, no bracket is added.

    Raises `NotRepairable`.
    """
    text = _without_reasoning(text)
    if (first := _OPENING.search(text)) is None:
        raise NotRepairable("no object and no list")
    reader = _Reader(text, first.start())
    found = reader.container()
    if reader.is_open and (reader.is_ambiguous or not is_whole):
        raise NotRepairable("a bracket is missing, and where is not certain")
    _check_rest(text[reader.at :])
    return found


def _without_reasoning(text: str) -> str:
    """Servers without a reasoning parser leave it before the answer."""
    return text.rpartition("</think>")[2] if text.lstrip().startswith("<think>") else text


def _check_rest(rest: str) -> None:
    """Prose, the end of a code fence, brackets too many: nothing that looks like more of the answer."""
    rest = rest.strip()
    if rest.startswith((",", ":")) or (_BRACKET.search(rest) and rest.strip("]} \t\r\n")):
        raise NotRepairable("more follows than one object")


class _Reader:
    """Reads a container that begins at `at`, and gives it back as JSON."""

    def __init__(self, text: str, at: int) -> None:
        self.at = at
        self.is_open = False
        """A bracket was missing."""
        self.is_ambiguous = False
        """Its place is not certain: what stands last in a container may as well stand in the one around it."""
        self._text = text
        self._closers: list[str] = []

    def container(self) -> str:
        opener = self._text[self.at]
        closer = _CLOSED_BY[opener]
        is_like_parent = bool(self._closers) and self._closers[-1] == closer
        if len(self._closers) >= MAX_DEPTH:
            raise NotRepairable("it nests too deep")
        self._closers.append(closer)
        self.at += 1
        members = self._members(closer)
        self._closers.pop()
        self.is_ambiguous |= is_like_parent and len(members) > 1
        return opener + ",".join(members) + closer

    def _members(self, closer: str) -> list[str]:
        members: list[str] = []
        keys: set[str] = set()
        while True:
            if self._peek() == closer:
                break
            members.append(self._member(keys) if closer == "}" else self._value())
            following = self._peek()
            if following == ",":
                self.at += 1
            elif following == closer:
                break
            elif not following or following in self._closers:
                self.is_open = True
                return members
            else:
                raise NotRepairable("something stands between two values")
        self.at += 1
        return members

    def _member(self, keys: set[str]) -> str:
        key = self._key()
        if key in keys:
            raise NotRepairable("a key stands twice, and one value would be lost")
        keys.add(key)
        if self._peek() != ":":
            raise NotRepairable("a key without a value")
        self.at += 1
        return f"{key}:{self._value()}"

    def _key(self) -> str:
        if self._peek() in _STRING:
            return self._string()
        return orjson.dumps(self._match(_WORD)).decode()

    def _value(self) -> str:
        mark = self._peek()
        if mark in _CLOSED_BY:
            return self.container()
        if mark in _STRING:
            return self._string()
        if mark == "-" or mark.isdigit():
            return self._number()
        word = self._match(_WORD)
        if word not in _LITERALS:
            raise NotRepairable("a word that is no value")
        return _LITERALS[word]

    def _number(self) -> str:
        number = self._match(_NUMBER)
        if self.at == len(self._text):
            raise NotRepairable("the number at the end may have been cut")
        return number

    def _string(self) -> str:
        quoted = self._match(_STRING[self._text[self.at]])
        inner = _ESCAPED_OR_QUOTE.sub(_as_json, quoted[1:-1])
        try:
            # Not strict: line breaks and tabs may stand in it as they are.
            return orjson.dumps(json.loads(f'"{inner}"', strict=False)).decode()
        except (ValueError, TypeError):  # orjson's is for half of a surrogate pair
            raise NotRepairable("a text with an escape that JSON does not know") from None

    def _match(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self.at)
        if found is None:
            raise NotRepairable("a value is missing, or was cut")
        self.at = found.end()
        return found[0]

    def _peek(self) -> str:
        """The next character after white space; empty at the end, which a code fence may mark."""
        found = _SPACE.match(self._text, self.at)
        self.at = found.end() if found else self.at
        return "" if self._text.startswith(_FENCE, self.at) else self._text[self.at : self.at + 1]


def _as_json(escaped: re.Match[str]) -> str:
    return {"\\'": "'", '"': '\\"'}.get(escaped[0], escaped[0])
