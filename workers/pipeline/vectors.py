"""The vectors in a response."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tasks.wire.vectors import MARK, has_packed, unpacked

if TYPE_CHECKING:
    from ..prompt.job import PromptJob

__all__ = ["for_reader", "in_order"]


def for_reader(job: PromptJob, response: dict[str, Any]) -> dict[str, Any]:
    """The response to an embeddings job: packed and marked for our client, which unpacks it, in numbers for others.

    Where the job asked for a format, it has that.
    """
    if "encoding_format" in job.body or not has_packed(response):
        return response
    return {**response, MARK: "base64"} if job.options.vectors == "base64" else unpacked(response)


def in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By `index`, which the codec has checked; servers that leave zeros out leave out the first one's."""
    return sorted(rows, key=lambda row: row.get("index", 0))
