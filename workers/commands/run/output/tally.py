"""What a run has done so far, counted as results come."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal

from tasks.results import Attempt, PromptResult

from ..input.rows import BadRow, Row
from .latency import LatencyHistogram

__all__ = ["ALIKE", "Tally"]

ALIKE = 20
"""So many rows that fail alike, and no other, are no accident: a wrong key, an empty account, a misspelt field."""


class Tally:
    """Counts of this run. Rows that an earlier run finished count as `kept` and nowhere else.

    `cost_usd` is None until one cost is known; `unpriced` counts answers whose cost is not. `saved_usd` is what stored
    answers would have cost, as far as that is known. `first_failure` is code and message of the first job that failed,
    without anything of its prompt.
    """

    def __init__(self) -> None:
        self.kept = 0
        self.submitted = 0
        self.statuses: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.first_failure: str | None = None
        self.refusals: Counter[str] = Counter()
        self.prompt_fields: Counter[str] = Counter()
        self.latency = LatencyHistogram()
        self.input_tokens = 0
        self.output_tokens = 0
        self.cost_usd: Decimal | None = None
        self.unpriced = 0
        self.attempts = 0
        self.rate_limited = 0
        self.cached = 0
        self.saved_usd = Decimal(0)
        self.suspected_double_payments = 0
        self._reasons: set[tuple[str, int | None]] = set()

    @property
    def ended(self) -> int:
        """Jobs that have ended, well or badly."""
        return self.statuses.total()

    @property
    def bad_rows(self) -> int:
        """Rows that could not be sent."""
        return self.refusals.total()

    @property
    def rows(self) -> int:
        """Rows of the input that have their row of output."""
        return self.kept + self.bad_rows + self.ended

    @property
    def all_failed_alike(self) -> bool:
        """Whether the first rows of this run have failed, all of them for one reason."""
        return self.ended >= ALIKE and not self.kept and len(self._reasons) == 1 and not self.statuses["succeeded"]

    def submit(self, row: Row) -> None:
        self.submitted += 1
        if row.field is not None:
            self.prompt_fields[row.field] += 1

    def withdraw(self, row: Row) -> None:
        """The row was counted as submitted, and the queue has refused it."""
        self.submitted -= 1
        if row.field is not None:
            self.prompt_fields[row.field] -= 1

    def refuse(self, bad: BadRow) -> None:
        self.refusals[bad.code] += 1

    def end(self, result: PromptResult) -> None:
        self.statuses[result.status] += 1
        if result.error is not None:
            self.failures[result.error.code] += 1
            self.first_failure = self.first_failure or f"{result.error.code}: {result.error.message}"
            if len(self._reasons) < 2:
                self._reasons.add((result.error.code, result.error.http_status))
        self.attempts += result.attempts
        self.rate_limited += sum(attempt.http_status == 429 for attempt in _failed_attempts(result))
        self.cached += result.cached
        if result.saved_usd is not None:
            self.saved_usd += Decimal(str(result.saved_usd))
        self.suspected_double_payments += result.suspected_double_payment
        self.input_tokens += result.usage.input_tokens
        self.output_tokens += result.usage.output_tokens
        if result.ok:
            self.latency.add(result.duration_s)
        self._charge(result)

    def _charge(self, result: PromptResult) -> None:
        if result.cost_usd is not None:
            # Through its text: Decimal(0.1) would carry the float's error into the sum.
            self.cost_usd = (self.cost_usd or Decimal(0)) + Decimal(str(result.cost_usd))
        elif result.ok:
            self.unpriced += 1


def _failed_attempts(result: PromptResult) -> tuple[Attempt, ...]:
    if result.failed_attempts:
        return result.failed_attempts
    return result.error.attempts if result.error else ()
