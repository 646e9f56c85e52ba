"""How long a provider asks us to wait: every form of `Retry-After` that is seen in the wild."""

from __future__ import annotations

import re
from email.utils import mktime_tz, parsedate_tz
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["MAX_RETRY_AFTER_S", "retry_after_s"]

MAX_RETRY_AFTER_S = 3_600.0
"""A longer wait is cut to this: no header may park a job for a day."""

# In the order of trust: the finer unit first, the provider's own header before the one that LiteLLM copies.
_HEADERS = (
    ("retry-after-ms", 0.001),
    ("retry-after", 1.0),
    ("llm_provider-retry-after-ms", 0.001),
    ("llm_provider-retry-after", 1.0),
)
# float() alone would take "nan", "infinity" and "1_000".
_NUMBER = re.compile(r"[0-9]{1,20}(\.[0-9]{1,20})?", re.ASCII)


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds from `now` (epoch seconds) that the provider asks us to wait; None if it asks nothing we can read.

    Takes numbers and HTTP dates. A date in the past means 0; a negative number or junk means nothing. At most
    `MAX_RETRY_AFTER_S`. Header names are looked up in lower case.
    """
    for name, unit_s in _HEADERS:
        value = headers.get(name)
        if value is None:
            continue
        wait_s = _number(value, unit_s) if unit_s != 1.0 else _number_or_date(value, headers, now)
        if wait_s is not None:
            return min(wait_s, MAX_RETRY_AFTER_S)
    return None


def _number_or_date(value: str, headers: Mapping[str, str], now: float) -> float | None:
    wait_s = _number(value, 1.0)
    if wait_s is None and (then := _date(value)) is not None:
        # The provider's own clock, where it shows it, cancels the difference between its clock and ours.
        wait_s = max(0.0, then - (_date(headers.get("date", "")) or now))
    return wait_s


def _number(value: str, unit_s: float) -> float | None:
    match = _NUMBER.fullmatch(value.strip())
    return float(match[0]) * unit_s if match else None


def _date(value: str) -> float | None:
    """Epoch seconds of an HTTP date."""
    try:
        parts = parsedate_tz(value)
        return None if parts is None else float(mktime_tz(parts))
    except (ValueError, OverflowError, TypeError, IndexError):
        # parsedate_tz lets many impossible dates through, and the calendar refuses them in its own ways.
        return None
