"""A short form of the chaos soak (`make soak ARGS=chaos`): one seed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .chaos import Plan, play

if TYPE_CHECKING:
    from .harness import World


def test_every_job_ends_as_promised_whatever_happens(world: World) -> None:
    plan = Plan.of(7, jobs=600, rate_per_s=60, faults=("worker", "Redis", "cut", "freeze"))
    report = play(world, plan, workers=2)
    assert not report.broken, str(report)
