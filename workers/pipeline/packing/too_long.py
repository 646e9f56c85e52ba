"""Inputs that are longer than a model takes: cut to its length, or in parts whose vectors become one. No I/O."""

from __future__ import annotations

import math
import unicodedata
from bisect import bisect_left
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tasks.wire.vectors import numbers_of, packed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from .tokens import TextTokenizer

__all__ = ["Fitted", "fitted", "fitted_by_tokens", "merged", "place_in_job"]

WORDS_WITHIN: Final = 0.1
"""A cut is made between words where there is a gap within this share of what is kept."""

_JOINERS: Final = frozenset("\u200d\ufe0e\ufe0f")
_MOST_MARKS: Final = 16
_UNIT: Final = 1e-2
"""How far a vector's length may be from 1 and still be 1: providers round."""


class Fitted(NamedTuple):
    """The inputs as they are sent. `parts`: how many of them each of the job's inputs has become; `notes` say so."""

    inputs: list[Any]
    parts: list[int]
    notes: list[dict[str, Any]]


def fitted(inputs: Sequence[Any], lengths: Sequence[int], *, split: bool) -> Fitted:
    """The inputs with those shortened, or split, that are longer than their `lengths` (characters, or token ids)."""
    pieces = (
        [value] if len(value) <= length else _pieces(value, length, split=split)
        for value, length in zip(inputs, lengths, strict=True)
    )
    return _collected(inputs, pieces, split=split)


def fitted_by_tokens(texts: Sequence[str], most: int, tokenizer: TextTokenizer, *, split: bool) -> Fitted:
    """The same by the model's own tokens, at most so many in each. It takes some milliseconds per 10,000 characters."""
    pieces = (
        [text] if tokenizer.surely_fits(text, most) else _pieces_by_tokens(text, most, tokenizer, split=split)
        for text in texts
    )
    return _collected(texts, pieces, split=split)


def _collected(inputs: Sequence[Any], found: Iterable[list[Any]], *, split: bool) -> Fitted:
    sent: list[Any] = []
    parts: list[int] = []
    notes: list[dict[str, Any]] = []
    for place, (value, pieces) in enumerate(zip(inputs, found, strict=True)):
        sent += pieces
        parts.append(len(pieces))
        if pieces[0] is not value:
            notes.append(_note(place, value, pieces, split=split))
    return Fitted(sent, parts, notes)


def merged(rows: Sequence[dict[str, Any]], sent: Sequence[Any], parts: Sequence[int]) -> list[dict[str, Any]]:
    """A row for each of the job's inputs: of one in parts, their mean by length, of length 1 if theirs are."""
    found, start = [], 0
    for place, count in enumerate(parts):
        of_input = rows[start : start + count]
        row = of_input[0]
        if count > 1:
            row = {**row, "embedding": _mean(of_input, [len(part) for part in sent[start : start + count]])}
        found.append(row if row.get("index") == place else {**row, "index": place})
        start += count
    return found


def place_in_job(sent: int, notes: Sequence[Mapping[str, Any]]) -> int:
    """Where the input stands in the job, of which this is the place among those that were sent. `notes` are its
    `Fitted.notes`."""
    more = 0
    for note in notes:
        first = note["input"] + more
        if sent < first:
            break
        more += min(sent - first, note.get("parts", 1) - 1)
    return sent - more


def _pieces(value: Any, length: int, *, split: bool) -> list[Any]:
    if not split:
        return [value[: _cut(value, length)]]
    # Of about equal length: a last part of three words would stand for little, and still be a vector.
    target = math.ceil(len(value) / math.ceil(len(value) / length))
    pieces = []
    while len(value) > length:
        at = _cut(value, min(target, length))
        pieces.append(value[:at])
        value = value[at:]
    return [*pieces, value]


def _pieces_by_tokens(text: str, most: int, tokenizer: TextTokenizer, *, split: bool) -> list[str]:
    room, starts = max(1, most - tokenizer.specials), tokenizer.starts(text)
    pieces, begun, token = [], 0, 0
    while (left := len(starts) - token) > room:
        target = math.ceil(left / math.ceil(left / room)) if split else room
        piece = _piece(text[begun:], starts[token + target] - begun, most, tokenizer)
        pieces.append(piece)
        if not split:
            return pieces
        begun += len(piece)
        token = bisect_left(starts, begun)
    return [*pieces, text[begun:]]


def _piece(text: str, length: int, most: int, tokenizer: TextTokenizer) -> str:
    """The beginning, of about so many characters: what was cut may have more tokens than it had in the whole."""
    length = _cut(text, max(1, length))
    while length > 1 and tokenizer.count(text[:length]) > most:
        length = _cut(text, length - 1)
    return text[:length]


def _cut(value: Any, length: int) -> int:
    """Where to cut, at `length` or before it: between words, or else not within a character of several code points."""
    if not isinstance(value, str):
        return length
    gap = max(value.rfind(" ", 0, length), value.rfind("\n", 0, length)) + 1
    if gap > length * (1 - WORDS_WITHIN):
        return gap
    at = length
    while at > max(1, length - _MOST_MARKS) and _continues(value, at):
        at -= 1
    return at


def _continues(text: str, at: int) -> bool:
    """Whether what begins here belongs to the character before it."""
    return bool(unicodedata.combining(text[at])) or text[at] in _JOINERS or text[at - 1] == "\u200d"


def _note(place: int, value: Any, pieces: Sequence[Any], *, split: bool) -> dict[str, Any]:
    if split:
        return {"input": place, "how": "split", "parts": len(pieces)}
    return {"input": place, "how": "truncated", "kept": len(pieces[0]), "of": len(value)}


def _mean(rows: Sequence[dict[str, Any]], lengths: Sequence[int]) -> Any:
    vectors = [numbers_of(each) if isinstance(each := row["embedding"], str) else each for row in rows]
    whole = sum(lengths)
    mean = [sum(n * of for n, of in zip(column, lengths, strict=True)) / whole for column in zip(*vectors, strict=True)]
    norm = math.hypot(*mean)
    if norm and all(abs(math.hypot(*vector) - 1) < _UNIT for vector in vectors):
        mean = [n / norm for n in mean]
    return packed(mean) if isinstance(rows[0]["embedding"], str) else mean
