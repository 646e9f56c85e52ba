"""The kinds of work, each once: the Celery task that takes it, and the endpoint that answers it.

Here stands what client, worker, command line and simulator have to agree on. How an endpoint's answer is read is the
codec's to know (`workers/providers/`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal

__all__ = ["KINDS", "TASK_NAMES", "Api", "JobKind", "Kind", "kind_of_url"]

JobKind = Literal["chat", "embed", "respond", "complete", "moderate"]

Api = Literal["chat", "embeddings", "responses", "completions", "moderations"]
"""What a provider's `apis` names."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of work. `task` is the Celery task's name, and `path` that of the endpoint below a provider's address.

    `field` of the request's body holds the prompt. `streams`: its answer may come in pieces. `counts_if_asked`: a
    streamed one tells its usage only where `stream_options` ask for it. `is_repeatable`: the same
    request is always meant to bring the same answer. `writes`: the answer has tokens of its own. `fits_schema`: it can
    be held to a JSON Schema. `has_flex`: providers take it in their flex tier. `refuses` names fields that are ours to
    decide, and says why.
    """

    name: JobKind
    task: str
    api: Api
    path: str
    field: str
    noun: str
    streams: bool = False
    counts_if_asked: bool = False
    is_repeatable: bool = False
    writes: bool = True
    fits_schema: bool = False
    has_flex: bool = False
    refuses: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def conflict(self, body: Mapping[str, Any]) -> tuple[str, str] | None:
        """The field that a body of this kind may not have, and why; None: it has none."""
        return next(((name, why) for name, why in self.refuses.items() if body.get(name)), None)


KINDS: Final[Mapping[JobKind, Kind]] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            Kind(
                "chat",
                task="prompts.chat",
                api="chat",
                path="/chat/completions",
                field="messages",
                noun="a chat",
                streams=True,
                counts_if_asked=True,
                fits_schema=True,
                has_flex=True,
            ),
            Kind(
                "embed",
                task="prompts.embed",
                api="embeddings",
                path="/embeddings",
                field="input",
                noun="an embedding",
                is_repeatable=True,
                writes=False,
            ),
            Kind(
                "respond",
                task="prompts.respond",
                api="responses",
                path="/responses",
                field="input",
                noun="a response",
                streams=True,
                has_flex=True,
                refuses={"background": "the queue is the background, and a worker waits for the answer; leave it out"},
            ),
            Kind(
                "complete",
                task="prompts.complete",
                api="completions",
                path="/completions",
                field="prompt",
                noun="a completion",
                streams=True,
                counts_if_asked=True,
            ),
            Kind(
                "moderate",
                task="prompts.moderate",
                api="moderations",
                path="/moderations",
                field="input",
                noun="a moderation",
                is_repeatable=True,
                writes=False,
            ),
        )
    }
)

TASK_NAMES: Final[Mapping[JobKind, str]] = MappingProxyType({name: kind.task for name, kind in KINDS.items()})


def kind_of_url(url: str) -> JobKind | None:
    """The kind of work that an endpoint's URL, or the end of one, stands for."""
    # `/completions` is the end of `/chat/completions` too: the longest path that fits is meant.
    fitting = [kind for kind in KINDS.values() if url.rstrip("/").endswith(kind.path)]
    return max(fitting, key=lambda kind: len(kind.path)).name if fitting else None
