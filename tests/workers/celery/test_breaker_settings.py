"""What a deployment decides about its breakers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from workers.celery.app import app
from workers.celery.runtime import current, lifespan

CATALOG = '[providers.p]\nbase_url = "{url}"\n[models.m]\nprovider = "p"\n'
BODY = {"model": "m", "messages": [{"role": "user", "content": "the canary prompt"}]}


@pytest.fixture
async def environment(deployment: pytest.MonkeyPatch, simulate: Any) -> pytest.MonkeyPatch:
    """A deployment with one provider, which fails."""
    simulator = await simulate("503")
    Path("catalog.toml").write_text(CATALOG.format(url=simulator.url))
    deployment.setenv("PROMPTMILL_RETRY__MAX_ATTEMPTS", "1")
    return deployment


async def fail(count: int, *, first: int = 0) -> list[float]:
    """That many jobs, one after the other. The pauses of the outages that they leave."""
    async with lifespan(app):
        for number in range(first, first + count):
            running = current().handle("chat", f"job-{number}", [], BODY)
            await asyncio.gather(running, return_exceptions=True)  # once it is open, they are parked
        return [outage.pause_s for outage in current().breakers.outages]


async def test_by_default_five_jobs_open_a_breaker_for_five_seconds(environment: pytest.MonkeyPatch) -> None:
    assert await fail(4) == []
    assert await fail(1, first=4) == [5.0], "with those of a process before"


@pytest.mark.covers("setting", "breaker.failures")
async def test_how_many_jobs_open_a_breaker_is_a_setting(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("PROMPTMILL_BREAKER__FAILURES", "2")
    assert await fail(2) == [5.0]


@pytest.mark.covers("setting", "breaker.window_s")
async def test_failures_outside_the_window_open_nothing(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("PROMPTMILL_BREAKER__WINDOW_S", "0.001")
    assert await fail(6) == [], "five would"


@pytest.mark.covers("setting", "breaker.open_s")
async def test_how_long_it_is_open_at_first_is_a_setting(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("PROMPTMILL_BREAKER__OPEN_S", "30")
    assert await fail(5) == [30.0]
