"""Which failures are the provider's. Decides with values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ..prompt.failure import Failure

__all__ = ["blames_provider", "shows_life"]

_PROVIDERS: Final = frozenset({"server_error", "timeout", "connection", "bad_response"})


def blames_provider(failure: Failure) -> bool:
    """Whether another job's call would probably have failed too.

    What the same request would meet again (an answer that is too large, a redirect) is not retryable, and what the
    provider answers with 4xx it says of the request, the key or the limit. A connection that never stood is an outage
    of its own kind, for which nothing has to be counted.
    """
    if failure.unreachable or not failure.retryable or failure.code not in _PROVIDERS:
        return False
    return failure.http_status is None or not 400 <= failure.http_status < 500


def shows_life(failure: Failure) -> bool:
    """Whether the provider has answered as one that works, be it with a refusal."""
    return failure.http_status is not None and not blames_provider(failure)
