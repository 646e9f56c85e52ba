"""How a job ends whose provider is out (`workers/breaker/`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..prompt.failure import Failure

if TYPE_CHECKING:
    from ..breaker import Reason

__all__ = ["out_of_reach", "patience_over", "refused", "stopped"]


def out_of_reach(last: Reason) -> Failure:
    """The end of a job whose provider was out until its deadline."""
    what = "could not be reached" if last.is_unreachable else "failed"
    return Failure("expired", f"the job's deadline passed while its provider {what}; the last: {last.message}")


def patience_over(last: Reason, patience_s: float) -> Failure:
    """The end of a job without a deadline, which waits for `patience_s`."""
    return Failure(
        last.code,
        f"{last.message}; the job waited for {patience_s:g} s (PROMPTMILL_BREAKER__PATIENCE_S)",
        http_status=last.http_status,
        retryable=True,
    )


def refused(last: Reason) -> Failure:
    """Why another model is asked. No `http_status`: the provider was not called."""
    return Failure(last.code, f"{last.message}; the provider is out, and was not called", retryable=True)


def stopped(last: Reason) -> Failure:
    """The end of a call that was not made, because the outage began while the job waited for its turn."""
    return Failure(last.code, f"{last.message}; the provider is out", retryable=True, unreachable=True)
