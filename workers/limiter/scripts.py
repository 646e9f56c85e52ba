"""The limiter's Lua scripts: each is a file beside this one, with what it stands on put before it."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha1
from pathlib import Path

__all__ = ["ACQUIRE", "PAUSE", "Script"]

_HERE = Path(__file__).with_name("lua")


@dataclass(frozen=True, slots=True)
class Script:
    """A script's text and the SHA1 digest by which EVALSHA names it."""

    text: str = field(repr=False)
    sha: str


def _script(*names: str) -> Script:
    text = "".join((_HERE / f"{name}.lua").read_text(encoding="utf-8") for name in names)
    return Script(text, sha1(text.encode(), usedforsecurity=False).hexdigest())


ACQUIRE = _script("clock", "unstated", "calendar", "window", "told", "acquire")
PAUSE = _script("clock", "unstated", "pause")
