"""What a chat asks about the form of its answer: a JSON Schema, beside its messages or in them. No I/O."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from typing import Any, Final, NamedTuple

__all__ = ["Wanted", "wanted"]

_IN_WORDS: Final = "JSON Schema:"
"""After these words in a system message a model would read a schema."""

_ASKED_AGAIN: Final = "The last answer was not valid"
"""With these words a further question begins (`workers/schema/form.py`; a test compares the two)."""


class Wanted(NamedTuple):
    """The schema that an answer is to fit.

    `subject` is a digest of the user's first message, without a further question: what the answer is about, however
    it is asked for. `chars`: the characters of a schema beside the messages, which a provider counts too.
    """

    schema: Any
    subject: bytes
    is_asked_again: bool
    chars: int


def wanted(fields: dict[str, Any], system: str, users: Sequence[str]) -> Wanted | None:
    """`fields` of the body; `system` and `users` are the texts of these roles' messages."""
    beside = _beside(fields)
    schema = _in_words(system) if beside is None else beside
    if schema is None:
        return None
    first, last = (users[0], users[-1]) if users else ("", "")
    return Wanted(
        schema,
        sha256(first.partition(_ASKED_AGAIN)[0].rstrip().encode(errors="replace")).digest(),
        _ASKED_AGAIN in last,
        0 if beside is None else len(json.dumps(beside)),
    )


def _beside(fields: dict[str, Any]) -> Any:
    """OpenAI's place for it in a chat, Anthropic's, and that of the Responses API."""
    for place in (("response_format", "json_schema"), ("output_config", "format"), ("text", "format")):
        found: Any = fields
        for name in (*place, "schema"):
            found = found.get(name) if isinstance(found, dict) else None
        if found is not None:
            return found
    return None


def _in_words(system: str) -> Any:
    _, words, rest = system.partition(_IN_WORDS)
    if not words:
        return None
    try:
        return json.JSONDecoder().raw_decode(rest.lstrip())[0]
    except ValueError:
        return None
