"""What becomes of each call: let in or not, within the limits or not, answered how and when.

Everything is decided here as a `Plan`, from values and without I/O; `delivery` carries it out.
"""

from __future__ import annotations

import hmac
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from typing import NamedTuple

from .answers import replies, responses_api
from .answers.broken_json import KINDS, broken
from .answers.replies import ErrorParts
from .answers.small_apis import (
    completion_body,
    completion_events,
    moderation_body,
    read_completion,
    read_moderation,
)
from .caps import check_embedding
from .dialects import DIALECTS, Endpoint
from .draws import Attempts, lognormal, uniforms
from .faults import FAULTS, JSON_TYPE, Altered, Broken, Fault, Instead, check_shares, delivers_answer, pick
from .ledger import Call
from .limits import WINDOW_S, Allowance, Refusal
from .options import SimulatorOptions
from .request import FLEX, ChatRequest, EmbeddingRequest, InvalidRequest

__all__ = ["EVENTS_TYPE", "Answer", "Incoming", "Plan", "Provider"]

EVENTS_TYPE = "text/event-stream"

_ATTEMPTS_KEPT = 200_000
_FIRST_EVENT_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Answer:
    """What the client asked for: one piece of JSON, or the events of a stream."""

    pieces: Sequence[bytes] = field(default=(), repr=False)
    content_type: str = JSON_TYPE
    tokens: int = 0

    @property
    def streamed(self) -> bool:
        """Whether the client asked for events."""
        return self.content_type == EVENTS_TYPE

    def whole(self) -> bytes:
        """All of it at once."""
        return b"".join(self.pieces)

    def struck(self, *, error: bytes = b"") -> Answer:
        """The half of a stream that arrives, and the error that follows."""
        half = self.pieces[: max(1, len(self.pieces) // 2)]
        return replace(self, pieces=[*half, error] if error else half)


@dataclass(frozen=True, slots=True)
class Plan:
    """Wait `first_s` seconds, then send the answer as the fault says, its events spread over `spread_s` seconds."""

    answer: Answer = field(default_factory=Answer)
    fault: Fault | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    first_s: float = 0.0
    spread_s: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0


# Not frozen: one is made for each call, and that takes three times as long.
@dataclass(slots=True)
class Incoming:
    """What a request says beside its body. `deployment` is the model that its path names."""

    key: str = field(default="", repr=False)
    endpoint: Endpoint = "chat"
    deployment: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    forced_fault: str | None = None


@dataclass(frozen=True, slots=True)
class _Asked:
    """One readable request, whichever endpoint it came to. `render` makes the answer of the final `fault`, with one
    number from 0 to 1 for what is drawn of it.
    """

    model: str
    prompt_hash: str
    prompt_tokens: int
    completion_tokens: int
    reserved_tokens: int
    stream: bool
    render: Callable[[Fault | None, float], Answer]
    max_tokens: int | None = None
    is_asked_again: bool = False
    inputs: int = 0
    tier: str | None = None


class _Texts(NamedTuple):
    """An endpoint that answers with texts: how a request is read, and how its answer is written."""

    read: Callable[[bytes], ChatRequest]
    body: Callable[..., bytes]
    events: Callable[..., list[bytes]]


_RESPONSES = _Texts(responses_api.read_response, responses_api.response_body, responses_api.response_events)
_COMPLETIONS = _Texts(read_completion, completion_body, completion_events)


class Provider:
    """The provider's rules and memory: limits per key and model, attempts per content. Times are arguments."""

    def __init__(self, options: SimulatorOptions) -> None:
        self._options = options
        self._attempts = Attempts(kept=_ATTEMPTS_KEPT)
        self._truncated: dict[str, int] = {}
        """The limit with which an answer was truncated, by content."""
        self._allowances: dict[bytes, Allowance] = {}
        self._faults, self._faults_end_s = options.faults, math.inf
        self.dialect = DIALECTS[options.dialect]
        chat = _Texts(self.dialect.read_chat, self.dialect.chat_body, self.dialect.chat_events)
        self._readers: Mapping[Endpoint, Callable[[bytes], _Asked]] = {
            "chat": partial(self._read_texts, chat),
            "embed": self._read_embedding,
            "respond": partial(self._read_texts, _RESPONSES),
            "complete": partial(self._read_texts, _COMPLETIONS),
            "moderate": self._read_moderation,
        }

    def lets_in(self, key: str) -> bool:
        """Whether this is the key; any will do where none is asked for."""
        if self._options.api_key is None:
            return bool(key)
        return hmac.compare_digest(key.encode(errors="replace"), self._options.api_key.encode(errors="replace"))

    @property
    def open_to_all(self) -> bool:
        """Whether calls without a key are answered too."""
        return self._options.api_key is None

    def restart(self) -> None:
        """Every content's next attempt is its first again. The limits remember what they have let through."""
        self._attempts.clear()
        self._truncated.clear()

    def strike(self, faults: Mapping[str, float], *, until_s: float = math.inf) -> None:
        """From now on these shares of the calls go wrong, none after `until_s`, on the clock of `plan`.

        Raises `ValueError` for what is no fault or no share.
        """
        check_shares(faults)
        self._faults, self._faults_end_s = dict(faults), until_s

    def plan(self, call: Call, body: bytes, incoming: Incoming, *, now_s: float) -> Plan:
        """Decide on a call, and enter what is known of it in `call`. `now_s` is on a clock that never goes back."""
        plan = self._plan(call, body, incoming, now_s)
        fault = plan.fault
        if fault is None or self.dialect.name == "openai" or not isinstance(fault, Instead) or fault.error is None:
            return plan
        spoken = replace(fault, body=self.dialect.error(fault.status, fault.error))
        return replace(plan, fault=spoken)

    def _plan(self, call: Call, body: bytes, incoming: Incoming, now_s: float) -> Plan:
        forced_fault = incoming.forced_fault
        if not call.authorized and not self.open_to_all:
            return Plan(fault=FAULTS["401"])
        if forced_fault is not None and forced_fault not in FAULTS:
            return Plan(fault=_invalid(f"Unknown fault to simulate; the known ones are {', '.join(FAULTS)}."))
        try:
            self.dialect.check_headers(incoming.headers)
            asked = self._readers[incoming.endpoint](body)
        except InvalidRequest as error:
            status = self.dialect.invalid_status
            return Plan(fault=_invalid(str(error), param=error.param, status=status, code=error.code))
        if incoming.deployment is not None:
            asked = replace(asked, model=incoming.deployment)
        call.model, call.prompt_hash, call.stream = asked.model, asked.prompt_hash, asked.stream
        call.inputs, call.tier = asked.inputs, asked.tier
        allowance = self._allowance(incoming.key, asked.model)
        refusal = allowance.admit(now_s, tokens=self._charge(asked))
        headers = self.dialect.limits(allowance, now_s, call.time)
        if refusal is not None:
            call.rate_limited = True
            return Plan(fault=_over_limit(refusal, asked.model, self.dialect.waits), headers=headers)
        faults = self._faults if now_s < self._faults_end_s else {}
        return replace(self._plan_admitted(call, asked, forced_fault, faults), headers=headers)

    def _plan_admitted(self, call: Call, asked: _Asked, forced_fault: str | None, faults: Mapping[str, float]) -> Plan:
        # Only admitted calls count as attempts: when the limits refuse depends on the clock, and what is drawn
        # for a content's next attempt must not.
        key = f"{asked.model}\0{asked.prompt_hash}".encode()
        call.attempt = self._attempts.next(key)
        draws = uniforms(self._options.seed, f"attempt {call.attempt}", key)
        call.fault = forced_fault or pick(faults, draws[0])
        if call.fault and self._is_cured(FAULTS[call.fault], asked, call.prompt_hash or ""):
            call.fault = None
        fault = FAULTS[call.fault] if call.fault else None
        latency_s = self._latency_s(draws[1], fault, is_flex=asked.tier == FLEX)
        first_s = latency_s * _FIRST_EVENT_SHARE if asked.stream else latency_s
        answer = asked.render(fault, draws[2])
        rate = self._options.tokens_per_s
        spread_s = len(answer.pieces) / rate if asked.stream and rate else latency_s - first_s
        plan = Plan(answer, fault, first_s=first_s, spread_s=spread_s)
        if not delivers_answer(fault):
            return plan
        return replace(plan, prompt_tokens=asked.prompt_tokens, completion_tokens=plan.answer.tokens)

    def _is_cured(self, fault: Fault, asked: _Asked, content: str) -> bool:
        """Whether the request is what a fault of this kind is cured with."""
        if isinstance(fault, Instead):
            return fault.only_flex and asked.tier != FLEX
        if not isinstance(fault, Altered):
            return False
        if fault.truncates:
            if len(self._truncated) >= _ATTEMPTS_KEPT:
                self._truncated.clear()
            before = self._truncated.setdefault(content, asked.max_tokens or 0)
            return (asked.max_tokens or 0) > before
        return fault.breaks_json and asked.is_asked_again

    def _latency_s(self, uniform: float, fault: Fault | None, *, is_flex: bool) -> float:
        mean_ms = self._options.latency_ms
        if is_flex and not isinstance(fault, Instead) and self._options.flex_latency_ms is not None:
            mean_ms = self._options.flex_latency_ms
        latency_ms = lognormal(uniform, mean=mean_ms, spread=self._options.jitter)
        factor = fault.latency_factor if isinstance(fault, Altered) else 1.0
        return latency_ms * factor / 1000

    def _charge(self, asked: _Asked) -> int:
        if self._options.tpm_charge == "reserved":
            return asked.reserved_tokens
        return asked.prompt_tokens + asked.completion_tokens

    def _allowance(self, key: str, model: str) -> Allowance:
        # A digest, so that no key stays in memory longer than its request.
        digest = blake2b(f"{key}\0{model}".encode(errors="replace"), digest_size=16).digest()
        if (allowance := self._allowances.get(digest)) is None:
            allowance = self._allowances[digest] = self._new_allowance(digest)
        return allowance

    def _new_allowance(self, digest: bytes) -> Allowance:
        options = self._options
        return Allowance.of(
            algorithm=options.algorithm,
            rpm=options.rpm,
            tpm=options.tpm,
            burst=options.burst,
            phase_s=uniforms(options.seed, "phase", digest)[0] * WINDOW_S,
        )

    def _read_texts(self, texts: _Texts, body: bytes) -> _Asked:
        request, options = texts.read(body), self._options
        completions = replies.complete(request, seed=options.seed, mean_tokens=options.output_tokens)
        return _Asked(
            model=request.model,
            prompt_hash=request.prompt_hash,
            prompt_tokens=request.prompt_tokens,
            completion_tokens=sum(completion.tokens for completion in completions),
            reserved_tokens=request.prompt_tokens
            + (request.max_tokens or round(options.output_tokens)) * request.choices,
            stream=request.stream,
            render=lambda fault, drawn: self._text_answer(texts, request, completions, fault, drawn),
            max_tokens=request.max_tokens,
            is_asked_again=request.wanted is not None and request.wanted.is_asked_again,
            tier=request.tier,
        )

    def _text_answer(
        self,
        texts: _Texts,
        request: ChatRequest,
        completions: list[replies.Completion],
        fault: Fault | None,
        drawn: float,
    ) -> Answer:
        if isinstance(fault, Altered):
            is_object = request.wanted is not None
            completions = [_altered(completion, fault, drawn, is_object=is_object) for completion in completions]
        tokens = sum(completion.tokens for completion in completions)
        seed = self._options.seed
        if request.stream:
            step = 1 if self._options.tokens_per_s else replies.TOKENS_PER_EVENT
            events = texts.events(request, completions, seed=seed, tokens_per_event=step)
            return self._struck(Answer(events, EVENTS_TYPE, tokens), fault)
        return Answer([texts.body(request, completions, seed=seed)], tokens=tokens)

    def _struck(self, answer: Answer, fault: Fault | None) -> Answer:
        match fault:
            case Broken(way="stream-cut" | "stream-hang"):
                return answer.struck()
            case Broken(way="stream-error"):
                error = self.dialect.error(503, ErrorParts("The model broke off.", "server_error"))
                name = b"event: error\n" if self.dialect.kind == "anthropic" else b""
                return answer.struck(error=name + replies.event(error))
            case _:
                return answer

    def _read_embedding(self, body: bytes) -> _Asked:
        request = self.dialect.read_embedding(body)
        check_embedding(request, self._options, body)
        return _Asked(
            model=request.model,
            prompt_hash=request.prompt_hash,
            prompt_tokens=request.prompt_tokens,
            completion_tokens=0,
            reserved_tokens=request.prompt_tokens,
            stream=False,
            render=lambda _fault, _drawn: self._embedding_answer(request),
            inputs=len(request.input_hashes),
        )

    def _read_moderation(self, body: bytes) -> _Asked:
        request = read_moderation(body)
        return _Asked(
            model=request.model,
            prompt_hash=request.prompt_hash,
            prompt_tokens=0,
            completion_tokens=0,
            reserved_tokens=request.prompt_tokens,
            stream=False,
            render=lambda _fault, _drawn: Answer([moderation_body(request, seed=self._options.seed)]),
            inputs=len(request.input_hashes),
        )

    def _embedding_answer(self, request: EmbeddingRequest) -> Answer:
        dimensions = self._options.embedding_dimensions
        return Answer([replies.embedding_body(request, seed=self._options.seed, dimensions=dimensions)])


def _altered(completion: replies.Completion, fault: Altered, drawn: float, *, is_object: bool) -> replies.Completion:
    if fault.content_filter:
        # The text was made before it was withheld: its tokens count.
        return replace(completion, text="", finish_reason="content_filter")
    if fault.truncates:
        return completion.cut_to(max(1, completion.tokens // 2))
    if fault.breaks_json and is_object:
        return replace(completion, text=broken(completion.text, KINDS[int(drawn * len(KINDS))]))
    return completion


def _invalid(message: str, *, param: str | None = None, status: int = 400, code: str | None = None) -> Instead:
    return Instead.of(status, ErrorParts(message, "invalid_request_error", param=param, code=code))


def _over_limit(refusal: Refusal, model: str, waits: Callable[[float], dict[str, str]]) -> Instead:
    """A 429: when to come back in the places that the provider has for it, or nowhere if the call alone is larger than
    the limit."""
    short = {"requests": "RPM", "tokens": "TPM"}[refusal.dimension]
    limit = f"on {refusal.dimension} per min ({short}): Limit {refusal.limit}"
    if math.isinf(refusal.wait_s):
        message = f"Request too large for {model} {limit}, Requested {refusal.cost}."
        return Instead.of(429, ErrorParts(message, refusal.dimension, code="rate_limit_exceeded"))
    message = f"Rate limit reached for {model} {limit}, Available {refusal.remaining}, Requested {refusal.cost}."
    error = ErrorParts(message, refusal.dimension, code="rate_limit_exceeded", wait_s=refusal.wait_s)
    return Instead.of(429, error, waits(refusal.wait_s))
