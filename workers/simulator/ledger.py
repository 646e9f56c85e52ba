"""What the provider has served: each call, without its prompt and key, and the totals."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypedDict

import orjson

__all__ = ["Call", "Ledger", "Stats"]


@dataclass(slots=True)
class Call:
    """One request to a paid endpoint; its fields are the ledger's columns.

    `time` is when it arrived, in seconds since the epoch. `status` is null while it runs and where no status was
    ever sent. `authorized`: it came with a key that is let in. `attempt` counts the admitted calls with the same
    content, from 0; it is null where the call was not admitted. `inputs` are those of embeddings. `tier`: the
    `service_tier` that it asked for. `rate_limited`: over the limit, which a drawn fault is not.
    """

    time: float
    path: str
    request_id: str
    authorized: bool
    job_id: str | None = None
    model: str | None = None
    prompt_hash: str | None = None
    stream: bool = False
    attempt: int | None = None
    fault: str | None = None
    status: int | None = None
    inputs: int = 0
    tier: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    duration_s: float | None = None
    rate_limited: bool = False
    cancelled: bool = False


class Stats(TypedDict):
    """Totals since `started_at` (seconds since the epoch), as `GET /__stats` answers them.

    `by_status` counts ended calls, "none" those that ended without a status line.
    """

    started_at: float
    calls: int
    by_status: dict[str, int]
    in_flight: int
    peak_in_flight: int
    connections: int
    open_connections: int
    prompt_tokens: int
    completion_tokens: int
    cancelled: int
    rate_limited: int


@dataclass(slots=True)
class Ledger:
    """The latest calls and the totals of all of them. `clock` gives seconds since the epoch."""

    limit: int
    clock: Callable[[], float]
    in_flight: int = 0
    _calls: deque[Call] = field(init=False)
    _totals: Stats = field(init=False)

    def __post_init__(self) -> None:
        self._calls = deque(maxlen=self.limit)
        self.reset()

    def reset(self) -> None:
        """Forget all calls and totals; calls that are still running count from here on."""
        self._calls.clear()
        self._totals = Stats(
            started_at=self.clock(),
            calls=0,
            by_status={},
            in_flight=self.in_flight,
            peak_in_flight=self.in_flight,
            connections=0,
            open_connections=0,
            prompt_tokens=0,
            completion_tokens=0,
            cancelled=0,
            rate_limited=0,
        )

    def connected(self) -> None:
        """A TCP connection was accepted."""
        self._totals["connections"] += 1

    def begin(self, call: Call) -> None:
        """Enter a call that has just arrived; the caller goes on filling it in."""
        self._calls.append(call)
        self._totals["calls"] += 1
        self.in_flight += 1
        self._totals["peak_in_flight"] = max(self._totals["peak_in_flight"], self.in_flight)

    def end(self, call: Call) -> None:
        """Close a call: answered, refused, broken or left by its client."""
        call.duration_s = self.clock() - call.time
        self.in_flight -= 1
        totals = self._totals
        status = "none" if call.status is None else str(call.status)
        totals["by_status"][status] = totals["by_status"].get(status, 0) + 1
        totals["prompt_tokens"] += call.prompt_tokens
        totals["completion_tokens"] += call.completion_tokens
        totals["cancelled"] += call.cancelled
        totals["rate_limited"] += call.rate_limited

    def stats(self, *, open_connections: int) -> Stats:
        """A copy of the totals as they stand."""
        return {
            **self._totals,
            "by_status": dict(self._totals["by_status"]),
            "in_flight": self.in_flight,
            "open_connections": open_connections,
        }

    def to_json(self) -> bytes:
        """The calls that are kept, in the order of their arrival."""
        return orjson.dumps({"calls": list(self._calls)})
