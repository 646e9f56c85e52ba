"""The types of settings: each checks its text, and its errors say what would do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field

from tasks.redis.address import Address

__all__ = [
    "Count",
    "CountOrZero",
    "HttpUrl",
    "KeyPrefix",
    "LogLevel",
    "RedisUrl",
    "Seconds",
    "SecondsOrZero",
    "UserPath",
    "Weight",
]

HTTP_SCHEMES = ("http", "https")
ESCAPES = "the characters '/', '?', '#' and '@' of a password are written %2F, %3F, %23 and %40"


def _split_url(text: str, *, schemes: Sequence[str]) -> SplitResult:
    """The parts of a URL with one of these schemes; ValueError with a text that never repeats the URL."""
    if re.search(r"[\s\x00-\x1f\x7f]", text):
        raise ValueError("must be a URL without white space in it")
    try:
        url = urlsplit(text)
        url.port  # noqa: B018 - urlsplit checks the port only when it is asked for
    except ValueError:
        raise ValueError(f"must be a URL with a valid host and port; {ESCAPES}") from None
    if url.scheme not in schemes:
        raise ValueError(f"must be a URL that begins with {' or '.join(f'{scheme}://' for scheme in schemes)}")
    return url


def _redis_url(text: str) -> str:
    Address.of(text)
    return text


def _http_url(text: str) -> str:
    if not _split_url(text, schemes=HTTP_SCHEMES).hostname:
        raise ValueError("must name the host after the scheme")
    return text


def _key_prefix(text: str) -> str:
    # Braces would make a hash tag of their own and so move our scripts' keys to different cluster slots.
    if re.search(r"[\s{}\x00-\x1f\x7f]", text):
        raise ValueError("must not contain white space or braces")
    return text


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


RedisUrl = Annotated[str, AfterValidator(_redis_url)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]
KeyPrefix = Annotated[str, AfterValidator(_key_prefix)]
UserPath = Annotated[Path, AfterValidator(Path.expanduser)]
Count = Annotated[int, Field(gt=0)]
CountOrZero = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
SecondsOrZero = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]
LogLevel = Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(_upper)]
