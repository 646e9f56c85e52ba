"""Inputs that are longer than the model takes: refused before the call, cut, or split."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ...prompt.failure import Failure, Unserved
from ...providers import Answer
from ..packing.inputs import family_of, inputs_of
from ..packing.too_long import fitted, fitted_by_tokens, merged
from ..vectors import in_order

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ...limiter import LimiterRegistry
    from ...prompt.job import PromptJob
    from ..packing.tokens import TextTokenizer
    from ..packing.too_long import Fitted
    from ..trip import Down, Shape, Trip

__all__ = ["InputLength"]

T = TypeVar("T")

SURELY_LONGER: Final = 1.2
"""Times the model's length, as estimated, an input is refused unsent. Of one nearer to it the provider decides."""

KEPT_SHARES: Final = (0.9, 0.7, 0.5)
"""How much of the model's length is used where tokens are estimated: first, and if the provider finds that too long."""

COUNTED_ASIDE: Final = 16_384
"""Characters of a job from which on its tokens are counted in a thread: some milliseconds."""


class InputLength:
    """Refuses inputs longer than the model takes, or cuts or splits them as the job says."""

    def __init__(self, limits: LimiterRegistry, tokenizers: Mapping[str, TextTokenizer]) -> None:
        """`tokenizers` by the paths that models name."""
        self._limits = limits
        self._tokenizers = tokenizers

    def serves(self, shape: Shape) -> bool:
        return shape.kind == "embed"

    async def __call__(self, trip: Trip, down: Down) -> Answer:
        policy, most = trip.job.options.too_long, trip.route.model.max_tokens_per_input
        if most is None:
            if policy == "reject":
                return await down(trip)
            raise Unserved(
                "bad_request",
                f"`too_long` is {policy!r}, and how much {trip.route.alias} takes is not known; state its "
                "`max_tokens_per_input` in the catalogue, or leave `too_long` out",
            )
        inputs = inputs_of(trip.job.body)
        if family_of(inputs) is None:
            if policy == "reject":
                return await down(trip)
            raise Failure("bad_request", f"`too_long` is {policy!r}, and the inputs are neither texts nor token ids")
        tokenizer = self._tokenizers.get(trip.route.model.tokenizer or "")
        if policy != "reject":
            return await self._fit(trip, down, inputs, most, tokenizer)
        if tokenizer is not None and isinstance(inputs[0], str):
            await _aside(inputs, lambda: _refuse_counted(inputs, most, tokenizer))
        else:
            self._refuse(trip, inputs, most)
        return await down(trip)

    def _refuse(self, trip: Trip, inputs: Sequence[Any], most: int) -> None:
        """Raises `Unserved` for an input that is surely too long."""
        per_token = self._limits.call_size(trip.route.model).chars_per_token
        for place, value in enumerate(inputs):
            is_text = isinstance(value, str)
            if len(value) <= (most * per_token * SURELY_LONGER if is_text else most):
                continue
            tokens = f"about {len(value) / per_token:,.0f}" if is_text else f"{len(value):,}"
            raise _too_long(place, tokens, most)

    async def _fit(
        self, trip: Trip, down: Down, inputs: Sequence[Any], most: int, tokenizer: TextTokenizer | None
    ) -> Answer:
        """Send what fits. The provider may find an estimate too high, and then less is sent; so it may where it counts
        otherwise than the tokenizer."""
        job = trip.job
        if not isinstance(inputs[0], str):
            tokenizer = None
        shares = _shares(inputs, is_counted=tokenizer is not None)
        try:
            for share in shares:
                if tokenizer is not None:
                    sent = await _aside(inputs, partial(_fitted_by_tokens, job, inputs, int(most * share), tokenizer))
                else:
                    sent = self._fitted(trip, inputs, most, share)
                trip.shortened = sent.notes or None
                trip.job = replace(job, body={**job.body, "input": sent.inputs}) if sent.notes else job
                try:
                    answer = await down(trip)
                except Failure as failure:
                    if failure.code != "too_large" or failure.http_status is None or share == shares[-1]:
                        raise
                else:
                    break
        finally:
            trip.job = job
        if len(sent.inputs) == len(inputs):
            return answer
        rows = merged(in_order(answer.response["data"]), sent.inputs, sent.parts)
        response = {**answer.response, "data": rows}
        return Answer(answer.text, response, answer.usage)

    def _fitted(self, trip: Trip, inputs: Sequence[Any], most: int, share: float) -> Fitted:
        per_token = self._limits.call_size(trip.route.model).chars_per_token
        is_text = isinstance(inputs[0], str)
        kept = max(1, int(most * share * per_token)) if is_text else most
        # At first, what seems to fit is left as it is.
        fits = int(most * per_token) if is_text and share == KEPT_SHARES[0] else kept
        lengths = [len(value) if len(value) <= fits else kept for value in inputs]
        return fitted(inputs, lengths, split=trip.job.options.too_long == "split")


def _shares(inputs: Sequence[Any], *, is_counted: bool) -> tuple[float, ...]:
    if not isinstance(inputs[0], str):
        return (1.0,)
    return (1.0, *KEPT_SHARES) if is_counted else KEPT_SHARES


def _refuse_counted(inputs: Sequence[str], most: int, tokenizer: TextTokenizer) -> None:
    for place, text in enumerate(inputs):
        if not tokenizer.surely_fits(text, most) and (tokens := tokenizer.count(text)) > most:
            raise _too_long(place, f"{tokens:,}", most)


def _fitted_by_tokens(job: PromptJob, inputs: Sequence[str], most: int, tokenizer: TextTokenizer) -> Fitted:
    return fitted_by_tokens(inputs, max(1, most), tokenizer, split=job.options.too_long == "split")


def _too_long(place: int, tokens: str, most: int) -> Unserved:
    return Unserved(
        "too_large",
        f"input {place} of the job (counted from 0) has {tokens} tokens, and the model takes {most:,}; shorten "
        "it, or set `too_long` to 'truncate' or 'split'",
    )


async def _aside(texts: Sequence[str], count: Callable[[], T]) -> T:
    """What `count` gives, without standing in the way of other jobs where it takes long."""
    if sum(map(len, texts)) < COUNTED_ASIDE:
        return count()
    return await asyncio.to_thread(count)
