"""An answer that no record holds is refused before it is paid for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...providers import Answer
    from ..trip import Down, Shape, Trip

__all__ = ["RecordSize"]


class RecordSize:
    """Refuses embeddings whose answers would not fit into a record, before they are paid for."""

    def __init__(self, *, compresses: bool) -> None:
        """`compresses`: whether large results of our client's jobs are stored compressed."""
        self._compresses = compresses

    def serves(self, shape: Shape) -> bool:
        return shape.kind == "embed"

    async def __call__(self, trip: Trip, down: Down) -> Answer:
        route, job = trip.route, trip.job
        route.sizes.check(route.codec.answer_size(job), compresses=self._compresses and job.is_clients)
        return await down(trip)
