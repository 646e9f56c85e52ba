"""A worker that lacks a model or a key beside one that has both: promises.md row 45."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.support.waiting import wait_until

from .harness import API_KEY, Provider

if TYPE_CHECKING:
    from .harness import World

CATALOGUE = """
[providers.careful]
base_url = "{url}"
api_keys = ["FAULTS_API_KEY"]
[models.{model}]
provider = "careful"
"""


@pytest.mark.promise(45)
def test_what_one_worker_lacks_another_does(world: World) -> None:
    provider: Provider = world.enter(Provider("--latency-ms", "20", "--api-key", API_KEY))
    whole, lacking = world.directory / "whole.toml", world.directory / "lacking.toml"
    whole.write_text(CATALOGUE.format(url=provider.base_url, model="careful"))
    lacking.write_text(CATALOGUE.format(url=provider.base_url, model="another"))
    world.start_redis()
    right = world.start_worker(concurrency=4, environ={"PROMPTMILL_CATALOG": str(whole)})
    wait_until(lambda: world.redis.zscore("pm:offers:prompts", "careful"), "the right one announces its model")
    wrong = [
        world.start_worker(concurrency=20, environ={"PROMPTMILL_CATALOG": str(whole), **environ}, wait=False)
        for environ in (
            {"PROMPTMILL_CATALOG": str(lacking)},
            {"FAULTS_API_KEY": ""},
            {"FAULTS_API_KEY": f"{API_KEY}-revoked"},
        )
    ]
    for worker in wrong:
        worker.wait_ready()
    # Jobs with a deadline have no lane: each is started by the worker that can't do it.
    jobs = world.submit(100, model="careful", deadline_s=600) + world.submit(100, model="careful")
    results = world.results(jobs)
    assert [result.error for result in results if not result.ok] == []
    assert {(result.attempts, result.suspected_double_payment) for result in results} == {(1, False)}
    calls = Counter(call["job_id"] for call in provider.calls() if call["status"] == 200)
    assert [calls[job.id] for job in jobs] == [1] * len(jobs)
    world.wait_clean()
    # With nobody left it fails with its reason.
    right.kill()
    (left,) = world.results(world.submit(1, model="careful"))
    assert left.error is not None and left.error.code in {"not_found", "auth"}
