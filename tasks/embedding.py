"""Any number of texts as rows for `submit_many`, a few at a time in memory."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from .errors import InvalidJob

__all__ = ["Texts", "embedding_rows", "embedding_rows_sync"]

Texts = Iterable[Any] | AsyncIterable[Any]
"""Texts, or lists of token ids."""

Row = dict[str, Any]


def embedding_rows(texts: Texts, *, texts_per_job: int, **job: Any) -> Iterable[Row] | AsyncIterator[Row]:
    """A row for each `texts_per_job` texts, with the place of its first one in its metadata: {"index": 0}.

    `job` are further arguments of `submit`. Raises `InvalidJob` for what can't be.
    """
    if isinstance(texts, AsyncIterable):
        return _rows_of_async(texts, texts_per_job, _row_maker(texts_per_job, job))
    return embedding_rows_sync(texts, texts_per_job=texts_per_job, **job)


def embedding_rows_sync(texts: Iterable[Any], *, texts_per_job: int, **job: Any) -> Iterator[Row]:
    """The same for texts that are read in the caller's thread."""
    if isinstance(texts, str):
        raise InvalidJob("texts: must be texts, not one text; submit(input=...) takes one")
    return _rows(iter(texts), texts_per_job, _row_maker(texts_per_job, job))


def _row_maker(texts_per_job: int, job: dict[str, Any]) -> Callable[[int, list[Any]], Row]:
    if not isinstance(texts_per_job, int) or isinstance(texts_per_job, bool) or texts_per_job < 1:
        raise InvalidJob("texts_per_job: must be a whole number, 1 or more")
    if "id" in job:
        raise InvalidJob("id: each of the jobs has its own; leave it out")
    metadata = job.pop("metadata", None)
    if metadata is not None and not isinstance(metadata, dict):
        raise InvalidJob("metadata: must be an object here; each text's `index` is added to it")
    beside = metadata or {}

    def row(index: int, batch: list[Any]) -> Row:
        value = batch[0] if texts_per_job == 1 else batch
        return {**job, "input": value, "metadata": {**beside, "index": index}}

    return row


def _rows(texts: Iterator[Any], texts_per_job: int, row: Callable[[int, list[Any]], Row]) -> Iterator[Row]:
    index = 0
    while batch := list(islice(texts, texts_per_job)):
        yield row(index, batch)
        index += len(batch)


async def _rows_of_async(
    texts: AsyncIterable[Any], texts_per_job: int, row: Callable[[int, list[Any]], Row]
) -> AsyncIterator[Row]:
    index, batch = 0, []
    async for text in texts:
        batch.append(text)
        if len(batch) == texts_per_job:
            yield row(index, batch)
            index, batch = index + len(batch), []
    if batch:
        yield row(index, batch)
