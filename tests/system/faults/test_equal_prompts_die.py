"""Equal prompts through real workers, and the death of the one whose call the others wait for."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from tests.support.waiting import wait_until

from .harness import World

PROMPT: dict[str, Any] = {
    "model": "slower",
    "messages": [{"role": "user", "content": "How many equal prompts?"}],
    "cache_ttl_s": 600,
}


@pytest.mark.promise(29)
def test_a_thousand_equal_prompts_and_a_dead_leader(world: World) -> None:
    world.start_redis()
    leader, *others = [world.start_worker(wait=False) for _ in range(4)]
    for worker in (leader, *others):
        worker.wait_ready()
    for worker in others:
        worker.signal(signal.SIGSTOP)
    first = world.queue.submit(**PROMPT)
    wait_until(lambda: world.redis.keys("pm:flight:*"), "the first job leads")
    for worker in others:
        worker.signal(signal.SIGCONT)
    group = world.queue.submit_many(PROMPT for _ in range(999))
    wait_until(lambda: world.redis.zcard("pm:delayed:prompts") > 50, "others wait for its call")
    leader.kill()

    results = [*group.as_completed(), first.result()]
    ids = {result.id for result in results}
    calls = [call for call in world.providers.ledger("slower") if call["job_id"] in ids]
    assert all(result.ok for result in results) and len(ids) == 1_000
    assert len(calls) <= 2, "its own, if it was sent, and one more"
    assert sorted(result.cached for result in results) == [False] + [True] * 999
    assert sum(result.attempts for result in results) == 1
    assert not first.result().cached, "the job whose worker died leads again, at once"
    assert not world.redis.keys("pm:flight:*")
    world.wait_clean()
