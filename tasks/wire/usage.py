"""What a call is charged by: what the provider counted, in every spelling, and the tier. What it did not say stays
unknown, and so does the cost."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final

from ..results import Usage
from .vocabulary import FLEX, Tier

__all__ = ["read_usage", "tier_named"]

_STANDARD: Final = frozenset({"default", "standard", "auto", "on_demand", "standard_only", "unspecified"})
_OWN_PRICE: Final[Mapping[str, Tier]] = {FLEX: FLEX, "priority": "priority"}

_DIGITS = re.compile(r"[0-9]{1,15}(\.[0-9]{1,15})?", re.ASCII)
_MOST_TOKENS = 10**15

# In the order of trust; the field's own names first, then those of the gateways that add other providers' counts.
_INPUT = ("prompt_tokens", "input_tokens")
_OUTPUT = ("completion_tokens", "output_tokens")
_INPUT_DETAILS = ("prompt_tokens_details", "input_tokens_details")
_OUTPUT_DETAILS = ("completion_tokens_details", "output_tokens_details")
_CACHED = ("cached_tokens", "cache_read_tokens", "prompt_cache_hit_tokens", "cache_read_input_tokens")
_CACHE_WRITE = ("cache_write_tokens", "cache_creation_tokens", "cache_creation_input_tokens")
_ODD_IN_DETAILS = frozenset(_CACHE_WRITE)
_ODD_IN_USAGE = frozenset([*_CACHED, *_CACHE_WRITE, "input_tokens_details"])


def read_usage(body: dict[str, Any], *, has_output: bool = True) -> Usage | None:
    """The usage of an answer; None where the provider did not count all that is paid for.

    `has_output` is false for embeddings. Where `total_tokens` is more than both counts together, the rest is reasoning
    that the provider lists beside the answer's tokens, or a cache's tokens that it lists beside the prompt's.
    """
    usage = body.get("usage")
    if not isinstance(usage, dict):
        return None
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if type(prompt) is int and type(completion) is int and prompt > 0 and completion >= 0:
        total = usage.get("total_tokens")
        if total is None or total == prompt + completion:
            cached, written = _caches(usage)
            return Usage(prompt, completion, cached and min(cached, prompt), written and min(written, prompt))
    return _usage(usage, has_output=has_output)


def _usage(usage: dict[str, Any], *, has_output: bool) -> Usage | None:
    prompt, completion, total = _first(usage, _INPUT), _first(usage, _OUTPUT), _tokens(usage.get("total_tokens"))
    cached, written = _caches(usage)
    if prompt is None and total is not None and (completion is not None or not has_output):
        prompt = total - (completion or 0)
    if not prompt or prompt < 0:
        return None
    if completion is None:
        completion = 0 if not has_output else None if total is None else total - prompt
    if completion is None or completion < 0:
        return None
    beside = (total or 0) - prompt - completion
    if beside > 0 and has_output:
        reasoning = _detail(usage, _OUTPUT_DETAILS, ("reasoning_tokens",)) or 0
        if beside in {cached, written, cached + written} and beside != reasoning:
            prompt += beside
        else:
            completion += beside
    return Usage(prompt, completion, min(cached, prompt), min(written, prompt))


def _caches(usage: dict[str, Any]) -> tuple[int, int]:
    """Tokens read from, and written to, the provider's cache."""
    if _ODD_IN_USAGE.isdisjoint(usage):
        details = usage.get("prompt_tokens_details")
        if not details:
            return 0, 0
        if type(details) is dict and type(cached := details.get("cached_tokens")) is int and cached >= 0:
            return (cached, 0) if _ODD_IN_DETAILS.isdisjoint(details) else _odd_caches(usage)
    return _odd_caches(usage)


def _odd_caches(usage: dict[str, Any]) -> tuple[int, int]:
    cached, written = (
        _detail(usage, _INPUT_DETAILS, names) or _first(usage, names) or 0 for names in (_CACHED, _CACHE_WRITE)
    )
    return cached, written


def _detail(usage: dict[str, Any], places: tuple[str, ...], names: tuple[str, ...]) -> int | None:
    details = next((found for place in places if isinstance(found := usage.get(place), dict)), None)
    return None if details is None else _first(details, names)


def _first(counts: dict[str, Any], names: tuple[str, ...]) -> int | None:
    return next((count for name in names if (count := _tokens(counts.get(name))) is not None), None)


def _tokens(value: Any) -> int | None:
    """A count of tokens, a fraction rounded up; None for what is none."""
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MOST_TOKENS:
        return None
    return math.ceil(value)


def tier_named(name: object) -> Tier:
    """The tier of a `service_tier` in a request or an answer; of none the standard tier.

    One by another name, such as OpenAI's `scale`, is paid for in a way that no price list tells.
    """
    name = name.lower() if isinstance(name, str) else "standard"
    return "standard" if name in _STANDARD else _OWN_PRICE.get(name, "other")
