"""What a provider's `x-ratelimit-*` headers say of its limits. No I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .rate import WINDOW_S

if TYPE_CHECKING:
    from collections.abc import Mapping

    from config.catalog import Limits

__all__ = ["LEARNED_LIMITS", "LearnedLimit", "RateHeader", "learned", "rate_headers", "reset_s", "wait_s"]

LearnedLimit = Literal["rpm", "tpm", "rpd"]
"""The limits of the catalogue that headers can tell."""

LEARNED_LIMITS: tuple[LearnedLimit, ...] = ("rpm", "tpm", "rpd")

_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)", re.ASCII)
_WHOLE = re.compile(rf"(?:{_PART.pattern})+", re.ASCII)
_NUMBER = re.compile(r"[0-9]{1,15}(\.[0-9]{1,9})?", re.ASCII)
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_MAX_CHARS = 40
_MAX_RESET_S = 86_400.0
_MAX_LIMIT = 1_000_000_000
"""A minute. Some providers write as much where nothing is limited."""

_NAMES: tuple[Literal["requests", "tokens"], ...] = ("requests", "tokens")
_ROUNDING_S = 1.0


@dataclass(frozen=True, slots=True)
class RateHeader:
    """One limited quantity as the provider sees it: `remaining` of `limit`, and all of it free in `reset_s` seconds."""

    name: Literal["requests", "tokens"]
    limit: int
    remaining: int
    reset_s: float

    @property
    def is_daily(self) -> bool:
        """Whether the limit must be a day's: a minute's is all free again within a minute, however it is counted."""
        return self.reset_s > WINDOW_S + _ROUNDING_S

    @property
    def tells(self) -> LearnedLimit | None:
        """The limit of the catalogue that it tells; none for the tokens of a day."""
        if self.name == "tokens":
            return None if self.is_daily else "tpm"
        return "rpd" if self.is_daily else "rpm"

    def as_map(self) -> dict[str, str | int | float]:
        """As acquire.lua reads it."""
        return {
            "tells": self.tells or "none",
            "name": self.name,
            "limit": self.limit,
            "remaining": self.remaining,
            "reset_s": round(self.reset_s, 3),
        }


def reset_s(text: str) -> float | None:
    """Seconds of a duration such as `6m0s`, `1s`, `20ms` or `1.5`. None for anything else, and for more than a day."""
    text = text.strip()
    if not 0 < len(text) <= _MAX_CHARS:
        return None
    if _NUMBER.fullmatch(text):
        found = float(text)
    elif _WHOLE.fullmatch(text):
        found = sum(float(amount) * _UNIT_S[unit] for amount, unit in _PART.findall(text))
    else:
        return None
    return found if found <= _MAX_RESET_S else None


def rate_headers(headers: Mapping[str, str]) -> list[RateHeader]:
    """The quantities that have all three headers, readable. Names are looked up in lower case."""
    return [found for name in _NAMES if (found := _one(name, headers)) is not None]


def learned(limits: Limits, stated: Mapping[LearnedLimit, int]) -> Limits:
    """`limits` with what answers have stated: limits that the catalogue lacks, and lower ones than it states."""
    news: dict[str, int] = {
        field: limit for field, limit in stated.items() if (known := getattr(limits, field)) is None or limit < known
    }
    return limits.model_copy(update=news) if news else limits


def wait_s(headers: Mapping[str, str]) -> float | None:
    """How long a 429 without Retry-After means: until what is spent is free again, at most a minute.

    Azure OpenAI sends `remaining` and `reset` without the limit, so these two are enough.
    """
    resets = [_reset(name, headers) for name in _NAMES if _count(headers, f"remaining-{name}") == 0]
    spent = [reset for reset in resets if reset is not None]
    return min(max(spent), WINDOW_S) if spent else None


def _one(name: Literal["requests", "tokens"], headers: Mapping[str, str]) -> RateHeader | None:
    limit = _count(headers, f"limit-{name}")
    if not limit or limit > _MAX_LIMIT:
        return None
    if (remaining := _count(headers, f"remaining-{name}")) is None:
        return None
    reset = _reset(name, headers)
    return None if reset is None else RateHeader(name, limit, min(remaining, limit), reset)


def _reset(name: str, headers: Mapping[str, str]) -> float | None:
    return reset_s(headers.get(f"x-ratelimit-reset-{name}", ""))


def _count(headers: Mapping[str, str], name: str) -> int | None:
    if (text := headers.get(f"x-ratelimit-{name}")) is None:
        return None
    text = text.strip()
    return int(float(text)) if _NUMBER.fullmatch(text) else None
