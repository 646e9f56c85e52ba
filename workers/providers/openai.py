"""The OpenAI-compatible wire format, of every kind of work."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar, Final
from urllib.parse import quote

import orjson

from tasks.wire.kinds import KINDS

from ..prompt.failure import Failure
from .answers import count_inputs, count_token_ids, read_chat, read_embeddings, read_object
from .codec import Answer, AnswerSize, Assembly, Probe, ProviderRequest, RawResponse, RequestSize
from .endpoints.completions import count_completions, read_completion
from .endpoints.moderations import read_moderation
from .endpoints.responses import read_response
from .refusals import refusal, with_evidence
from .size import NO_MEDIA, measure
from .stream.chunks import ChatAssembly, CompletionAssembly
from .stream.response_events import ResponseAssembly

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pydantic import SecretStr

    from config.catalog import Model, Provider
    from tasks.wire.kinds import JobKind

    from ..prompt.job import PromptJob

__all__ = ["OpenAICodec"]

MOST_ANSWER_BYTES = 64 * 1024 * 1024
"""However many answers a request has."""

_CHAT_BYTES = 512 * 1024
"""Of one answer of several, with its log probabilities."""

_DIMENSIONS = 1_536
_MOST_DIMENSIONS = 4_096
_NUMBER_BYTES = 13
_MOST_NUMBER_BYTES = 32
"""All digits of a double, on a line of its own."""

_BASE64_NUMBER_BYTES = 6
_ROW_BYTES = 512

_SAID: Final[Mapping[JobKind, tuple[str, ...]]] = {
    "chat": ("messages", "tools", "response_format"),
    "embed": ("input",),
    "respond": ("input", "instructions", "tools", "text"),
    "complete": ("prompt", "suffix"),
    "moderate": ("input",),
}
"""The fields whose text a model reads."""

_LIMITS: Final[Mapping[JobKind, tuple[str, ...]]] = {
    "chat": ("max_completion_tokens", "max_tokens"),
    "embed": (),
    "respond": ("max_output_tokens",),
    "complete": ("max_tokens",),
    "moderate": (),
}
"""What bounds an answer's tokens; the first that is there counts."""

_TAKE_TOKEN_IDS: Final[frozenset[JobKind]] = frozenset({"embed", "complete"})

_READERS: Final[Mapping[JobKind, Callable[[PromptJob, dict[str, Any], RawResponse, float], Answer]]] = {
    "chat": lambda _job, body, raw, now: read_chat(body, raw, now=now),
    "embed": lambda job, body, _raw, _now: read_embeddings(body, job),
    "respond": lambda _job, body, _raw, _now: read_response(body),
    "complete": lambda job, body, _raw, _now: read_completion(body, job.body),
    "moderate": lambda job, body, _raw, _now: read_moderation(body, job.body),
}

_ASSEMBLIES: Final[Mapping[JobKind, Callable[[dict[str, Any]], Assembly]]] = {
    "chat": lambda _body: ChatAssembly(),
    "respond": lambda _body: ResponseAssembly(),
    "complete": lambda body: CompletionAssembly(count_completions(body)),
}
"""Of the kinds whose answers come in pieces."""


class OpenAICodec:
    """OpenAI, and every gateway that speaks its protocol.

    The body goes out as the user wrote it, with two exceptions: `model` becomes the provider's own name, and whether
    the answer is streamed is the worker's to say, not the body's.
    """

    version = 1
    """See `Codec.version`. Of the kinds that build on this one, too."""

    def size(self, job: PromptJob) -> RequestSize:
        """See `Codec.size`."""
        body = job.body
        kind = job.kind
        if kind in _TAKE_TOKEN_IDS and (tokens := count_token_ids(body.get(KINDS[kind].field))):
            chars, media = 0, NO_MEDIA
        else:
            tokens = 0
            chars, media = measure([body[name] for name in _SAID[kind] if name in body])
        answers = count_completions(body) if kind == "complete" else ("n" in body and _count(body["n"])) or 1
        limit = None
        for name in _LIMITS[kind]:  # a job is sized for each limit that it meets, and most bound nothing
            if name in body and (limit := _count(body[name])):
                break
        return RequestSize(chars, limit, answers, media, tokens)

    def answer_size(self, job: PromptJob) -> AnswerSize:
        """See `Codec.answer_size`."""
        body = job.body
        if job.kind != "embed":
            return AnswerSize(_count(body.get("n")) or 1, likely_bytes=0)
        dimensions, is_packed = _count(body.get("dimensions")), body.get("encoding_format") == "base64"
        number_bytes = _BASE64_NUMBER_BYTES if is_packed else _NUMBER_BYTES
        likely_bytes = (dimensions or _DIMENSIONS) * number_bytes
        return AnswerSize(count_inputs(body["input"]), likely_bytes, (dimensions, is_packed), is_packed)

    key_header: ClassVar[str | None] = None
    """The header that takes a key, unless the provider's `auth` is "bearer". None: every key is a bearer token."""

    def check(self, job: PromptJob, *, model: Model) -> None:
        """See `Codec.check`. The provider judges the body."""

    def request(
        self, job: PromptJob, *, model: Model, provider: Provider, key: SecretStr | None, streams: bool = False
    ) -> ProviderRequest:
        """See `Codec.request`."""
        body = {**job.body, "model": model.upstream}
        body.pop("stream", None)
        wished = body.pop("stream_options", None)
        if streams:
            body["stream"] = True
            if provider.stream_options and KINDS[job.kind].counts_if_asked:
                body["stream_options"] = {**(wished if isinstance(wished, dict) else {}), "include_usage": True}
        sent = headers(job, provider)
        if key is not None:
            sent.update(self._auth(provider, key))
        return ProviderRequest(self._url(job, model, provider), sent, dumps(body), answer_bytes(job))

    def assembly(self, job: PromptJob) -> Assembly:
        """See `Codec.assembly`."""
        return _ASSEMBLIES[job.kind](job.body)

    def probe(self, provider: Provider, key: SecretStr | None) -> Probe:
        """See `Codec.probe`."""
        return Probe(
            f"{provider.base_url}/models{provider.query_string}", {**provider.headers, **self._auth(provider, key)}
        )

    def response(self, job: PromptJob, raw: RawResponse, *, now: float) -> Answer:
        """See `Codec.response`."""
        if not 200 <= raw.status < 300:
            raise refusal(raw, now=now)
        try:
            body = read_object(raw, now=now)
            return _READERS[job.kind](job, body, raw, now)
        except Failure as failure:
            raise with_evidence(failure, raw) from None

    def _url(self, job: PromptJob, model: Model, provider: Provider) -> str:
        """Where the job is sent. `model` is there for kinds whose addresses name it."""
        return f"{provider.base_url}{KINDS[job.kind].path}{provider.query_string}"

    def _auth(self, provider: Provider, key: SecretStr | None) -> dict[str, str]:
        if key is None:
            return {}
        if self.key_header is None or provider.auth == "bearer":
            return {"Authorization": f"Bearer {key.get_secret_value()}"}
        return {self.key_header: key.get_secret_value()}


def answer_bytes(job: PromptJob) -> int:
    """How large the answer to a request of many may well be."""
    body = job.body
    if job.kind != "embed":
        answers = count_completions(body) if job.kind == "complete" else _count(body.get("n")) or 0
        each_bytes = _CHAT_BYTES
    else:
        answers = count_inputs(body["input"])
        dimensions = max(_count(body.get("dimensions")) or 0, _MOST_DIMENSIONS)
        each_bytes = dimensions * _MOST_NUMBER_BYTES + _ROW_BYTES
    return min(answers * each_bytes, MOST_ANSWER_BYTES) if answers > 1 else 0


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def headers(job: PromptJob, provider: Provider) -> dict[str, str]:
    """The headers of a request, but for the key: ours and the catalogue's."""
    found = {
        "Content-Type": "application/json",
        # A stock producer may choose any id; quoting keeps it a legal header value.
        "x-promptmill-job-id": job.id if job.id.isascii() and job.id.isprintable() else quote(job.id),
    }
    if provider.headers:
        found.update(provider.headers)
    return found


def dumps(body: Mapping[str, Any]) -> bytes:
    """A request's body. Raises `Failure` (`bad_request`) for what is no JSON."""
    try:
        # A copy, because orjson leaves 4 KB behind each text, and this one is kept for as long as the call lasts.
        return bytes(memoryview(orjson.dumps(body)))
    except TypeError:
        return _dumps_exactly(body)


def _dumps_exactly(body: Mapping[str, Any]) -> bytes:
    """For what orjson can't write: integers of more than 64 bits."""
    try:
        return json.dumps(body, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError):
        raise Failure("bad_request", "the body can't be written as JSON") from None
