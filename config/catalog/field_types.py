"""What one value of a catalogue may be: names, addresses, numbers."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field

ANY_MODEL = "*"
"""Stands in `Catalog.aliases()` for a provider that takes any model, and after `PROVIDER/` for that provider's."""


def _not_a_bool(value: object) -> object:
    # Python counts True as 1, and so would pydantic.
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")  # noqa: TRY004 - pydantic takes no TypeError
    return value


def _name(text: str) -> str:
    if not is_name(text):
        raise ValueError("must be a name of 1 to 200 characters, without white space, and neither '*' nor end in '/*'")
    return text


def is_name(text: str) -> bool:
    stands_for_many = text == ANY_MODEL or text.endswith(f"/{ANY_MODEL}")
    return not stands_for_many and re.fullmatch(r"[^\s\x00-\x1f\x7f]{1,200}", text) is not None


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


_SECRET_WORDS = frozenset(
    {
        "apikey",
        "auth",
        "authorization",
        "cookie",
        "credential",
        "credentials",
        "key",
        "password",
        "secret",
        "sig",
        "signature",
        "token",
    }
)
_OURS = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
        "x-promptmill-job-id",
    }
)
"""Headers that the transport writes itself."""

_SHOWS_A_KEY = re.compile(r"(?i:bearer|basic) |sk-|eyJ", re.ASCII)


def _headers(headers: dict[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}", name):
            raise ValueError("must have the names of HTTP headers as keys")
        if name.lower() in _OURS:
            raise ValueError(f"must not hold {name}, which each request has already")
        _check_no_secret(name, value)
        if not re.fullmatch(r"[\x21-\x7e]([\x20-\x7e]{0,998}[\x21-\x7e])?", value):
            raise ValueError(f"must hold printable ASCII; {name} does not")
    if len({name.lower() for name in headers}) < len(headers):
        raise ValueError("must not name the same header twice")
    return headers


def _query(query: dict[str, str]) -> dict[str, str]:
    for name, value in query.items():
        if not re.fullmatch(r"[\x21-\x7e]{1,100}", name) or not value.isprintable():
            raise ValueError("must hold printable names and values")
        _check_no_secret(name, value)
    return query


def _check_no_secret(name: str, value: str) -> None:
    """A catalogue is shown, logged and committed; keys live in the environment."""
    if _SECRET_WORDS & set(re.split(r"[-_.]", name.lower())) or _SHOWS_A_KEY.match(value):
        raise ValueError(
            f"must not hold a secret, as {name} looks to be; name the key's environment variable in api_keys"
        )


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
Factor = Annotated[Decimal, BeforeValidator(_not_a_bool), Field(gt=0, allow_inf_nan=False)]
Multiple = Annotated[float, BeforeValidator(_not_a_bool), Field(ge=1, allow_inf_nan=False)]
Amount = Annotated[Decimal, BeforeValidator(_not_a_bool), Field(ge=0, allow_inf_nan=False)]
Headers = Annotated[dict[str, str], AfterValidator(_headers)]
Query = Annotated[dict[str, str], AfterValidator(_query)]
