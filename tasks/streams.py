"""An answer as it comes: what `Job.stream` and `Job.events` yield, and how places in it are numbered."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final, Literal, Self

from .results import Usage

__all__ = ["EventKind", "Piece", "StreamEvent"]

EventKind = Literal["started", "text", "restarted", "full", "usage", "end"]

_RUN: Final = 2**32
"""What a number grows by with each new beginning: more than an answer has characters."""


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """One thing that has become of an answer.

    `started`: a worker has asked the provider. `text`: a piece of the answer, in `text`. `restarted`: the answer begins
    anew, and all text before belongs to a call that broke off: throw it away. `full`: so much has come that the rest
    follows at the end, in one piece. `usage`: what the provider counted. `end`: the answer is whole.

    `number` is the place after it, and what `after` takes: how many characters of text there are, and 2**32 more for
    each time that the answer began anew. What has no text may come again to a reader that comes back.
    """

    kind: EventKind
    number: int
    text: str = field(default="", repr=False)
    usage: Usage | None = None


class Piece(str):
    """A piece of an answer's text. `number` is the place after it, and what `after` takes."""

    __slots__ = ("number",)

    number: int

    @classmethod
    def of(cls, event: StreamEvent) -> Self:
        piece = cls(event.text)
        piece.number = event.number
        return piece


def place_of(number: int) -> tuple[int, int]:
    """The run, from 1, and the characters of its text."""
    return number // _RUN + 1, number % _RUN


def number_of(run: int, chars: int) -> int:
    return (run - 1) * _RUN + chars


def digest_of(text: str) -> str:
    """Of a whole answer, by which a reader knows that what it has read belongs to it."""
    return blake2b(text.encode(), digest_size=8).hexdigest()
