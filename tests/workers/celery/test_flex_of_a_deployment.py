"""The settings of the flex tier, through the composition root."""

from __future__ import annotations

from typing import Any

import pytest

from workers.celery.app import app
from workers.celery.runtime import current, lifespan
from workers.prompt.parked import Parked
from workers.redis.clock import redis_clock

BODY = {"model": "m", "messages": [{"role": "user", "content": "How many?"}]}


@pytest.mark.covers("setting", "flex.min_deadline_s")
async def test_how_far_a_deadline_has_to_be(deploy: Any, simulate: Any) -> None:
    provider = await simulate()
    deploy(provider.url, model="flex = true", FLEX__MIN_DEADLINE_S="7200")
    async with lifespan(app):
        tiers = []
        for hours in (1, 3):
            options = {"deadline_s": hours * 3_600, "submitted_at": redis_clock()}
            tiers.append((await current().handle("chat", "j", [], {**BODY, "promptmill": options})).tier)
    assert tiers == ["standard", "flex"]


@pytest.mark.covers("setting", "flex.patience_s")
async def test_how_long_a_bulk_job_waits_for_room(deploy: Any, simulate: Any) -> None:
    provider = await simulate("flex-full")
    deploy(provider.url, model="flex = true", FLEX__PATIENCE_S="0.001")
    options = {"priority": "bulk"}
    async with lifespan(app):
        try:
            result = await current().handle("chat", "j", [], {**BODY, "promptmill": options})
        except Parked:
            pytest.fail("it waits for room")
    assert (result.status, result.tier, result.attempts) == ("succeeded", "standard", 2)
