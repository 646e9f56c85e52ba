"""How much one call for embeddings takes: what the catalogue states, and below it what the provider has taught."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from config.catalog import Model

    from ...prompt.failure import Failure

__all__ = ["CallCaps", "Room", "is_about_the_call"]

LEARNED_FOR_S: Final = 3_600.0
"""Then the catalogue's caps are tried again. A call that is refused costs nothing, so one an hour is no loss, and a
provider that has raised its limit is noticed without anybody's doing."""

_OF_THE_CALL: Final = re.compile(
    r"per request|array|batch|too many (inputs|items|texts)|number of (inputs|items|texts)|inputs? (size|length|count)"
    r"|maximum .{0,20}(inputs|items|texts)|at most .{0,20}(inputs|items|texts)|entity too large|payload",
    re.IGNORECASE,
)
_OF_TOKENS: Final = re.compile(r"token", re.IGNORECASE)


class Room(NamedTuple):
    """What a call has room for: inputs, and their characters (of token ids: tokens)."""

    inputs: int
    weight: int


class CallCaps:
    """One route's caps. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._inputs: int | None = None
        self._tokens: int | None = None
        self._until = 0.0
        self.refuses_base64 = False
        """Whether the provider has refused `encoding_format`."""

    def inputs(self, model: Model, *, now: float) -> int:
        """The most inputs."""
        self._forget(now)
        return model.max_inputs if self._inputs is None else min(self._inputs, model.max_inputs)

    def tokens(self, model: Model, *, now: float) -> int:
        """The most tokens, of all inputs together."""
        self._forget(now)
        return model.max_input_tokens if self._tokens is None else min(self._tokens, model.max_input_tokens)

    def learn(self, failure: Failure, *, inputs: int, tokens: int, now: float) -> None:
        """A call was too large, and halves of it, with so much in the larger one, were not."""
        if _OF_TOKENS.search(failure.provider_body or ""):
            self._tokens = tokens
        else:
            self._inputs = inputs
        self._until = now + LEARNED_FOR_S

    def _forget(self, now: float) -> None:
        if now >= self._until:
            self._inputs = self._tokens = None


def is_about_the_call(failure: Failure) -> bool:
    """Whether a `too_large` may be said of all inputs together. One input alone can be too long as well."""
    return failure.http_status == 413 or bool(_OF_THE_CALL.search(failure.provider_body or ""))
