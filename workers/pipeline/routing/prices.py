"""What a call is likely to cost with each target of a route."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from tasks.wire.kinds import KINDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from config.catalog import Route as CatalogRoute

    from ...limiter import Forecast, LimiterRegistry
    from ...prompt.job import PromptJob
    from ...providers import Codec
    from ...providers.codec import RequestSize
    from ..trip import Route
    from .speeds import Speeds

__all__ = ["Prices"]

KNOWN_FOR_S: Final = 0.25
"""So long what a model's calls take and cost is taken to be as it was: one answer among hundreds changes it little, and
to look it up for each job takes longer than all the rest."""

GUESSED_OUTPUT_TOKENS: Final = 256
"""Of an answer, while no target has given enough answers to tell. The job's `max_tokens` bounds it."""


class _Terms(NamedTuple):
    """Of one target: what its calls take, and US dollars a token, of which as much comes from the provider's cache as
    of late. None: not known.
    """

    codec: Codec
    forecast: Forecast
    input_usd: float | None
    output_usd: float


class Prices:
    """For one pipeline's routes."""

    def __init__(
        self, *, limits: LimiterRegistry, find_route: Callable[[str], Route], speeds: Speeds, now: Callable[[], float]
    ) -> None:
        """As the router's."""
        self._limits = limits
        self._find_route = find_route
        self._speeds = speeds
        self._now = now
        self._known: dict[str, tuple[float, list[_Terms], int]] = {}

    def of(self, route: CatalogRoute, job: PromptJob) -> list[float | None]:
        """In US dollars, target by target; None where a price is not known."""
        terms, typical = self._terms(route)
        writes = KINDS[job.kind].writes
        sizes: dict[Codec, RequestSize] = {}
        prices: list[float | None] = []
        for codec, forecast, input_usd, output_usd in terms:
            if input_usd is None:
                prices.append(None)
                continue
            if (size := sizes.get(codec)) is None:
                size = sizes[codec] = codec.size(job)
            price = input_usd * (size.input_tokens or forecast.input_tokens(size.input_chars, size.media))
            if writes:
                # Where a model's answers are not known, they are such as the others'.
                output = typical if forecast.output_tokens is None else forecast.output_tokens
                price += output_usd * size.answers * (min(output, size.max_tokens) if size.max_tokens else output)
            prices.append(price)
        return prices

    def _terms(self, route: CatalogRoute) -> tuple[list[_Terms], int]:
        """Of the targets, and the typical length of their answers (tokens)."""
        now = self._now()
        known = self._known.get(route.name)
        if known is None or not known[0] <= now < known[0] + KNOWN_FOR_S:
            terms = [self._look_up(name, now) for name in route.targets]
            outputs = [each.forecast.output_tokens for each in terms if each.forecast.output_tokens is not None]
            typical = sum(outputs) // len(outputs) if outputs else GUESSED_OUTPUT_TOKENS
            known = self._known[route.name] = now, terms, typical
        return known[1], known[2]

    def _look_up(self, name: str, now: float) -> _Terms:
        route = self._find_route(name)
        forecast = self._limits.forecast(route.model)
        price = route.model.price
        rates = None if price is None else price.rates_usd
        if rates is None:
            return _Terms(route.codec, forecast, None, 0.0)
        share = self._speeds.cached_share(route.alias, now=now)
        return _Terms(route.codec, forecast, rates.input + share * (rates.cached_input - rates.input), rates.output)
