"""The kinds of work, each once: the Celery task that takes it, and the endpoint that answers it.

Here stands what client, worker, command line and simulator have to agree on. How an endpoint's answer is read is the
codec's to know (`workers/providers/`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

__all__ = ["KINDS", "KIND_OF_PATH", "TASK_NAMES", "Api", "JobKind", "Kind"]

JobKind = Literal["chat", "embed"]

Api = Literal["chat", "embeddings"]
"""What a provider's `apis` names."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of work. `task` is the Celery task's name, and `path` that of the endpoint below a provider's address.

    `field` of the request's body holds the prompt. `streams`: its answer may come in pieces. `is_repeatable`: the same
    request is always meant to bring the same answer. `fits_schema`: its answer can be held to a JSON Schema.
    `has_flex`: providers take it in their flex tier.
    """

    name: JobKind
    task: str
    api: Api
    path: str
    field: str
    noun: str
    streams: bool = False
    is_repeatable: bool = False
    fits_schema: bool = False
    has_flex: bool = False


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
            ),
        )
    }
)

TASK_NAMES: Final[Mapping[JobKind, str]] = MappingProxyType({name: kind.task for name, kind in KINDS.items()})
KIND_OF_PATH: Final[Mapping[str, JobKind]] = MappingProxyType({kind.path: name for name, kind in KINDS.items()})
