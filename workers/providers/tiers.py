"""The flex tier, as providers speak of it: a call is cheaper, slower, and refused while there is no room.

OpenAI refuses with 429 and "Resource Unavailable" or "currently processing too many requests", Gemini with 503, Groq
with 498 and `capacity_exceeded`. Nothing is charged then. A 429 of a limit looks much the same, and names the limit.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from tasks.wire.usage import tier_named

from .error_body import error_body

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tasks.wire.vocabulary import Tier

    from ..prompt.failure import Failure
    from .codec import RawResponse
    from .error_body import ErrorBody

__all__ = ["note_no_room", "served_tier", "tier_refused"]

_FULL: Final = frozenset({498, 503, 529})
_NO_ROOM: Final = re.compile(r"resources? (is |are )?(currently )?unavailable|processing too many requests|capacity")
_NO_ROOM_NAMES: Final = frozenset({"resourceunavailable", "capacityexceeded"})
_LIMIT: Final = re.compile(
    r"rate limit|quota|per (second|min|minute|hour|day)\b|\b[rt]p[mds]\b|limit:? ?[0-9]|throttl", re.IGNORECASE
)
_GEMINI_HEADER: Final = "x-gemini-service-tier"


def note_no_room(failure: Failure, raw: RawResponse) -> None:
    """Say of the failure of a call that asked for the flex tier whether the tier had no room.

    Its code is `rate_limited` then, whatever the status: the provider works, and did not see the prompt.
    """
    if raw.status not in _FULL and not (raw.status == 429 and failure.code == "rate_limited" and _is_no_limit(raw)):
        return
    failure.code = "rate_limited"
    failure.has_no_room = failure.is_refusal = failure.retryable = True
    failure.message = f"the provider's flex tier has no room ({raw.status})"
    failure.args = (failure.message,)


def tier_refused(failure: Failure) -> bool:
    """Whether the provider has no flex tier for the model that was asked for."""
    return failure.code == "bad_request" and bool(
        re.search(r"service_?tier|\bflex\b", failure.provider_body or "", re.I)
    )


def served_tier(response: Mapping[str, Any], headers: Mapping[str, str], *, asked: object) -> Tier:
    """By which tier a call was served, and is charged: what the provider says, or else what was asked for."""
    return tier_named(response.get("service_tier") or headers.get(_GEMINI_HEADER) or asked)


def _is_no_limit(raw: RawResponse) -> bool:
    """Of a 429. One that says neither what was short nor when to come back is no limit's: to pause all other jobs of
    the model for it would cost more than to ask once too often."""
    error = error_body(raw.body)
    if _says_no_room(error):
        return True
    names_limit = _LIMIT.search(error.sentence) or {"requests", "tokens", "RESOURCE_EXHAUSTED"} & set(error.names)
    return not names_limit and "retry-after" not in raw.headers and not error.waits


def _says_no_room(error: ErrorBody) -> bool:
    names = {name.lower().replace("_", "") for name in error.names}
    return bool(names & _NO_ROOM_NAMES or _NO_ROOM.search(error.sentence.lower()))
