"""What calls cost, by the catalogue's prices. An unknown price makes an unknown cost, never 0."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from config.catalog import Model
    from tasks.results import Attempt, Usage
    from tasks.wire.vocabulary import Tier

__all__ = ["failed_cost_usd", "known_cost_usd", "total_cost_usd"]


def known_cost_usd(model: Model, usage: Usage | None, tier: Tier = "standard") -> float | None:
    """What a call cost in US dollars; None where the provider's count or the price is not known."""
    cost = _call_cost(model, usage, tier)
    return None if cost is None else float(cost)


def total_cost_usd(failed: Iterable[Attempt], model: Model, usage: Usage | None, tier: Tier) -> float | None:
    """What an answer cost, with the calls before it whose tokens were counted, each at the price of its own model."""
    cost = _call_cost(model, usage, tier)
    before = None if cost is None else _failed_cost(failed)
    return None if cost is None or before is None else float(cost + before)


def failed_cost_usd(failed: Iterable[Attempt]) -> float | None:
    """What the failed calls cost together: 0 where no tokens were counted, None where one cost is not known."""
    cost = _failed_cost(failed)
    return None if cost is None else float(cost)


def _failed_cost(failed: Iterable[Attempt]) -> Decimal | None:
    total = Decimal(0)
    for attempt in failed:
        if attempt.usage is not None:
            if attempt.cost_usd is None:
                return None
            total += Decimal(repr(attempt.cost_usd))
    return total


def _call_cost(model: Model, usage: Usage | None, tier: Tier) -> Decimal | None:
    if model.price is None:
        return None
    if usage is None:
        return Decimal(0) if model.price.is_free else None
    return model.price.cost(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cached_tokens=usage.cached_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        tier=tier,
    )
