"""What a provider codec is: pure functions from job to request and from response to answer.

A codec does no I/O, so tables and property tests cover it without a socket (httpx's `auth_flow` is built the
same way). To add a kind of provider, write a class with these methods and name it in `workers.providers`; the
conformance suite then holds it to what all of them promise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from .size import NO_MEDIA, Media

if TYPE_CHECKING:
    from pydantic import SecretStr

    from config.catalog import Model, Provider
    from tasks.results import Usage

    from ..prompt.job import PromptJob

__all__ = [
    "Answer",
    "AnswerSize",
    "Assembly",
    "Codec",
    "Probe",
    "ProviderRequest",
    "RawResponse",
    "RequestSize",
    "Stage",
]


class RequestSize(NamedTuple):
    """What a limiter must know of a request to estimate its tokens. `max_tokens`: for each of the `answers`.

    `input_tokens` came as tokens, beside the text of `input_chars`.
    """

    input_chars: int
    max_tokens: int | None = None
    answers: int = 1
    media: Media = NO_MEDIA
    input_tokens: int = 0


class AnswerSize(NamedTuple):
    """How many answers a job has, and about how many bytes each takes in a record.

    `kind` tells apart answers of different size from one model. `is_packed`: they are base64, which hardly shrinks.
    """

    answers: int
    likely_bytes: int
    kind: object = None
    is_packed: bool = False


Stage = Literal["connecting", "sending", "sent"]
"""How far a request has come. One that was sent whole may be paid for, whatever becomes of its answer."""


# Not frozen: see workers/prompt/job.py.
@dataclass(slots=True)
class ProviderRequest:
    """One POST to a provider, and how far it has come. Neither key nor prompt shows in its repr.

    `answer_bytes`: how large the answer may well be, for a request of many; 0 for one that needs no more than any.
    `was_resent`: it was sent before, on an idle connection whose end may have been under way then.
    """

    url: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    answer_bytes: int = 0
    stage: Stage = "connecting"
    was_resent: bool = False


@dataclass(slots=True)
class RawResponse:
    """What came back. `headers` compares names without regard to case; the body of an error may be cut."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    held: object = field(default=None, repr=False)
    """Its part of the memory for large answers, released when nobody holds this any more (http/unstored.py)."""


@dataclass(slots=True)
class Answer:
    """A real answer. `usage` is None where the provider counted nothing, so that the cost stays unknown."""

    text: str | None = field(repr=False)
    response: dict[str, Any] = field(repr=False)
    usage: Usage | None


class Assembly(Protocol):
    """One answer that comes in pieces, put together to what would have come as a whole."""

    is_done: bool
    """Whether the provider has said that nothing follows."""
    size: int
    """About how many bytes it holds."""

    @property
    def heard(self) -> int:
        """How much has been said of the answer so far, in any unit. What only shows that the provider lives adds
        nothing: a ping, an empty piece, the state of an answer."""

    @property
    def has_begun(self) -> bool:
        """Whether a piece of an answer has come: a model has seen the prompt."""

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing where the connection ends now."""

    def add(self, name: bytes, data: bytes) -> str:
        """Take an event; the text that it adds to what will be `Answer.text`. Raises ValueError for what is no JSON,
        and `Failure` (`bad_response`)."""

    def whole(self) -> dict[str, Any]:
        """The body of the answer, or of the error that came in its place."""


class Probe(NamedTuple):
    """A GET that costs nothing and shows whether a key is taken: the list of the provider's models, as a rule.

    `names_models`: the answer's `data` has an `id` for each model, by the name that the catalogue's `upstream` has.
    """

    url: str
    headers: Mapping[str, str]
    names_models: bool = True

    def __repr__(self) -> str:
        return f"Probe(url={self.url!r}, names_models={self.names_models})"


class Codec(Protocol):
    """The wire format of one kind of provider: URL, headers, body, and how to read what comes back."""

    version: int
    """Counts how the same job became another request, or the same response another answer: answers that an earlier
    version stored serve no job of the next."""

    def check(self, job: PromptJob, *, model: Model) -> None:
        """Raise `Unserved` (`bad_request`) for a body that this kind of provider has no words for.

        Asked before the job waits for its turn. The text names the field and holds no value.
        """

    def size(self, job: PromptJob) -> RequestSize:
        """How large the job is. Cheap: it counts no tokens."""

    def answer_size(self, job: PromptJob) -> AnswerSize:
        """How large the answer is likely to be. Cheap."""

    def request(
        self, job: PromptJob, *, model: Model, provider: Provider, key: SecretStr | None, streams: bool = False
    ) -> ProviderRequest:
        """The job as this provider wants it; `streams` asks for the answer in pieces. Raises `Failure` for what `check`
        refuses, or what is no JSON."""

    def assembly(self, job: PromptJob) -> Assembly:
        """What puts the pieces of the job's answer together."""

    def response(self, job: PromptJob, raw: RawResponse, *, now: float) -> Answer:
        """The answer that the response holds. Raises `Failure` for anything else, whatever the bytes are.

        `now` is in epoch seconds; a `Retry-After` date is measured against it.
        """

    def probe(self, provider: Provider, key: SecretStr | None) -> Probe:
        """What to ask to learn whether a key is good."""
