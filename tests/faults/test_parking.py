"""A job whose turn at the provider's limit is far away gives its place in the worker back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .harness import wait_until

if TYPE_CHECKING:
    from .harness import World


def test_a_parked_job_waits_in_redis_and_is_done_once(world: World) -> None:
    world.start_redis()
    catalog = world.directory / "paced.toml"
    paced = '\n[models.paced]\nprovider = "quick"\nlimits = { rpm = 600 }\n'
    catalog.write_text(world.providers.catalog.read_text() + paced)
    world.start_worker(environ={"PROMPTMILL_CATALOG": str(catalog), "PROMPTMILL_LIMIT__PARK_AFTER_S": "0.5"})
    jobs = world.submit(20, model="paced")
    wait_until(lambda: world.redis.zcard("pm:delayed:prompts"), "some are parked")
    assert all(result.ok for result in world.results(jobs))
    assert world.calls(jobs, model="quick") == [1] * 20
    world.wait_clean()
