"""What a provider's `x-ratelimit-*` headers say of its limits. No I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .rate import WINDOW_S

if TYPE_CHECKING:
    from collections.abc import Mapping

    from config.catalog import Limits

__all__ = ["RateHeader", "learned", "rate_headers", "reset_s", "wait_s"]

_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)", re.ASCII)
_WHOLE = re.compile(rf"(?:{_PART.pattern})+", re.ASCII)
_NUMBER = re.compile(r"[0-9]{1,15}(\.[0-9]{1,9})?", re.ASCII)
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_MAX_CHARS = 40
_MAX_RESET_S = 86_400.0

_NAMES: tuple[Literal["requests", "tokens"], ...] = ("requests", "tokens")
_MIN_DAILY_PERIOD_S = 3_600.0


@dataclass(frozen=True, slots=True)
class RateHeader:
    """One limited quantity as the provider sees it: `remaining` of `limit`, and all of it free in `reset_s` seconds."""

    name: Literal["requests", "tokens"]
    limit: int
    remaining: int
    reset_s: float

    @property
    def is_daily(self) -> bool:
        """Whether the limit must be a day's: what was used comes back far too slowly for a minute's."""
        used = self.limit - self.remaining
        return used > 0 and self.reset_s * self.limit / used > _MIN_DAILY_PERIOD_S

    def spelt(self) -> str:
        """As acquire.lua reads it."""
        return f"{self.name}:{self.limit}:{self.remaining}:{self.reset_s:.3f}"


def reset_s(text: str) -> float | None:
    """Seconds of a duration such as `6m0s`, `1s`, `20ms` or `1.5`; at most a day. None for anything else."""
    text = text.strip()
    if not 0 < len(text) <= _MAX_CHARS:
        return None
    if _NUMBER.fullmatch(text):
        return min(float(text), _MAX_RESET_S)
    if not _WHOLE.fullmatch(text):
        return None
    return min(sum(float(amount) * _UNIT_S[unit] for amount, unit in _PART.findall(text)), _MAX_RESET_S)


def rate_headers(headers: Mapping[str, str]) -> list[RateHeader]:
    """The quantities that have all three headers, readable. Names are looked up in lower case."""
    return [found for name in _NAMES if (found := _one(name, headers)) is not None]


def learned(limits: Limits, headers: list[RateHeader]) -> Limits:
    """`limits` with what the headers add: limits that the catalogue does not state, and lower ones than it states."""
    told = {"rpm" if each.name == "requests" else "tpm": each.limit for each in headers if not each.is_daily}
    if any(each.name == "requests" and each.is_daily for each in headers):
        told["rpd"] = next(each.limit for each in headers if each.name == "requests")
    news = {field: limit for field, limit in told.items() if (known := getattr(limits, field)) is None or limit < known}
    return limits.model_copy(update=news) if news else limits


def wait_s(headers: list[RateHeader]) -> float | None:
    """How long a 429 without Retry-After means: until what is spent is free again."""
    spent = [each.reset_s for each in headers if each.remaining == 0]
    return min(max(spent), WINDOW_S) if spent else None


def _one(name: Literal["requests", "tokens"], headers: Mapping[str, str]) -> RateHeader | None:
    limit, remaining = _count(headers, f"limit-{name}"), _count(headers, f"remaining-{name}")
    if not limit or remaining is None:
        return None
    reset = reset_s(headers.get(f"x-ratelimit-reset-{name}", ""))
    return None if reset is None else RateHeader(name, limit, min(remaining, limit), reset)


def _count(headers: Mapping[str, str], name: str) -> int | None:
    text = headers.get(f"x-ratelimit-{name}", "").strip()
    return int(float(text)) if _NUMBER.fullmatch(text) else None
