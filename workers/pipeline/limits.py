"""The limit that all workers share, as the pipeline sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ..providers.size import NO_MEDIA, Media

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import SecretStr

    from config.catalog import Model
    from tasks.wire.vocabulary import Priority

    from ..limiter import Cost, Permit
    from ..prompt.job import PromptJob
    from ..providers.codec import RequestSize
    from .trip import Route

__all__ = ["Limits", "estimate"]


class Limits(Protocol):
    """The shared limit: `limiter.LimiterRegistry`, and what the tests put in its place."""

    def estimate(
        self,
        model: Model,
        *,
        input_chars: int,
        media: Media = NO_MEDIA,
        max_tokens: int | None = None,
        answers: int = 1,
        embeds: bool = False,
    ) -> Cost: ...

    def expected_wait_s(
        self, model: Model, keys: Sequence[SecretStr | None], priority: Priority = "normal"
    ) -> float: ...

    def expected_output(self, model: Model, cost: Cost) -> int | None: ...

    def admit_free(
        self,
        model: Model,
        keys: Sequence[SecretStr | None],
        *,
        priority: Priority = "normal",
        tenant: str | None = None,
    ) -> Permit | None: ...

    async def admit(
        self,
        model: Model,
        keys: Sequence[SecretStr | None],
        *,
        cost: Cost,
        priority: Priority = "normal",
        tenant: str | None = None,
        deadline_at: float | None = None,
        park_after_s: float | None = None,
    ) -> Permit: ...


def estimate(limits: Limits, job: PromptJob, route: Route, *, size: RequestSize | None = None) -> Cost:
    """What the job takes of the limits of this model, if it answers. `size`: the codec's, where it is known."""
    size = size or route.codec.size(job)
    return limits.estimate(
        route.model,
        input_chars=size.input_chars,
        media=size.media,
        max_tokens=size.max_tokens,
        answers=size.answers,
        embeds=job.kind == "embed",
    )
