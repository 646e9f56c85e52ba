"""What one request takes from the limits."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from ..providers.size import NO_MEDIA, Media

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "MOST_CALL_TOKENS",
    "MOST_CHARS_PER_TOKEN",
    "UNKNOWN",
    "CallSize",
    "Cost",
    "DimensionName",
    "Forecast",
    "TokenUsage",
    "media_tokens_of",
    "tokens_of",
]

MOST_CHARS_PER_TOKEN = 12.0
"""No text is counted more favourably."""

MOST_CALL_TOKENS = 10_000_000
"""What a provider counts for one call beyond this is an error of its counting: the largest context holds as many."""

DimensionName = Literal["requests", "tokens", "input", "output"]


class TokenUsage(Protocol):
    """What the provider counted, such as `tasks.results.Usage`."""

    @property
    def input_tokens(self) -> int: ...
    @property
    def output_tokens(self) -> int: ...


class CallSize(NamedTuple):
    """How large a call to a model may be within every limit of tokens, and how many characters of text make one."""

    most_tokens: int
    chars_per_token: float


class Forecast(NamedTuple):
    """What requests to a model are likely to take. `media_tokens`: of a picture, a sound, a file. `output_tokens`: of
    one answer; None: too few have come to tell.
    """

    chars_per_token: float
    media_tokens: tuple[float, ...]
    output_tokens: int | None

    def input_tokens(self, chars: int, media: Media = NO_MEDIA) -> int:
        """Of a prompt of so many characters, and of pictures, sounds and files."""
        return tokens_of(chars, media, self.chars_per_token, self.media_tokens)


def tokens_of(chars: int, media: Media, chars_per_token: float, each: Sequence[float]) -> int:
    """What a prompt takes, where a picture, a sound and a file take `each`."""
    tokens = int(chars / chars_per_token) + 1
    return tokens if media is NO_MEDIA else tokens + int(media_tokens_of(media, each))


def media_tokens_of(media: Media, each: Sequence[float]) -> float:
    """What it takes besides its text."""
    return sum(count * tokens for count, tokens in zip(media, each, strict=True))


@dataclass(frozen=True, slots=True)
class Cost:
    """One request's reservation.

    `input_chars` and `media` are what `input_tokens` was estimated from: the estimate learns by them. `answers` is for
    how many answers `output_tokens` was estimated; 0: it is no estimate. `most_output_tokens` is what the request
    permits them all together; 0 where it does not say.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    input_chars: int = 0
    answers: int = 0
    most_output_tokens: int = 0
    media: Media = NO_MEDIA

    def of(self, dimension: DimensionName) -> int:
        """How much of this dimension's limit the request takes."""
        match dimension:
            case "requests":
                return 1
            case "tokens":
                return self.input_tokens + self.output_tokens
            case "input":
                return self.input_tokens
            case "output":
                return self.output_tokens

    def least(self, dimension: DimensionName) -> int:
        """The least that the request can take of this dimension's limit, where the rest of `of` is an estimate."""
        input_tokens, output_tokens = self.input_tokens, 0 if self.answers else self.output_tokens
        if self.input_chars or self.media is not NO_MEDIA:
            input_tokens = min(input_tokens, ceil(self.input_chars / MOST_CHARS_PER_TOKEN))
        return Cost(input_tokens, output_tokens).of(dimension)


UNKNOWN = Cost()
"""Of a request of which nothing is reserved, because nothing is limited: it counts with what it took."""
