"""How large a result's record may be, and what to say of a job whose answer would not fit.

Each result is published to who waits for it, and Redis cuts off a subscriber for whom more than 32 MB are waiting (its
`client-output-buffer-limit pubsub`). A larger record would be paid for and reach nobody.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import orjson

from ..prompt.compression import compressed
from ..prompt.failure import Failure

if TYPE_CHECKING:
    from ..providers import Answer, AnswerSize

__all__ = ["MOST_BYTES", "RecordSizes", "check_answer"]

MOST_BYTES = 31 * 1024 * 1024
"""Of a record as it is stored, with room for what surrounds the answer."""

LIKELY_SHRINK = 0.5
"""What compression leaves of vectors in digits and of text: 0.43 and 0.40 were measured. Those in base64 would shrink
to 0.76, and so are stored as they are (workers/prompt/compression.py)."""

LEARN_FROM = 100
"""Answers of a job. Smaller jobs come nowhere near the limit, and need not be measured."""

_KINDS_KEPT = 64


class RecordSizes:
    """What one model's answers take in a record, learned as they come."""

    def __init__(self) -> None:
        self._bytes_each: dict[object, int] = {}

    def check(self, size: AnswerSize, *, compresses: bool) -> None:
        """Raises `Failure` (`too_large`) for a job of more answers than a record holds. Nothing has been paid yet."""
        if size.answers < LEARN_FROM:
            return
        shrinks = compresses and not size.is_packed
        each = self._bytes_each.get(size.kind, size.likely_bytes) * (LIKELY_SHRINK if shrinks else 1.0)
        if each * size.answers > MOST_BYTES:
            raise Failure(
                "too_large",
                f"the answers to {size.answers:,} inputs would take about {each * size.answers / 1e6:,.0f} MB, and "
                f"Redis delivers {MOST_BYTES / 1e6:,.0f} MB; send at most {int(MOST_BYTES / each):,} inputs in one job",
            )

    def known(self, kind: object) -> int | None:
        """How many bytes one answer of this kind takes (`AnswerSize.kind`), where one was measured."""
        return self._bytes_each.get(kind)

    def learn(self, size: AnswerSize, answer: Answer) -> None:
        """Measure one of many answers."""
        rows = answer.response.get("data")
        if size.answers < LEARN_FROM or not isinstance(rows, list):
            return
        if len(self._bytes_each) >= _KINDS_KEPT:
            self._bytes_each.clear()
        self._bytes_each[size.kind] = len(orjson.dumps(rows[0])) + 1


async def check_answer(answer: Answer, body_bytes: int, *, compresses: bool) -> None:
    """Raises `Failure` (`too_large`) for an answer whose record can't be delivered. `body_bytes`: as it came."""
    # The text stands in the record beside the response, and so twice.
    if 2 * body_bytes <= MOST_BYTES:
        return
    record = orjson.dumps([answer.text, answer.response])
    stored = len(record)
    if stored > MOST_BYTES and compresses:
        packed = await asyncio.to_thread(compressed, record)
        stored = stored if packed is None else len(packed)
    if stored > MOST_BYTES:
        raise Failure(
            "too_large",
            f"the answer takes {stored / 1e6:,.0f} MB as it would be stored, and Redis delivers "
            f"{MOST_BYTES / 1e6:,.0f} MB; ask for fewer inputs or answers in one job",
        )
