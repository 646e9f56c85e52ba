"""Durations and instants as providers spell them, in headers and in bodies. No clock: the present is an argument."""

from __future__ import annotations

import re
from datetime import datetime
from email.utils import mktime_tz, parsedate_tz

__all__ = ["duration_s", "instant_s", "simple_duration_s", "until_s"]

MAX_CHARS = 64
"""No duration and no date is longer."""

_SIMPLE_CHARS = 20
_UNIT_S = {
    **dict.fromkeys(("ms", "msec", "millisecond", "milliseconds"), 0.001),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1.0),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), 3_600.0),
    **dict.fromkeys(("d", "day", "days"), 86_400.0),
}
# float() alone would take "nan", "infinity" and "1_000".
_AMOUNT = r"[0-9]{1,20}(?:\.[0-9]{1,20})?"
_NUMBER = re.compile(_AMOUNT, re.ASCII)
_PART = re.compile(rf"({_AMOUNT})\s?([a-z]+)", re.ASCII)
_WHOLE = re.compile(rf"(?:{_PART.pattern}[\s,]*)+", re.ASCII)
_ON_A_CLOCK = re.compile(r"(?:([0-9]{1,3})\.)?([0-9]{1,3}):([0-5][0-9]):([0-5][0-9](?:\.[0-9]{1,9})?)", re.ASCII)
_RFC_3339 = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9:.]{5,18}(?:[Zz]|[+-][0-9]{2}:?[0-9]{2})", re.ASCII)

_EPOCH_S = 1_000_000_000.0
"""No instant of ours is earlier."""

_TEN_YEARS_S = 10 * 365 * 86_400.0
"""A number no further from now, read as epoch seconds or milliseconds, is an instant: no duration is as long."""


def duration_s(text: str) -> float | None:
    """Seconds of `6m0s`, `1d`, `20ms`, `1.5`, `2 minutes`, `1.00:00:03`; None for anything else. A bare number is in
    seconds."""
    text = text.strip()
    if not 0 < len(text) <= MAX_CHARS:
        return None
    if _NUMBER.fullmatch(text):
        return float(text)
    text = text.lower()
    if (clock := _ON_A_CLOCK.fullmatch(text)) is not None:
        days, hours, minutes, seconds = clock.groups()
        return int(days or 0) * 86_400 + int(hours) * 3_600 + int(minutes) * 60 + float(seconds)
    if _WHOLE.fullmatch(text) is None:
        return None
    parts = [(amount, _UNIT_S.get(unit)) for amount, unit in _PART.findall(text)]
    return None if any(unit is None for _, unit in parts) else sum(float(n) * unit for n, unit in parts if unit)


def simple_duration_s(text: str) -> float | None:
    """Seconds of an amount and `ms` or `s`, as most answers have them; None for any other spelling. Cheap."""
    amount = text[:-1] if text.endswith("s") else ""
    unit_s = 1.0
    if amount.endswith("m"):
        amount, unit_s = amount[:-1], 0.001
    if len(amount) > _SIMPLE_CHARS or not amount.isascii() or not amount.replace(".", "", 1).isdecimal():
        return None
    return float(amount) * unit_s


def instant_s(text: str, now: float) -> float | None:
    """Epoch seconds of an HTTP date, an RFC 3339 date, or a number near `now` in epoch seconds or milliseconds."""
    text = text.strip()
    if not 0 < len(text) <= MAX_CHARS:
        return None
    if _NUMBER.fullmatch(text):
        number = float(text)
        return next((at for at in (number, number / 1_000) if at > _EPOCH_S and abs(at - now) < _TEN_YEARS_S), None)
    return _rfc_3339(text) if _RFC_3339.fullmatch(text) else _http_date(text)


def until_s(text: str, now: float, *, date: str = "", unit_s: float = 1.0) -> float | None:
    """Seconds from `now` (epoch seconds) that a duration or an instant means; None for what is neither.

    A bare number that is no instant is in units of `unit_s`. `date` is the provider's own clock (its `Date` header),
    which cancels the difference between its clock and ours. An instant that has passed means 0.
    """
    found = duration_s(text)
    if found is not None and not text.strip()[-1].isdigit():
        return found  # it has a unit
    if (then := instant_s(text, now)) is not None:
        theirs = _http_date(date) if date else None
        return max(0.0, then - (now if theirs is None else theirs))
    return None if found is None else found * unit_s


def _rfc_3339(text: str) -> float | None:
    try:
        return datetime.fromisoformat(text.upper()).timestamp()
    except (ValueError, OverflowError):
        return None


def _http_date(text: str) -> float | None:
    try:
        parts = parsedate_tz(text)
        return None if parts is None else float(mktime_tz(parts))
    except (ValueError, OverflowError, TypeError, IndexError):
        # parsedate_tz lets many impossible dates through, and the calendar refuses them in its own ways.
        return None
