"""When another model is asked. Decides with values and does nothing itself.

What another model may cure leads to it by itself; what may be the job's own fault, or this deployment's, only where
`fallback_on` names it; and a request that is wrong, a deadline or a cancel never does.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from ...prompt.failure import Failure, Incapable, OverLimit, Unserved

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from config.catalog import Model
    from tasks.errors import ErrorCode
    from tasks.wire.vocabulary import Trigger

__all__ = ["FAULTS", "has_more_context", "reason"]

FAULTS: Final[frozenset[ErrorCode]] = frozenset({"server_error", "timeout", "connection", "bad_response"})
"""The provider's own: not of this one request."""

BY_ITSELF: Final[Mapping[ErrorCode, str]] = {
    "server_error": "the provider of {name} failed",
    "timeout": "{name} gave no answer in time",
    "connection": "the provider of {name} can't be reached",
    "bad_response": "what {name} gave is no answer",
    "rate_limited": "the limit of {name} gave no turn in time",
    "quota_exhausted": "the quota of {name} is used up",
    "not_found": "the provider does not have {name}",
    "too_large": "the context of {name} is too short",
}
"""Why the next model is asked, by the code of what has failed."""

IF_ASKED: Final[Mapping[Trigger, str]] = {
    "rate_limited": "the turn of {name} is far away",
    "content_filter": "the content filter of {name} refused",
    "auth": "the provider of {name} refused the key",
    "permission": "the key may not call {name}",
}


def reason(failure: Failure, name: str, *, asked_for: Collection[Trigger]) -> str | None:
    """Why the model after `name` is asked, in words; None: it is not. `asked_for` is `fallback_on`."""
    if isinstance(failure, Incapable):
        return f"no worker can call {name}"
    if isinstance(failure, OverLimit):
        return f"the limit of {name} is less than the request takes"
    if isinstance(failure, Unserved):
        return f"{name} can't do what the job asks for"
    if failure.code == "too_large" and failure.http_status is None:
        return None  # it is the answer that no record holds
    words = BY_ITSELF.get(failure.code) or _if_asked(failure.code, asked_for)
    return words and words.format(name=name)


def _if_asked(code: ErrorCode, asked_for: Collection[Trigger]) -> str | None:
    return next((words for trigger, words in IF_ASKED.items() if trigger == code and trigger in asked_for), None)


def has_more_context(candidate: Model, failed: Model, *, input_tokens: int) -> bool:
    """Whether a request whose context was too long for `failed` may fit. `input_tokens` is the estimate of its input,
    which decides where the catalogue does not say what `failed` takes. Of embeddings one input may be what is too long.
    """
    if (candidate.max_tokens_per_input or 0) > (failed.max_tokens_per_input or math.inf):
        return True
    if candidate.context_tokens is None:
        return False
    return candidate.context_tokens > (failed.context_tokens or input_tokens)
