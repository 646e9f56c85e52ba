"""How the simulated provider behaves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from .dialects import DIALECTS, DialectName
from .faults import check_shares
from .limits import ALGORITHMS, Algorithm

__all__ = ["SimulatorOptions", "TpmCharge"]

TpmCharge = Literal["usage", "reserved"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorOptions:
    """Everything about a simulated provider. Raises `ValueError` for what can't be.

    The same seed gives the same answers, faults and latencies for the same requests, in whatever order they come.
    """

    host: str = "127.0.0.1"
    port: int = 0
    """0 takes a free port."""

    dialect: DialectName = "openai"
    """Whose paths, key, limits, errors and answers these are."""

    latency_ms: float = 200.0
    """Mean time to a whole answer; a streamed one begins after a fifth of it."""
    jitter: float = 0.1
    """Standard deviation of the latency, as a share of its mean. 0 = exact."""

    flex_latency_ms: float | None = None
    """The same for calls of the flex tier; None: as the others."""

    rpm: int | None = None
    """Requests a minute, for each key and model. None = unlimited; so is `tpm`."""
    tpm: int | None = None
    algorithm: Algorithm = "bucket"
    burst: int | None = None
    """How many requests the bucket holds; None = one second's worth. The windows have no such thing."""
    tpm_charge: TpmCharge = "usage"
    """What a call counts towards `tpm`, at its start: the tokens it is going to use, or its prompt and `max_tokens`
    (where it sets none, `output_tokens`)."""

    faults: Mapping[str, float] = field(default_factory=dict)
    """Share of the admitted calls for each name in `faults.FAULTS`; at most one strikes a call."""
    seed: int = 0
    api_key: str | None = field(default=None, repr=False)
    """The one key that is let in; None lets in everybody."""

    output_tokens: float = 150.0
    """Mean length of an answer."""
    tokens_per_s: float | None = None
    """How fast a streamed answer comes, one token an event; None: four an event, within the latency."""
    embedding_dimensions: int = 1536
    max_inputs: int | None = None
    """Inputs of one call for embeddings; None = unlimited."""
    max_input_tokens: int | None = None
    """Their tokens together."""
    max_tokens_per_input: int | None = None
    poison: str | None = field(default=None, repr=False)
    """An input with this text in it is refused, and so is the call that holds it."""
    ledger_limit: int = 100_000
    """How many calls the ledger keeps, the latest; about 0.6 KB each. The totals go on counting."""

    def __post_init__(self) -> None:
        _check("port", self.port, at_least=0, at_most=65_535)
        _check("latency_ms", self.latency_ms, at_least=0)
        _check("jitter", self.jitter, at_least=0)
        _check("output_tokens", self.output_tokens, at_least=1)
        if self.flex_latency_ms is not None:
            _check("flex_latency_ms", self.flex_latency_ms, at_least=0)
        if self.tokens_per_s is not None:
            _check("tokens_per_s", self.tokens_per_s, at_least=0.1)
        _check("embedding_dimensions", self.embedding_dimensions, at_least=1)
        _check("ledger_limit", self.ledger_limit, at_least=0)
        for name in ("rpm", "tpm", "burst", "max_inputs", "max_input_tokens", "max_tokens_per_input"):
            if (value := getattr(self, name)) is not None:
                _check(name, value, at_least=1)
        if self.algorithm not in ALGORITHMS:
            raise ValueError(f"algorithm is {self.algorithm!r}: choose one of {', '.join(ALGORITHMS)}")
        if self.dialect not in DIALECTS:
            raise ValueError(f"dialect is {self.dialect!r}: choose one of {', '.join(DIALECTS)}")
        check_shares(self.faults)


def _check(name: str, value: float, *, at_least: float, at_most: float = math.inf) -> None:
    if not at_least <= value <= at_most or not math.isfinite(value):
        upper = f" and at most {at_most:g}" if math.isfinite(at_most) else ""
        raise ValueError(f"{name} is {value:g}: it must be at least {at_least:g}{upper}")
