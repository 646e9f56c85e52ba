"""How long a provider asks us to wait: `Retry-After` in every form that is seen in the wild, and what bodies say."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .durations import MAX_CHARS, duration_s, until_s

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .error_body import ErrorBody

__all__ = ["MAX_RETRY_AFTER_S", "retry_after_s"]

MAX_RETRY_AFTER_S = 86_400.0
"""A longer wait is cut to this. How much of it is believed, and by how many witnesses, is the limiter's matter."""

# In the order of trust: the finer unit first, the provider's own header before the one that LiteLLM copies.
_HEADERS = (
    ("retry-after-ms", 0.001),
    ("x-ms-retry-after-ms", 0.001),
    ("retry-after", 1.0),
    ("llm_provider-retry-after-ms", 0.001),
    ("llm_provider-retry-after", 1.0),
)

_AMOUNT = r"[0-9]{1,9}(?:\.[0-9]{1,12})?"
_UNIT = r"(?:ms|milliseconds?|seconds?|secs?|s|minutes?|mins?|m|hours?|hrs?|h|days?|d)"
_IN_WORDS = re.compile(
    rf"(?:again|retry|retried|wait|retry[ -]after|replenished|reset|resets)(?: (?:after|in|for|within|at least))* "
    rf"((?:{_AMOUNT} ?{_UNIT}(?![a-z])[ ,]{{0,2}}){{1,4}}|(?:[0-9]{{1,3}}\.)?[0-9]{{1,3}}:[0-5][0-9]:[0-5][0-9])",
    re.IGNORECASE | re.ASCII,
)


def retry_after_s(headers: Mapping[str, str], now: float, error: ErrorBody | None = None) -> float | None:
    """Seconds from `now` (epoch seconds) that the provider asks us to wait; None if it asks nothing we can read.

    Headers go before the fields of the error's body, and these before its sentence. Takes numbers, durations, dates and
    epoch instants. 0 and what has passed are no advice; nor is a negative number or junk. At most `MAX_RETRY_AFTER_S`.
    Header names are looked up in lower case.
    """
    date = headers.get("date", "")
    found = (until_s(text, now, date=date, unit_s=unit_s) for text, unit_s in _said(headers, error))
    return next((min(wait_s, MAX_RETRY_AFTER_S) for wait_s in found if wait_s), None)


def _said(headers: Mapping[str, str], error: ErrorBody | None) -> Iterator[tuple[str, float]]:
    for name, unit_s in _HEADERS:
        if (value := headers.get(name)) is not None:
            yield value, unit_s
    if error is None:
        return
    yield from error.waits
    for text in _IN_WORDS.findall(error.sentence):
        if len(text) <= MAX_CHARS and (wait_s := duration_s(text.rstrip(" ,"))) is not None:
            yield str(wait_s), 1.0
