"""What rate headers say of a provider's limits, in every spelling. No I/O.

OpenAI's own names are looked up first. Of others the words count, not their order: `x-rate-limit-reset-tokens`,
`anthropic-ratelimit-input-tokens-remaining`, `x-ratelimit-limit-tokens-minute`, `ratelimit-limit`.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple

from ...providers.durations import simple_duration_s, until_s
from ..rate import WINDOW_S

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from config.catalog import Limits

__all__ = ["LEARNED_LIMITS", "HeaderReader", "LearnedLimit", "RateHeader", "learned", "rate_headers", "wait_s"]

LearnedLimit = Literal["rpm", "tpm", "rpd", "input_tpm", "output_tpm"]
"""The limits of the catalogue that headers can tell."""

LEARNED_LIMITS: tuple[LearnedLimit, ...] = ("rpm", "tpm", "rpd", "input_tpm", "output_tpm")

Quantity = Literal["requests", "tokens", "input", "output"]
Part = Literal["limit", "remaining", "reset", "window"]

_NUMBER = re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,9})?", re.ASCII)
_LEADING_NUMBER = re.compile(r"[0-9]{1,15}", re.ASCII)
_POLICY_WINDOW = re.compile(r";\s*w=([0-9]{1,8})\b", re.ASCII)
_DAY_S = 86_400.0
_MAX_LIMIT = 1_000_000_000
"""A minute. Some providers write as much where nothing is limited."""

_LIMIT_CHARS = 9
_USUAL: tuple[tuple[Quantity, str, str, str], ...] = (
    ("requests", "x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"),
    ("tokens", "x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"),
)
_ROUNDING_S = 1.0
_RESET_ROUNDING_S = 0.02
_LEAST_USED, _ANSWER_S = 0.5, 3.0
"""Of one request a part may have come back before its answer, which takes so long."""

_PREFIX = re.compile(r"(?:llm_provider-)?(?:x-|anthropic-)*rate-?limit(bysize)?(?:-(.+))?", re.ASCII)
_PARTS: dict[str, Part] = {
    "limit": "limit",
    "remaining": "remaining",
    "reset": "reset",
    "renewalperiod": "window",
    "policy": "window",
}
_QUANTITIES: dict[str, Quantity] = {
    **dict.fromkeys(("requests", "request", "req"), "requests"),
    **dict.fromkeys(("tokens", "token"), "tokens"),
    **dict.fromkeys(("input", "prompt"), "input"),
    **dict.fromkeys(("output", "generated", "completion"), "output"),
}
_PERIODS_S = {
    **dict.fromkeys(("second", "1s"), 1.0),
    **dict.fromkeys(("minute", "min", "1m"), WINDOW_S),
    **dict.fromkeys(("hour", "1h"), 3_600.0),
    **dict.fromkeys(("day", "1d", "24h"), _DAY_S),
    **dict.fromkeys(("month", "30d"), 30 * _DAY_S),
}

_LOOK_EVERY = 16
"""A provider whose answers have no rate headers is asked for odd ones once in so many: a look takes microseconds."""


class RateHeader(NamedTuple):
    """One limited quantity as the provider sees it: `remaining` of `limit`, and all of it free in `reset_s` seconds.

    `window_s` is how long the limit counts, where the header says so.
    """

    name: Quantity
    limit: int
    remaining: int
    reset_s: float
    window_s: float | None = None

    @property
    def is_daily(self) -> bool:
        """Whether the limit must be a day's: a minute's is all free again within a minute, however it is counted."""
        if self.window_s is not None:
            return self.window_s == _DAY_S
        return self.reset_s > WINDOW_S + _ROUNDING_S

    @property
    def tells(self) -> LearnedLimit | None:
        """The limit of the catalogue that it tells; none for the tokens of a day, for an hour's or a month's, and while
        it may be a minute's or a day's."""
        if self.window_s not in (None, WINDOW_S, _DAY_S):
            return None
        if self.window_s is None and self.reset_s * self.limit >= _LEAST_USED * _DAY_S and self._may_be_daily():
            return None  # asked of each answer, hence the shortcut
        if self.name == "requests":
            return "rpd" if self.is_daily else "rpm"
        if self.is_daily:
            return None
        return "tpm" if self.name == "tokens" else "input_tpm" if self.name == "input" else "output_tpm"

    def _may_be_daily(self) -> bool:
        """Whether a day's bucket of which little was used would say the same, as Groq's of requests does: all is free
        again when what was used has come back. A minute's bucket has it back 1,440 times as soon, and fixed windows of
        a minute say it by chance.
        """
        if self.reset_s > WINDOW_S + _ROUNDING_S:
            return False
        a_second = self.limit / _DAY_S
        used, rounding = self.limit - self.remaining, _RESET_ROUNDING_S * a_second
        return max(used - 1, 1 - _ANSWER_S * a_second) - rounding <= self.reset_s * a_second <= used + rounding

    def as_map(self) -> dict[str, str | int | float]:
        """As acquire.lua reads it."""
        return {
            "tells": self.tells or "none",
            "name": self.name,
            "limit": self.limit,
            "remaining": self.remaining,
            "reset_s": round(self.reset_s, 3),
        }


class HeaderReader:
    """Reads the headers of one limiter's answers."""

    def __init__(self, now: Callable[[], float]) -> None:
        """`now` gives epoch seconds."""
        self._now = now
        self._skips = 0

    def read(self, headers: Mapping[str, str]) -> list[RateHeader]:
        """See `rate_headers`; odd names are not looked for in each answer of a provider that has none."""
        if "x-ratelimit-limit-requests" in headers or "x-ratelimit-limit-tokens" in headers:
            return rate_headers(headers, self._now())
        if self._skips:
            self._skips -= 1
            return []
        found = _odd(headers, self._now())
        self._skips = 0 if found else _LOOK_EVERY - 1
        return found


def rate_headers(headers: Mapping[str, str], now: float) -> list[RateHeader]:
    """The quantities whose limit, remaining and reset can be read. `now` in epoch seconds; names in any case."""
    return _usual(headers, now) or _odd(headers, now)


def learned(limits: Limits, stated: Mapping[LearnedLimit, int]) -> Limits:
    """`limits` with what answers have stated: limits that the catalogue lacks, and lower ones than it states."""
    news: dict[str, int] = {
        field: limit for field, limit in stated.items() if (known := getattr(limits, field)) is None or limit < known
    }
    return limits.model_copy(update=news) if news else limits


def wait_s(headers: Mapping[str, str], now: float) -> float | None:
    """How long a 429 without Retry-After means: until what is spent is free again.

    Azure OpenAI sends `remaining` and `reset` without the limit, and some gateways `reset` alone, so these are enough.
    """
    spent, unknown = [], []
    for found in _by_quantity(headers).values():
        reset_s = _reset(found.get("reset"), headers, now)
        if not reset_s:
            continue
        remaining = _count(found.get("remaining"))
        if remaining == 0:
            spent.append(reset_s)
        elif remaining is None:
            unknown.append(reset_s)
    return max(spent or unknown, default=None)


def _usual(headers: Mapping[str, str], now: float) -> list[RateHeader]:
    """By OpenAI's names."""
    found = []
    for name, limit_name, remaining_name, reset_name in _USUAL:
        if (limit := headers.get(limit_name)) is None:
            continue
        remaining, reset = headers.get(remaining_name, ""), headers.get(reset_name, "")
        header = _usually_spelt(name, limit, remaining, reset)
        if header is None:
            parts: dict[Part, str | None] = {"limit": limit, "remaining": remaining, "reset": reset}
            header = _header(name, None, parts, headers, now)
        if header is not None:
            found.append(header)
    return found


def _usually_spelt(name: Quantity, limit: str, remaining: str, reset: str) -> RateHeader | None:
    """Counts, and a duration with one unit; None for any other spelling. It is done for each answer."""
    if not (limit.isdecimal() and remaining.isdecimal() and limit.isascii() and remaining.isascii()):
        return None
    reset_s = simple_duration_s(reset)
    most = int(limit) if len(limit) <= _LIMIT_CHARS else 0
    if reset_s is None or reset_s > _DAY_S or not most or len(remaining) > _LIMIT_CHARS:
        return None
    return RateHeader(name, most, min(int(remaining), most), reset_s)


def _odd(headers: Mapping[str, str], now: float) -> list[RateHeader]:
    found = (_header(*key, parts, headers, now) for key, parts in _by_quantity(headers).items())
    return [header for header in found if header is not None]


def _by_quantity(headers: Mapping[str, str]) -> dict[tuple[Quantity, float | None], dict[Part, str | None]]:
    """The texts of each quantity and period; of two headers that mean the same the first counts."""
    found: dict[tuple[Quantity, float | None], dict[Part, str | None]] = {}
    for name, text in headers.items():
        if (meaning := _meaning(name)) is not None:
            part, quantity, period_s = meaning
            found.setdefault((quantity, period_s), {}).setdefault(part, text)
    return found


@lru_cache(maxsize=4_096)
def _meaning(name: str) -> tuple[Part, Quantity, float | None] | None:
    """What a header's name says: which part of which quantity, and its period where that is said."""
    match = _PREFIX.fullmatch(name.lower())
    if match is None or match[2] is None:
        return None
    words = match[2].replace("_", "-").split("-")
    parts = [_PARTS[word] for word in words if word in _PARTS]
    quantities = [_QUANTITIES[word] for word in words if word in _QUANTITIES]
    periods = [_PERIODS_S[word] for word in words if word in _PERIODS_S]
    if len(parts) != 1 or len(periods) > 1 or len(words) != len(parts) + len(quantities) + len(periods):
        return None  # a word that we don't know may mean anything
    quantity: Quantity = "tokens" if match[1] else "requests"
    for found in quantities:
        quantity = found if found != "tokens" or quantity == "requests" else quantity
    return parts[0], quantity, next(iter(periods), None)


def _header(
    name: Quantity,
    period_s: float | None,
    parts: Mapping[Part, str | None],
    headers: Mapping[str, str],
    now: float,
) -> RateHeader | None:
    limit, remaining = _limit(parts.get("limit")), _count(parts.get("remaining"))
    if not limit or remaining is None:
        return None
    window_s = period_s or _window_s(parts)
    reset_s = _reset(parts.get("reset"), headers, now)
    if reset_s is None and window_s is not None:
        reset_s = window_s * (1 - min(1.0, remaining / limit))
    if reset_s is None or reset_s > _DAY_S + _ROUNDING_S:
        return None
    remaining = min(remaining, limit)
    if window_s is not None and window_s < WINDOW_S:
        a_minute = int(limit * WINDOW_S / window_s)
        limit, remaining, window_s = a_minute, a_minute - (limit - remaining), WINDOW_S
    return RateHeader(name, limit, remaining, reset_s, window_s) if limit <= _MAX_LIMIT else None


def _window_s(parts: Mapping[Part, str | None]) -> float | None:
    """How long the limit counts, where another header or the limit's own policy says so."""
    text = parts.get("window") or ""
    if (count := _count(text)) is not None:
        return float(count) or None
    policy = _POLICY_WINDOW.search(text) or _POLICY_WINDOW.search(parts.get("limit") or "")
    return float(policy[1]) or None if policy is not None else None


def _reset(text: str | None, headers: Mapping[str, str], now: float) -> float | None:
    return None if text is None else until_s(text, now, date=headers.get("date", ""))


def _limit(text: str | None) -> int | None:
    """The limit; the first number where a policy stands behind it (`100, 100;w=60`)."""
    if text is None:
        return None
    match = _LEADING_NUMBER.match(text.strip())
    return None if match is None else int(match[0])


def _count(text: str | None) -> int | None:
    """A count; below 0 it is 0."""
    if text is None:
        return None
    text = text.strip()
    return max(0, int(float(text))) if _NUMBER.fullmatch(text) else None
