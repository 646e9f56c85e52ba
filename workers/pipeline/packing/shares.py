"""What a call took, shared out among its inputs so that the sums are exact."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks.results import Usage

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["added", "share_out", "shared_usage"]


def share_out(total: int, weights: Sequence[int]) -> list[int]:
    """Whole numbers in proportion to the weights, which add up to `total`."""
    whole = sum(weights)
    if not whole:
        weights, whole = [1] * len(weights), len(weights)
    shares, given, passed = [], 0, 0
    for weight in weights:
        passed += weight
        until = total * passed // whole
        shares.append(until - given)
        given = until
    return shares


def shared_usage(usage: Usage, weights: Sequence[int]) -> list[Usage]:
    """The part of each. Each kind of tokens adds up to what the provider counted."""
    kinds = (usage.input_tokens, usage.output_tokens, usage.cached_tokens, usage.cache_write_tokens)
    columns = [share_out(kind, weights) if kind else [0] * len(weights) for kind in kinds]
    return [Usage(*row) for row in zip(*columns, strict=True)]


def added(one: Usage | None, other: Usage | None) -> Usage | None:
    """Both together; None where one is not known."""
    return None if one is None or other is None else one + other
