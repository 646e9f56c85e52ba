"""JSON whose syntax alone is broken, made whole without adding a value.

Each scalar of the result stands in the text, and none of the text's is lost: that is the rule, and where it can't be
held the text is not repaired. So a text or number that may have been cut is never completed, and of two objects none
is chosen. Where a missing bracket has several places, there are several readings, and whoever knows the schema sees
which of them can be meant.

json-repair, the usual library, completes and guesses (docs/adr/0021-schema-ladder.md).
"""

from __future__ import annotations

import json
import re
from typing import Final

import orjson

__all__ = ["MAX_DEPTH", "NotRepairable", "readings"]

MAX_DEPTH: Final = 100
"""How deep a repaired answer may nest: this reader recurses."""

MOST_READ: Final = 200_000
"""Characters to read anew for all places that a missing bracket may have, each of which takes the whole text."""

_SPACE = re.compile(r"[ \t\r\n\u00a0\ufeff]*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_WORD = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*")
_STRING = {
    '"': re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL),
    "'": re.compile(r"'[^'\\]*(?:\\.[^'\\]*)*'", re.DOTALL),
}
_LITERALS = {"true": "true", "false": "false", "null": "null", "True": "true", "False": "false", "None": "null"}
"""JSON's, and Python's, which come with single quotes."""

_TO_ESCAPE = re.compile(r"[\x00-\x1f\\]")
_ESCAPED_OR_QUOTE = re.compile(r'\\.|"', re.DOTALL)
_CLOSED_BY = {"{": "}", "[": "]"}
_OPENING = re.compile(r"[{\[]")
_BRACKET = re.compile(r"[{}\[\]]")
_FENCE = "```"


class NotRepairable(ValueError):
    """The text is no JSON with broken syntax, or its repair would add or lose something."""


def readings(text: str, *, is_whole: bool = True) -> list[str]:
    """The JSON in `text`: without the prose, code fence or reasoning around it, and with JSON's own quotes, commas and
    brackets. `is_whole`: nothing says that the text was cut; to one that was, no bracket is added.

    There are several where a bracket is missing that may stand in several places, the last one first: whether `c` of
    `{"a": {"b": 1, "c": 2}` stands in the inner object, the text does not say. Raises `NotRepairable`.
    """
    text = _without_reasoning(text)
    if (first := _OPENING.search(text)) is None:
        raise NotRepairable("no object and no list")
    reader = _Reader(text, first.start())
    found = reader.whole()
    if not reader.missing:
        return [found]
    too_many = len(reader.places) * len(text) > MOST_READ or (reader.places and reader.missing > 1)
    if not is_whole or too_many:
        raise NotRepairable("a bracket is missing, and where is not certain")
    elsewhere = (_with_bracket(text, first.start(), *place) for place in reader.places)
    return list(dict.fromkeys([found, *filter(None, elsewhere)]))


def _with_bracket(text: str, begin: int, at: int, closer: str) -> str | None:
    reader = _Reader(text[:at] + closer + text[at:], begin)
    try:
        found = reader.whole()
    except NotRepairable:
        return None
    return None if reader.missing else found


def _without_reasoning(text: str) -> str:
    """Servers without a reasoning parser leave it before the answer. It may hold drafts of the answer."""
    if not text.lstrip().startswith("<think>"):
        return text
    _, end, answer = text.rpartition("</think>")
    if not end:
        raise NotRepairable("it is reasoning without an answer")
    return answer


def _check_rest(rest: str) -> None:
    """Prose, the end of a code fence, brackets too many: nothing that looks like more of the answer."""
    rest = rest.strip()
    if rest.startswith((",", ":")) or (_BRACKET.search(rest) and rest.strip("]} \t\r\n")):
        raise NotRepairable("more follows than one object")


class _Reader:
    """Reads a container that begins at `at`, and gives it back as JSON."""

    def __init__(self, text: str, at: int) -> None:
        self.at = at
        self.missing = 0
        """Brackets that were missing at the end of what they close."""
        self.places: list[tuple[int, str]] = []
        """Where else a bracket may be missing, and which: what follows may stand in the container around it as well."""
        self._text = text
        self._closers: list[str] = []

    def whole(self) -> str:
        """The container, and nothing after it that looks like more of the answer."""
        found = self.container()
        _check_rest(self._text[self.at :])
        return found

    def container(self) -> str:
        opener = self._text[self.at]
        closer = _CLOSED_BY[opener]
        is_like_parent = bool(self._closers) and self._closers[-1] == closer
        if len(self._closers) >= MAX_DEPTH:
            raise NotRepairable("it nests too deep")
        self._closers.append(closer)
        self.at += 1
        members = self._members(closer, has_places=is_like_parent)
        self._closers.pop()
        return opener + ",".join(members) + closer

    def _members(self, closer: str, *, has_places: bool) -> list[str]:
        members: list[str] = []
        keys: set[str] = set()
        while True:
            if self._peek() == closer:
                break
            members.append(self._member(keys) if closer == "}" else self._value())
            following = self._peek()
            if following == ",":
                if has_places:
                    self.places.append((self.at, closer))
                self.at += 1
            elif following == closer:
                break
            elif not following or following in self._closers:
                self.missing += 1
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
        if quoted[0] == '"' and _TO_ESCAPE.search(quoted) is None:
            return quoted
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
