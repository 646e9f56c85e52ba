"""Text completions, of one prompt or of several."""

from __future__ import annotations

from typing import Any

from tasks.wire.usage import read_usage

from ...prompt.failure import Failure
from ..answers import Content, bad_response, count_inputs
from ..codec import Answer

__all__ = ["count_completions", "read_completion"]


def count_completions(body: dict[str, Any]) -> int:
    """How many choices a request asks for: `n` for each of its prompts."""
    n = body.get("n")
    return count_inputs(body["prompt"]) * (n if type(n) is int and n > 0 else 1)


def read_completion(body: dict[str, Any], request: dict[str, Any]) -> Answer:
    """The answer in a text completion: a text in each choice, which may be empty where the model stopped at once."""
    choices, usage = body.get("choices"), read_usage(body)
    try:
        return Answer(_first_text(choices, count_completions(request)), body, usage)
    except Failure as failure:
        failure.usage = usage
        raise


def _first_text(choices: Any, count: int) -> str:
    if not isinstance(choices, list) or len(choices) != count:
        found = len(choices) if isinstance(choices, list) else "no"
        raise bad_response(f"the answer holds {found} completions where {count} were asked for")
    texts = [choice.get("text") if isinstance(choice, dict) else None for choice in choices]
    if not all(isinstance(text, str) for text in texts):
        raise bad_response("a choice of the answer has no text")
    if not any(texts):
        reason = str(choices[0].get("finish_reason") or "").lower()
        content = Content("", has_other=False, has_message=True, has_reasoning=False, reason=reason)
        if reason != "stop":
            raise content.failure()
    return str(texts[0])
