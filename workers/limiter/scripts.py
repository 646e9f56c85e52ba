"""The limiter's Lua scripts: each is a file beside this one, with those that it includes put before it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from hashlib import sha1
from pathlib import Path

__all__ = ["ACQUIRE", "PAUSE", "Script"]

_HERE = Path(__file__).with_name("lua")
_INCLUDE = re.compile(r"^--- @include (.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Script:
    """A script's text and the SHA1 digest by which EVALSHA names it."""

    text: str = field(repr=False)
    sha: str


def _script(name: str) -> Script:
    own = _read(name)
    included = [_read(part) for names in _INCLUDE.findall(own) for part in names.split()]
    text = "".join([*included, own])
    return Script(text, sha1(text.encode(), usedforsecurity=False).hexdigest())


def _read(name: str) -> str:
    return (_HERE / f"{name}.lua").read_text(encoding="utf-8")


ACQUIRE = _script("acquire")
PAUSE = _script("pause")
