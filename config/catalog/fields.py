"""What one value of a catalogue may be: names, addresses, numbers."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field

ANY_MODEL = "*"
"""Stands in `Catalog.aliases()` for a provider that takes any model."""


def _not_a_bool(value: object) -> object:
    # Python counts True as 1, and so would pydantic.
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")  # noqa: TRY004 - pydantic takes no TypeError
    return value


def _name(text: str) -> str:
    if not is_name(text):
        raise ValueError("must be a name of 1 to 200 characters, without white space and other than '*'")
    return text


def is_name(text: str) -> bool:
    return text != ANY_MODEL and re.fullmatch(r"[^\s\x00-\x1f\x7f]{1,200}", text) is not None


def _variable(text: str) -> str:
    # Capitals only: most keys have small letters, and a key must never pass for a name (and be logged as one).
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", text):
        raise ValueError(
            "must be the name of an environment variable in capitals, such as OPENAI_API_KEY, and never the key itself"
        )
    return text


def _base_url(text: str) -> str:
    if re.search(r"[\s\x00-\x1f\x7f]", text):
        raise ValueError("must be a URL without white space in it")
    try:
        url = urlsplit(text)
        host, _ = url.hostname, url.port
    except ValueError:
        raise ValueError("must be a URL with a valid host and port") from None
    if url.scheme not in ("http", "https") or not host:
        raise ValueError("must be a URL that begins with https:// or http:// and names a host")
    if "@" in url.netloc:
        raise ValueError("must not carry a user or password; name the key's environment variable in api_keys")
    if url.query or url.fragment:
        raise ValueError("must end with its path, without '?' and '#'")
    return text.rstrip("/")


def all_different(values: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(values)) < len(values):
        raise ValueError("must not name the same twice")
    return values


def _currency(text: str) -> str:
    if not re.fullmatch(r"[A-Z]{3}", text):
        raise ValueError("must be a currency's three capitals, such as USD")
    return text


Name = Annotated[str, AfterValidator(_name)]
Currency = Annotated[str, AfterValidator(_currency)]
Variable = Annotated[str, AfterValidator(_variable)]
BaseUrl = Annotated[str, AfterValidator(_base_url)]
Count = Annotated[int, Field(gt=0, strict=True)]
Flag = Annotated[bool, Field(strict=True)]
Seconds = Annotated[float, BeforeValidator(_not_a_bool), Field(gt=0, allow_inf_nan=False)]
Amount = Annotated[Decimal, BeforeValidator(_not_a_bool), Field(ge=0, allow_inf_nan=False)]
