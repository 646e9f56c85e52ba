"""How providers differ on the wire: paths, keys, bodies, limits and errors, as one value for each. No I/O.

Sources, as of November 2026: the providers' API references, and what their users report of real answers
(openai/openai-python#937 for Azure's headers, n4ze3m/page-assist#406 for Gemini's errors, mistralai/client-ts#169 for
Mistral's headers, Gitlawb/openclaude#936 for OpenRouter's).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

import orjson

from tasks.wire.kinds import KINDS, Api, JobKind

from .answers import messages_api, replies
from .answers.replies import ErrorParts
from .limits import Allowance, Bucket, reset_text
from .request import ChatRequest, EmbeddingRequest, InvalidRequest, read_chat, read_embedding

__all__ = ["DIALECTS", "Dialect", "DialectName", "Endpoint"]

DialectName = Literal["openai", "azure", "anthropic", "gemini", "groq", "openrouter", "mistral", "deepseek", "vllm"]
Endpoint = JobKind | Literal["models"]

_ALL_APIS: frozenset[Api] = frozenset(kind.api for kind in KINDS.values())
_RESPONDS: frozenset[Api] = frozenset({"chat", "embeddings", "responses"})
_REQUESTS_A_DAY = 14_400
_DAY_S = 86_400.0


def _bearer(headers: Mapping[str, str]) -> str:
    scheme, _, key = headers.get("Authorization", "").partition(" ")
    return key if scheme == "Bearer" else ""


def _own_header(name: str, headers: Mapping[str, str]) -> str:
    return headers.get(name, "") or _bearer(headers)


def _openai_error(_status: int, error: ErrorParts) -> bytes:
    return replies.error_body(error.message, error.kind, code=error.code, param=error.param)


def _openai_limits(allowance: Allowance, now_s: float, _at_s: float) -> dict[str, str]:
    return allowance.headers(now_s)


def _openai_waits(wait_s: float) -> dict[str, str]:
    return {"Retry-After": str(math.ceil(wait_s)), "retry-after-ms": str(math.ceil(wait_s * 1000))}


def _retry_after(wait_s: float) -> dict[str, str]:
    return {"Retry-After": str(math.ceil(wait_s))}


def _no_limits(_allowance: Allowance, _now_s: float, _at_s: float) -> dict[str, str]:
    return {}


def _no_waits(_wait_s: float) -> dict[str, str]:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """One provider's wire. The defaults are OpenAI's.

    `prefix` is what its base URL ends in, and `kind` the codec that speaks it. `limits` gives the headers that tell
    limits, from an allowance, the loop's time and the epoch time; `waits` those of a refusal. `error` writes a body.
    `check_headers` raises `InvalidRequest` for headers that this provider alone refuses. `structured_outputs` is what
    a catalogue says of it, and `apis` are the endpoints that it has.
    """

    name: DialectName
    prefix: str = "/v1"
    kind: Literal["openai", "azure", "anthropic"] = "openai"
    chat_path: str = KINDS["chat"].path
    apis: frozenset[Api] = frozenset({"chat", "embeddings"})
    request_id: str = "x-request-id"
    key: Callable[[Mapping[str, str]], str] = _bearer
    read_chat: Callable[[bytes], ChatRequest] = read_chat
    read_embedding: Callable[[bytes], EmbeddingRequest] = read_embedding
    chat_body: Callable[..., bytes] = replies.chat_body
    chat_events: Callable[..., list[bytes]] = replies.chat_events
    error: Callable[[int, ErrorParts], bytes] = _openai_error
    invalid_status: int = 400
    limits: Callable[[Allowance, float, float], dict[str, str]] = _openai_limits
    waits: Callable[[float], dict[str, str]] = _openai_waits
    check_headers: Callable[[Mapping[str, str]], None] = lambda headers: None
    structured_outputs: Literal["json_schema", "json_object"] = "json_schema"

    def locate(self, path: str) -> tuple[Endpoint, str | None] | None:
        """The endpoint of a path, and the model where the path names it."""
        paths: dict[str, Endpoint] = {
            **{kind.path: kind.name for kind in KINDS.values() if kind.api in self.apis and kind.name != "chat"},
            self.chat_path: "chat",
            "/models": "models",
        }
        if path.startswith(self.prefix) and (endpoint := paths.get(path.removeprefix(self.prefix))) is not None:
            return endpoint, None
        return _azure_path(path) if self.kind == "azure" else None


# -- Azure

_DEPLOYMENT = re.compile(r"/openai/deployments/([^/]+)(/.*)")
_ON_DEPLOYMENT: Mapping[str, Endpoint] = {KINDS[name].path: name for name in ("chat", "embed", "complete")}


def _azure_path(path: str) -> tuple[Endpoint, str | None] | None:
    if path == "/openai/models":
        return "models", None
    if path == f"/openai{KINDS['respond'].path}":
        return "respond", None
    found = _DEPLOYMENT.fullmatch(path)
    return (_ON_DEPLOYMENT[found[2]], found[1]) if found and found[2] in _ON_DEPLOYMENT else None


def _azure_error(status: int, error: ErrorParts) -> bytes:
    code = error.code if status == 400 and error.code else str(status)
    return orjson.dumps({"error": {"code": code, "message": error.message}})


def _azure_limits(allowance: Allowance, now_s: float, _at_s: float) -> dict[str, str]:
    return {name: value for name, value in allowance.headers(now_s).items() if "-remaining-" in name}


# -- Anthropic


def _anthropic_limits(allowance: Allowance, now_s: float, at_s: float) -> dict[str, str]:
    headers = {}
    for name, meter in allowance.meters:
        headers[f"anthropic-ratelimit-{name}-limit"] = str(meter.limit)
        headers[f"anthropic-ratelimit-{name}-remaining"] = str(meter.remaining(now_s))
        headers[f"anthropic-ratelimit-{name}-reset"] = _rfc_3339(at_s + meter.reset_s(now_s))
    return headers


def _rfc_3339(at_s: float) -> str:
    return datetime.fromtimestamp(math.ceil(at_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _anthropic_error(status: int, error: ErrorParts) -> bytes:
    return messages_api.error_body(status, error.message)


def _check_version(headers: Mapping[str, str]) -> None:
    if not headers.get("anthropic-version"):
        raise InvalidRequest("anthropic-version: header is required")


# -- Gemini

_GOOGLE_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
}


def _gemini_error(status: int, error: ErrorParts) -> bytes:
    """An array of one error. The wait is in the body alone."""
    google: dict[str, Any] = {
        "code": status,
        "message": error.message,
        "status": _GOOGLE_STATUS.get(status, "UNKNOWN"),
    }
    if error.wait_s is not None:
        detail = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{math.ceil(error.wait_s)}s"}
        google["details"] = [detail]
    return orjson.dumps([{"error": google}])


# -- Groq: requests a day in the header, whatever is limited a minute


def _groq_limits(allowance: Allowance, now_s: float, _at_s: float) -> dict[str, str]:
    told = {name: value for name, value in allowance.headers(now_s).items() if name.endswith("-tokens")}
    return {
        "x-ratelimit-limit-requests": str(_REQUESTS_A_DAY),
        "x-ratelimit-remaining-requests": str(_REQUESTS_A_DAY - 1),
        "x-ratelimit-reset-requests": reset_text(_DAY_S / _REQUESTS_A_DAY),
        **told,
    }


# -- OpenRouter


def _openrouter_error(status: int, error: ErrorParts) -> bytes:
    return orjson.dumps({"error": {"message": error.message, "code": status}, "user_id": "user_simulated"})


# -- Mistral

_MISTRALS_FIELDS = frozenset(
    [
        "model",
        "messages",
        "temperature",
        "top_p",
        "max_tokens",
        "stream",
        "stop",
        "random_seed",
        "response_format",
        "tools",
        "tool_choice",
        "presence_penalty",
        "frequency_penalty",
        "n",
        "prediction",
        "parallel_tool_calls",
        "prompt_mode",
        "reasoning_effort",
        "safe_prompt",
        "metadata",
    ]
)


def _read_mistral_chat(body: bytes) -> ChatRequest:
    request = read_chat(body)
    if unknown := orjson.loads(body).keys() - _MISTRALS_FIELDS:
        raise InvalidRequest("Extra inputs are not permitted", sorted(unknown)[0])
    return request


def _mistral_error(_status: int, error: ErrorParts) -> bytes:
    return orjson.dumps(
        {"object": "error", "message": error.message, "type": error.kind, "param": error.param, "code": error.code}
    )


def _mistral_limits(allowance: Allowance, now_s: float, _at_s: float) -> dict[str, str]:
    """What is left of the minute, which a bucket does not know."""
    headers = {}
    for name, meter in allowance.meters:
        if isinstance(meter, Bucket):
            continue
        ours = {"requests": "req", "tokens": "tokens"}[name]
        headers[f"x-ratelimit-limit-{ours}-minute"] = str(meter.limit)
        headers[f"x-ratelimit-remaining-{ours}-minute"] = str(meter.remaining(now_s))
    return headers


# -- DeepSeek


def _read_deepseek_chat(body: bytes) -> ChatRequest:
    request = read_chat(body)
    wanted = orjson.loads(body).get("response_format")
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind == "json_schema":
        raise InvalidRequest("This response_format type is unavailable now", "response_format")
    if kind == "json_object" and b"json" not in body.lower().replace(b"json_object", b""):
        raise InvalidRequest("Prompt must contain the word 'json' in some form to use 'json_object'.", "messages")
    return request


def _deepseek_chat_body(request: ChatRequest, completions: list[replies.Completion], *, seed: int) -> bytes:
    """Its own count of cached tokens, and blank lines before: it keeps a busy connection alive with them."""
    body = orjson.loads(replies.chat_body(request, completions, seed=seed))
    usage = body["usage"]
    usage["prompt_cache_hit_tokens"], usage["prompt_cache_miss_tokens"] = 0, usage["prompt_tokens"]
    return b"\n\n\n" + orjson.dumps(body)


# -- vLLM


def _vllm_error(status: int, error: ErrorParts) -> bytes:
    return orjson.dumps(
        {"object": "error", "message": error.message, "type": error.kind, "param": error.param, "code": status}
    )


DIALECTS: Mapping[str, Dialect] = MappingProxyType(
    {
        dialect.name: dialect
        for dialect in (
            Dialect(name="openai", apis=_ALL_APIS),
            Dialect(
                name="azure",
                prefix="/openai/v1",
                kind="azure",
                apis=_ALL_APIS - {"moderations"},
                request_id="apim-request-id",
                key=partial(_own_header, "api-key"),
                error=_azure_error,
                limits=_azure_limits,
                waits=_retry_after,
            ),
            Dialect(
                name="anthropic",
                kind="anthropic",
                chat_path="/messages",
                apis=frozenset({"chat"}),
                request_id="request-id",
                key=partial(_own_header, "x-api-key"),
                read_chat=messages_api.read_message,
                chat_body=messages_api.message_body,
                chat_events=messages_api.message_events,
                error=_anthropic_error,
                limits=_anthropic_limits,
                waits=_retry_after,
                check_headers=_check_version,
            ),
            Dialect(name="gemini", prefix="/v1beta/openai", error=_gemini_error, limits=_no_limits, waits=_no_waits),
            Dialect(name="groq", prefix="/openai/v1", apis=_RESPONDS, limits=_groq_limits, waits=_retry_after),
            Dialect(
                name="openrouter",
                prefix="/api/v1",
                apis=_RESPONDS,
                error=_openrouter_error,
                limits=_no_limits,
                waits=_retry_after,
            ),
            Dialect(
                name="mistral",
                apis=frozenset({"chat", "embeddings", "moderations"}),
                read_chat=_read_mistral_chat,
                error=_mistral_error,
                invalid_status=422,
                limits=_mistral_limits,
                waits=_no_waits,
            ),
            Dialect(
                name="deepseek",
                prefix="",
                read_chat=_read_deepseek_chat,
                chat_body=_deepseek_chat_body,
                limits=_no_limits,
                waits=_no_waits,
                structured_outputs="json_object",
            ),
            Dialect(
                name="vllm", apis=_ALL_APIS - {"moderations"}, error=_vllm_error, limits=_no_limits, waits=_no_waits
            ),
        )
    }
)
