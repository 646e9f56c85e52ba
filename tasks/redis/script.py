"""Lua scripts: what EVAL is sent, made from files.

A script is a file in the folder `lua/` beside its caller. The line `--- @include a b` puts `a.lua` and `b.lua` before
it, each once, and before those what they include: from the same folder, or else from `tasks/redis/lua/`, which all
folders share. The part `constants` is generated: those of `CONSTANTS` that the script names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha1
from pathlib import Path
from typing import Final

from ..wire import redis_keys, vocabulary

__all__ = ["CONSTANTS", "Script"]

_SHARED: Final = Path(__file__).with_name("lua")
_INCLUDE: Final = re.compile(r"^--- @include (.+)$", re.MULTILINE)
_GENERATED: Final = "constants"

Constant = str | int | tuple[str, ...]

CONSTANTS: Final[Mapping[str, Constant]] = {
    **{word.upper(): word for word in (*vocabulary.OPEN_STATES, *vocabulary.STATUSES, *vocabulary.CELERY_ENDS)},
    "STATUSES": vocabulary.STATUSES,
    "PRIORITIES": vocabulary.PRIORITIES,
    "CELERY_ENDS": vocabulary.CELERY_ENDS,
    "CELERY_COMPRESSED": vocabulary.CELERY_COMPRESSED,
    "NO_KEY": redis_keys.NO_KEY,
    "CLAIM_MS": redis_keys.CLAIM_MS,
    **{name: seconds for name, seconds in vars(redis_keys).items() if name.endswith("_TTL_S")},
}
"""What Lua and Python both know, by its name in Lua."""


@dataclass(frozen=True, slots=True)
class Script:
    """A script's text, and the SHA1 digest by which EVALSHA names it."""

    name: str
    text: str = field(repr=False)
    sha: str = field(repr=False)

    @classmethod
    def read(cls, folder: Path, name: str) -> Script:
        """The script `<folder>/<name>.lua` with what it includes. Raises OSError for a file that is missing."""
        parts = "".join(_parts(folder, name, set()))
        text = _constants_of(parts) + parts
        return cls(name, text, sha1(text.encode(), usedforsecurity=False).hexdigest())


def _parts(folder: Path, name: str, seen: set[str]) -> Iterator[str]:
    text = _file(folder, name).read_text(encoding="utf-8")
    for part in " ".join(_INCLUDE.findall(text)).split():
        if part not in seen and part != _GENERATED:
            seen.add(part)
            yield from _parts(folder, part, seen)
    yield text


def _file(folder: Path, name: str) -> Path:
    own = folder / f"{name}.lua"
    return own if own.exists() else _SHARED / f"{name}.lua"


def _constants_of(text: str) -> str:
    named = set(re.findall(r"\b[A-Z][A-Z_]+\b", text))
    return "".join(f"local {name} = {_in_lua(value)}\n" for name, value in CONSTANTS.items() if name in named)


def _in_lua(value: Constant) -> str:
    if isinstance(value, tuple):
        return f"{{ {', '.join(map(_in_lua, value))} }}"
    return str(value) if isinstance(value, int) else f"'{''.join(map(_escaped, value))}'"


def _escaped(character: str) -> str:
    return character if re.match(r"[\w:-]", character, re.ASCII) else f"\\{ord(character):03d}"
