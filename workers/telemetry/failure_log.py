"""Log lines and counts of failed jobs, so that an operator sees them without asking for each job's result.

Thousands may fail for one reason. The first of a kind (error code and model) is logged at once; those that follow share
a line every `EVERY_S` seconds.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from .counts import counts

if TYPE_CHECKING:
    from tasks.results import PromptResult

__all__ = ["EVERY_S", "FailureLog"]

logger = logging.getLogger("promptmill.jobs")

EVERY_S: Final = 10.0

MOST_KINDS: Final = 1_000
"""Models may be named by users. What is beyond these is counted, and not logged."""


@dataclass(slots=True)
class _Kind:
    more: int = 0
    latest: PromptResult | None = None
    tenant: str | None = None
    """The latest's."""


class FailureLog:
    """The failures of one worker process. Belongs to the pool's loop."""

    def __init__(self, *, every_s: float = EVERY_S) -> None:
        self._every_s = every_s
        self._kinds: dict[tuple[str, str | None], _Kind] = {}

    def note(self, result: PromptResult, tenant: str | None) -> None:
        """Count a failed job, and log it unless one like it was logged just now."""
        if result.error is None:
            return
        counts.add("jobs_failed_total", result.error.code)
        key = result.error.code, result.model
        if (kind := self._kinds.get(key)) is not None:
            kind.more += 1
            kind.latest, kind.tenant = result, tenant
        elif len(self._kinds) < MOST_KINDS:
            self._kinds[key] = _Kind()
            logger.warning("Job %s failed: %s", result.id, _reason(result), extra=_fields(result, tenant))
            self._look_again(key)

    def _look_again(self, key: tuple[str, str | None]) -> None:
        asyncio.get_running_loop().call_later(self._every_s, self._say_how_many, key)

    def _say_how_many(self, key: tuple[str, str | None]) -> None:
        kind = self._kinds[key]
        if kind.latest is None:
            del self._kinds[key]
            return
        logger.warning(
            "%d more jobs failed like it in %g s, the last of them %s: %s",
            kind.more,
            self._every_s,
            kind.latest.id,
            _reason(kind.latest),
            extra=_fields(kind.latest, kind.tenant),
        )
        self._kinds[key] = _Kind()
        self._look_again(key)


def _reason(result: PromptResult) -> str:
    assert result.error is not None
    model = f" (model {result.model})" if result.model else ""
    return f"{result.error.code}{model}: {result.error.message}"


def _fields(result: PromptResult, tenant: str | None) -> dict[str, Any]:
    """Fields of their own in JSON lines. Neither the prompt nor the provider's body is among them."""
    assert result.error is not None
    last = result.failed_attempts[-1] if result.failed_attempts else None
    return {
        "job": result.id,
        "tenant": tenant,
        "model": result.model,
        "provider": last.answered_by if last else None,
        "code": result.error.code,
        "http_status": result.error.http_status,
        "duration_s": round(result.duration_s, 3),
        "attempts": result.attempts,
    }
