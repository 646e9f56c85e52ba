"""How many tokens a request will take, before it is sent."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

from ..providers.size import NO_MEDIA, Media
from .cost import MOST_CHARS_PER_TOKEN, Cost, Forecast, media_tokens_of, tokens_of

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

    from .cost import TokenUsage

__all__ = ["Estimator", "Estimators"]

MOST_MODELS = 1_024
"""Of so many models the lengths of answers are remembered."""

CHARS_PER_TOKEN = 4.0
"""English prose; other text is learned from what providers count."""

_LEAST_CHARS_PER_TOKEN = 0.25
_LEARNING = 0.05

_FIRST_MEDIA_TOKENS = (1_000.0, 500.0, 5_000.0)
"""Of a picture, a sound and a file, until the model has counted one. Models differ by more than ten times."""

_MEDIA_LEARNING = 0.4
_LEAST_MEDIA_TOKENS = 10.0
_MOST_MEDIA_TOKENS = 1_000_000.0

_WINDOW = 256
_QUANTILE = 0.9
"""Reserving `max_tokens` leaves most of a limit unused for as long as calls last; the mean would be too low half of the
time. What an answer takes beyond its reservation is charged when it is settled."""

_FIRST_OUTPUT_TOKENS = 1_024
"""Until the model has answered. What is reserved too low at first is sent too fast, and has to be paid back."""

_ENOUGH_ANSWERS = 32
"""Fewer may all have been short by chance, and their reservations stand for as long as requests wait: until then, no
less than the first guess."""

_LEAP = 4
"""Times the longest answer of late, or the first guess: as more an answer does not count. While few have come, one odd
number would be what is reserved for each; answers that really are longer are believed with the next ones."""

_CARE = 1.5
"""Times the quantile: what a request that has waited with the first guess gets in its place."""

_LONGER = 2
"""Times the longest answer of late: what the next one may be."""

_OVERHEAR_ONE_IN = 8

_SHORT_OUTPUT_TOKENS = 64
"""What an answer is taken to need until then where waiting is foretold. A parked job that comes back too early is sent
away once more; one that comes back too late leaves the limit unused."""


def _most_output(cost: Cost, longest: int) -> int:
    """The output tokens of a request whose answers are at most `longest`; its reservation, if that is no estimate."""
    if not cost.answers:
        return cost.output_tokens
    most = max(longest * cost.answers, cost.output_tokens)
    return min(most, cost.most_output_tokens) if cost.most_output_tokens else most


class Estimator:
    """One model's tokens per character, picture, sound and file, and the lengths of its answers, as a moving 90th
    percentile, and as a mean."""

    def __init__(self) -> None:
        self._chars_per_token = CHARS_PER_TOKEN
        self._tokens_each = list(_FIRST_MEDIA_TOKENS)
        self._recent: deque[int] = deque()
        self._sorted: list[int] = []
        self._sum = 0
        self._overheard = 0

    def cost(
        self,
        *,
        input_chars: int,
        input_tokens: int = 0,
        media: Media = NO_MEDIA,
        max_tokens: int | None = None,
        answers: int = 1,
    ) -> Cost:
        """The reservation for a prompt of so many characters, and of pictures, sounds and files.

        `max_tokens` bounds each of the `answers` (`n`). `input_tokens` came as tokens, in the prompt's place: the
        estimate learns from none.
        """
        output, most = self._output_tokens(), 0
        if max_tokens is not None:
            output, most = min(output, max_tokens), max_tokens * answers
        input_tokens = input_tokens or tokens_of(input_chars, media, self._chars_per_token, self._tokens_each)
        return Cost(input_tokens, max(0, output * answers), input_chars, answers, most, media)

    def embedding_cost(self, *, input_chars: int, input_tokens: int = 0, media: Media = NO_MEDIA) -> Cost:
        """Embeddings have no output. `input_tokens` came as tokens, and are counted; the estimate learns from none."""
        if input_tokens and not input_chars:
            return Cost(input_tokens)
        text = tokens_of(input_chars, media, self._chars_per_token, self._tokens_each)
        return Cost(input_tokens + text) if input_tokens else Cost(text, 0, input_chars, media=media)

    @property
    def chars_per_token(self) -> float:
        """Of text, as far as is known."""
        return self._chars_per_token

    def renewed(self, cost: Cost) -> Cost:
        """The reservation of a request that has waited since nothing was known, now that something is.

        Many wait with the same guess, so it gives way with care: to half as much again as the quantile of the first
        answers. Of two estimates from answers the lower would be too low too often, so such a one stays.
        """
        is_guess = cost.answers > 0 and cost.output_tokens == _FIRST_OUTPUT_TOKENS * cost.answers
        if self.is_cold or not is_guess:
            return cost
        output = int(_CARE * self._output_tokens()) * cost.answers
        return replace(cost, output_tokens=min(cost.output_tokens, output))

    @property
    def is_cold(self) -> bool:
        """Whether so few answers have come that the reservations were mostly guesses."""
        return len(self._recent) < _ENOUGH_ANSWERS

    def typical(self, cost: Cost) -> Cost:
        """What a request with this reservation takes on average, when it is settled."""
        return replace(cost, output_tokens=self._typical_output(cost)) if cost.answers else cost

    def forecast(self) -> Forecast:
        """What requests take on average, as far as is known now."""
        return Forecast(self._chars_per_token, tuple(self._tokens_each), None if self.is_cold else self._mean_output())

    def _typical_output(self, cost: Cost) -> int:
        output = _SHORT_OUTPUT_TOKENS if self.is_cold else self._mean_output()
        return min(cost.output_tokens, output * cost.answers)

    def _mean_output(self) -> int:
        return self._sum // len(self._recent)

    def beyond_tokens(self, costs: Iterable[Cost]) -> int:
        """What one of these requests may take beyond its reservation: as much as it permits, or an answer twice as long
        as the longest of late. The longest alone was too little until many had come."""
        longest = _LONGER * self._sorted[-1] if self._sorted else 0
        return max((_most_output(cost, longest) - cost.output_tokens for cost in costs), default=0)

    def learn(self, cost: Cost, usage: TokenUsage) -> None:
        """What the request really took."""
        if cost.media is not NO_MEDIA and any(cost.media):
            self._learn_media(cost, usage.input_tokens)
        elif cost.input_chars > 0 and usage.input_tokens > 0:
            seen = cost.input_chars / usage.input_tokens
            seen = min(max(seen, _LEAST_CHARS_PER_TOKEN), MOST_CHARS_PER_TOKEN)
            self._chars_per_token += _LEARNING * (seen - self._chars_per_token)
        if usage.output_tokens > 0:
            self._remember(-(-usage.output_tokens // max(1, cost.answers)))

    def _learn_media(self, cost: Cost, input_tokens: int) -> None:
        """Each kind in the prompt is as far from its estimate as all of them together."""
        if input_tokens <= 0:
            return
        text_tokens = cost.input_chars / self._chars_per_token
        share = max(input_tokens - text_tokens, 1.0) / media_tokens_of(cost.media, self._tokens_each)
        for kind, count in enumerate(cost.media):
            if count:
                seen = min(max(share * self._tokens_each[kind], _LEAST_MEDIA_TOKENS), _MOST_MEDIA_TOKENS)
                self._tokens_each[kind] += _MEDIA_LEARNING * (seen - self._tokens_each[kind])

    def overhear(self, usage: TokenUsage) -> None:
        """What a request took that had no estimate: should a limit be learned later, the lengths of answers are known.

        Once enough are, one in so many will do: it is done for each request to a model without limits.
        """
        self._overheard += 1
        if usage.output_tokens > 0 and (self.is_cold or self._overheard % _OVERHEAR_ONE_IN == 0):
            self._remember(usage.output_tokens)

    def _remember(self, output_tokens: int) -> None:
        if len(self._recent) == _WINDOW:
            oldest = self._recent.popleft()
            self._sum -= oldest
            del self._sorted[bisect_left(self._sorted, oldest)]
        longest = max(self._sorted[-1] if self._sorted else 0, _FIRST_OUTPUT_TOKENS)
        output_tokens = min(output_tokens, _LEAP * longest)
        self._recent.append(output_tokens)
        self._sum += output_tokens
        insort(self._sorted, output_tokens)

    def _output_tokens(self) -> int:
        if not self._sorted:
            return _FIRST_OUTPUT_TOKENS
        found = self._sorted[min(len(self._sorted) - 1, int(len(self._sorted) * _QUANTILE))]
        return found if len(self._sorted) >= _ENOUGH_ANSWERS else max(found, _FIRST_OUTPUT_TOKENS)


class Estimators:
    """One for each name, which are no more than a number: `any_model` lets jobs name what they like."""

    def __init__(self) -> None:
        self._by_name: dict[Hashable, Estimator] = {}

    def of(self, name: Hashable) -> Estimator:
        """That of the name. Beyond `MOST_MODELS` the oldest is forgotten."""
        if (estimator := self._by_name.get(name)) is None:
            estimator = self._by_name[name] = Estimator()
            if len(self._by_name) > MOST_MODELS:
                del self._by_name[next(iter(self._by_name))]
        return estimator
