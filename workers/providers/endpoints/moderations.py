"""Moderations: a verdict for each input."""

from __future__ import annotations

from typing import Any

from tasks.wire.usage import read_usage

from ..answers import bad_response
from ..codec import Answer

__all__ = ["count_moderated", "read_moderation"]


def count_moderated(inputs: Any) -> int:
    """How many verdicts a request brings: parts of a text and its pictures are judged together."""
    return len(inputs) if isinstance(inputs, list) and all(isinstance(each, str) for each in inputs) else 1


def read_moderation(body: dict[str, Any], request: dict[str, Any]) -> Answer:
    """The verdicts of a moderation, one for each input. Providers that count no tokens for it say nothing of usage."""
    results, count = body.get("results"), count_moderated(request["input"])
    if not isinstance(results, list) or len(results) != count:
        found = len(results) if isinstance(results, list) else "no"
        raise bad_response(f"the answer holds {found} verdicts for {count} inputs")
    if not all(isinstance(each, dict) and isinstance(each.get("categories"), dict) for each in results):
        raise bad_response("a verdict of the answer has no categories")
    return Answer(None, body, read_usage(body, has_output=False))
