"""Providers' keys: fetched from the variables that the catalogue names, and looked at before any job uses one.

::

    KeyProblem             (also a ValueError)
    ├── MissingKey         the variable is unset or empty
    └── UnusableKey        a placeholder, malformed, or twice the same

No text of these errors repeats any part of a key.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping

from pydantic import SecretStr

from .catalog import Provider
from .settings import environment

__all__ = ["KeyProblem", "MissingKey", "UnusableKey", "fingerprint", "key_problem", "read_keys"]


class KeyProblem(ValueError):
    """A key that the catalogue names can't be used. `variable` is the environment variable."""

    def __init__(self, text: str, *, variable: str) -> None:
        super().__init__(text)
        self.variable = variable


class MissingKey(KeyProblem):
    """The variable is unset or empty."""


class UnusableKey(KeyProblem):
    """The variable holds something that can't be a key, or a key that another variable holds too."""


def read_keys(provider: Provider, environ: Mapping[str, str] | None = None) -> list[SecretStr]:
    """The provider's keys, in the catalogue's order; none for a provider that needs none.

    Without `environ`, reads the environment and below it `.env`. White space and quotes around a key are
    taken off. Raises `MissingKey` or `UnusableKey` for the first variable that is no good.
    """
    environ = environment() if environ is None else environ
    holders: dict[str, str] = {}
    for variable in provider.api_keys:
        key = _read_key(provider, variable, environ)
        if key in holders:
            problem = f"holds the same key as {holders[key]}, which would count its limits twice"
            raise UnusableKey(_text(provider, variable, problem), variable=variable)
        holders[key] = variable
    return [SecretStr(key) for key in holders]


def key_problem(provider: Provider) -> KeyProblem | None:
    """What `read_keys` would raise, None if nothing."""
    try:
        read_keys(provider)
    except KeyProblem as problem:
        return problem
    return None


def fingerprint(key: SecretStr) -> str:
    """Eight hexadecimal digits that stand for a key in logs and in Redis keys."""
    return hashlib.sha256(key.get_secret_value().encode()).hexdigest()[:8]


def _read_key(provider: Provider, variable: str, environ: Mapping[str, str]) -> str:
    key = _bare(environ.get(variable, ""))
    if not key:
        raise MissingKey(_text(provider, variable, "is not set"), variable=variable)
    if problem := _problem_with(key, prefix=provider.key_prefix):
        raise UnusableKey(_text(provider, variable, problem), variable=variable)
    return key


def _bare(value: str) -> str:
    """Without the white space and the pair of quotes that a shell, a secret file or `--env-file` leaves around it."""
    value = value.strip()
    if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
        return value[1:-1].strip()
    return value


def _text(provider: Provider, variable: str, problem: str) -> str:
    example = f"{variable}={provider.key_prefix or ''}..."
    return (
        f"{variable} {problem}. Put a key of provider {provider.name!r} into it, in the environment or in .env "
        f"({example}), or take the variable out of the provider's api_keys, and start again."
    )


def _problem_with(key: str, *, prefix: str | None) -> str | None:
    for is_wrong, problem in _CHECKS:
        if is_wrong(key):
            return problem
    if prefix and not key.startswith(prefix):
        return f"does not begin with {prefix!r}, as this provider's keys do"
    return None


def _begins_with_scheme(key: str) -> bool:
    return re.match(r"bearer\b", key, re.IGNORECASE) is not None


def _is_placeholder(key: str) -> bool:
    return any(pattern.search(key) for pattern in _PLACEHOLDERS) or _is_one_character(key)


def _is_one_character(key: str) -> bool:
    """`xxxx`, `sk-xxxx`, `sk-proj-****`: nothing but one character after the prefix."""
    body = re.sub(r"^(sk|pk|hs)-(proj-)?", "", key, flags=re.IGNORECASE)
    return len(set(body.lower()) - set("-_")) <= 1


def _has_foreign_characters(key: str) -> bool:
    return re.fullmatch(r"[!-~]+", key) is None


# Whole words between dashes and underscores, or several words in a row: random keys hold "your" now and then.
_PLACEHOLDERS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"(?<![a-z0-9])(your|change[-_]?me|placeholder|replace[-_]?me|insert|dummy|example|todo)(?![a-z0-9])",
        r"(your|insert|paste)[-_ ]?(own|secret|open[-_ ]?ai|real)?[-_ ]?(api)?[-_ ]?(key|token|secret)",
        r"^(open[-_ ]?ai[-_ ]?)?api[-_ ]?(key|token)([-_ ]?here)?$",
        r"<[^<>]*>|^\[.*\]$|^\$?\{.*\}$|^\$\(.*\)$|^\$[a-z_]+$",
        r"\.\.\.|\u2026",
        r"x{8}|\*{3}",
    )
)

_CHECKS: tuple[tuple[Callable[[str], bool], str], ...] = (
    (_begins_with_scheme, "begins with 'Bearer', which is not part of a key"),
    (_is_placeholder, "holds a placeholder, not a key"),
    (
        _has_foreign_characters,
        "holds white space, control characters or letters that no key has; it may be cut or pasted twice",
    ),
)
