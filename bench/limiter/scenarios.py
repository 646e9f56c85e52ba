"""What is measured: which limit, counted how, asked for by whom, and what strikes meanwhile."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

__all__ = ["OTHERS", "OURS", "Contestant", "Scenario"]

Contestant = Literal["Promptmill", "limits", "pyrate-limiter", "split"]
Algorithm = Literal["bucket", "fine", "sliding", "fixed"]
"""As in `workers.simulator.limits`; `fine` is a bucket of a tenth of a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One measurement. `algorithm` is how the provider counts, `told` what our catalogue says about it.

    `strike` comes `strike_after_s` seconds after the start: `kill` is a kill -9 of one process, `refuse` one 429 with
    a Retry-After of `retry_after_s`.
    """

    limit: str
    """Its name in tables and verdicts."""
    contestant: Contestant = "Promptmill"
    processes: int = 4
    waiters: int
    """Of each process. They ask again as soon as they have had their answer."""
    idle_processes: int = 0
    """Processes that are there, but have no waiters."""
    rpm: int | None = None
    tpm: int | None = None
    algorithm: Algorithm = "bucket"
    told: Literal["bucket", "sliding", "fixed", "unknown"] = "unknown"
    time_s: float
    latency_s: float = 0.1
    jitter_s: float = 0.010
    mean_output_tokens: float = 0.0
    max_tokens: int = 4_096
    strike: Literal["kill", "refuse"] | None = None
    strike_after_s: float = 0.0
    retry_after_s: float = 3.0
    seed: int = 0

    def waiters_of(self, process: int) -> int:
        return 0 if process < self.idle_processes else self.waiters

    @property
    def permitted_per_s(self) -> float:
        """Requests, or tokens where those are limited."""
        limit = self.tpm or self.rpm
        assert limit is not None, "one of the two is limited"
        return limit / 60

    @property
    def is_light(self) -> bool:
        """So few calls a second that several such scenarios leave two cores idle, side by side."""
        return self.tpm is not None


FAST = Scenario(limit="12,000 rpm", rpm=12_000, waiters=500, time_s=35.0)
SLOW = Scenario(limit="1,200 rpm", rpm=1_200, waiters=50, time_s=35.0)
TOKENS = Scenario(
    limit="200,000 tpm", tpm=200_000, waiters=50, time_s=130.0, mean_output_tokens=500.0, latency_s=1.0
)  # fmt: skip
WINDOWS_S = 75.0
"""Long enough for a whole window of a minute after the warm-up."""

OURS = (
    FAST,
    replace(FAST, algorithm="fine"),
    replace(FAST, algorithm="sliding", time_s=WINDOWS_S),
    replace(FAST, algorithm="fixed", time_s=WINDOWS_S),
    SLOW,
    replace(SLOW, algorithm="sliding", time_s=WINDOWS_S),
    replace(SLOW, algorithm="fixed", time_s=WINDOWS_S),
    replace(TOKENS, told="bucket"),
    replace(TOKENS, algorithm="sliding", told="sliding"),
    replace(TOKENS, algorithm="fixed", told="fixed"),
    replace(FAST, algorithm="sliding", time_s=WINDOWS_S, strike="kill", strike_after_s=35.0),
    replace(FAST, time_s=25.0, strike="refuse", strike_after_s=10.0),
)
UNEVEN = replace(SLOW, idle_processes=3, time_s=20.0)
"""What a fixed share of the limit for each process is bad at."""

OTHERS = (
    *(
        replace(scenario, contestant=contestant)
        for scenario in (SLOW, replace(SLOW, algorithm="sliding", time_s=WINDOWS_S))
        for contestant in ("split", "limits", "pyrate-limiter")
    ),
    UNEVEN,
    replace(UNEVEN, contestant="split"),
)
