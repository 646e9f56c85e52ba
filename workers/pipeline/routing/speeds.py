"""How fast the models answer, and how much of their input their providers had in a cache: seen by this process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tasks.results import Usage

__all__ = ["Speeds"]

LEARNING = 0.2
"""How much one answer counts. Ten answers later, a tenth is left of what was known before."""

FRESH_S = 300.0
"""What is older says little: providers slow down and recover within minutes."""

MOST_MODELS = 1_024


@dataclass(slots=True)
class _Speed:
    latency_s: float
    seen_at: float
    cached_share: float = 0.0


class Speeds:
    """By the model's name. Moving means: one slow answer does not condemn a model."""

    def __init__(self) -> None:
        self._by_name: dict[str, _Speed] = {}

    def note(self, name: str, *, latency_s: float, usage: Usage | None, now: float) -> None:
        """An answer came after `latency_s` seconds. `now` in epoch seconds."""
        share = usage.cached_tokens / usage.input_tokens if usage is not None and usage.input_tokens else 0.0
        speed = self._fresh(name, now)
        if speed is None:
            if len(self._by_name) >= MOST_MODELS:
                self._by_name.clear()
            self._by_name[name] = _Speed(latency_s, now, share)
            return
        speed.latency_s += LEARNING * (latency_s - speed.latency_s)
        speed.cached_share += LEARNING * (share - speed.cached_share)
        speed.seen_at = now

    def forget(self, name: str) -> None:
        """The model's provider has failed: how fast it answered before says nothing now."""
        self._by_name.pop(name, None)

    def latency_s(self, name: str, *, now: float) -> float | None:
        """How long an answer takes, in seconds; None: no recent answer is known."""
        speed = self._fresh(name, now)
        return None if speed is None else speed.latency_s

    def cached_share(self, name: str, *, now: float) -> float:
        """How much of its input the provider takes from its cache, from 0 to 1."""
        speed = self._fresh(name, now)
        return 0.0 if speed is None else min(1.0, speed.cached_share)

    def _fresh(self, name: str, now: float) -> _Speed | None:
        speed = self._by_name.get(name)
        return speed if speed is not None and now - speed.seen_at <= FRESH_S else None
