"""A model whose limit is used up, in the same worker as one that is free."""

from __future__ import annotations

from .harness import World, wait_until

PLACES = 4
LIMITED = '[models.limited]\nprovider = "quick"\nlimits = { rpm = 300 }\n'


def test_jobs_far_from_their_turn_wait_in_redis_and_leave_their_places_to_others(world: World) -> None:
    world.start_redis()
    catalogue = world.directory / "limited.toml"
    catalogue.write_text(f"{world.providers.catalog.read_text()}\n{LIMITED}")
    environ = {"PROMPTMILL_CATALOG": str(catalogue), "PROMPTMILL_LIMIT__PARK_AFTER_S": "0.5"}
    worker = world.start_worker(concurrency=PLACES, environ=environ)

    limited = world.submit(30, model="limited")
    wait_until(lambda: world.redis.zcard("pm:delayed:prompts"), "a job is parked")
    free = world.submit(3 * PLACES, model="quick")

    assert all(result.ok for result in world.results(free))
    assert world.count_ended(limited) < len(limited)
    assert all(result.ok and result.attempts == 1 for result in world.results(limited))
    assert world.calls(limited, model="quick") == [1] * len(limited)
    world.wait_clean()
    assert "Traceback" not in worker.log_text()
