"""What is Anthropic's of a request and of what comes back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tasks.wire.kinds import KINDS

from ...prompt.failure import Failure
from ..answers import read_chat, read_object
from ..codec import Answer, Assembly, Probe, ProviderRequest, RawResponse
from ..openai import OpenAICodec, dumps, headers
from ..refusals import refusal, with_evidence
from .answer import chat_completion
from .messages import refused
from .request import messages_request
from .stream import MessageAssembly

if TYPE_CHECKING:
    from pydantic import SecretStr

    from config.catalog import Model, Provider

    from ...prompt.job import PromptJob

__all__ = ["AnthropicCodec"]

_VERSION = {"anthropic-version": "2023-06-01"}
"""The version that takes `temperature` and `top_p` for the models that have them; a provider's `headers` may name the
next one, 2026-10-21, which refuses both."""


class AnthropicCodec(OpenAICodec):
    """The Messages API. Jobs and answers have OpenAI's shape, so what is measured of them is measured alike."""

    key_header = "x-api-key"

    def check(self, job: PromptJob, *, model: Model) -> None:
        """See `Codec.check`."""
        _translated(job, model)

    def request(
        self, job: PromptJob, *, model: Model, provider: Provider, key: SecretStr | None, streams: bool = False
    ) -> ProviderRequest:
        """See `Codec.request`."""
        url = f"{provider.base_url}/messages{provider.query_string}"
        sent = _VERSION | headers(job, provider) | self._auth(provider, key)
        body = _translated(job, model)
        return ProviderRequest(url, sent, dumps({**body, "stream": True} if streams else body))

    def assembly(self, job: PromptJob) -> Assembly:
        """See `Codec.assembly`."""
        return MessageAssembly()

    def response(self, job: PromptJob, raw: RawResponse, *, now: float) -> Answer:
        """See `Codec.response`."""
        if not 200 <= raw.status < 300:
            raise refusal(raw, now=now)
        try:
            return read_chat(chat_completion(read_object(raw, now=now), now=now), raw, now=now)
        except Failure as failure:
            raise with_evidence(failure, raw) from None

    def probe(self, provider: Provider, key: SecretStr | None) -> Probe:
        """See `Codec.probe`."""
        query = provider.query_string or "?limit=1000"
        return Probe(
            f"{provider.base_url}/models{query}", {**_VERSION, **provider.headers, **self._auth(provider, key)}
        )


def _translated(job: PromptJob, model: Model) -> dict[str, Any]:
    """What a model takes depends on its generation, which its own name tells, not the name that jobs use."""
    if job.kind != "chat":
        kind = KINDS[job.kind]
        raise refused(kind.field, f"Anthropic has no {kind.api}; name a model of another provider")
    return messages_request(job.body, model=model.upstream)
