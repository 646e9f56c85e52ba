"""What a worker remembers of cancelled jobs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from celery.worker import state as worker_state

from tasks.redis.clock import steady_s
from workers.broker.cancellations import Cancellations


@pytest.fixture
def cancellations() -> Iterator[Cancellations]:
    worker_state.revoked.clear()
    yield Cancellations()
    worker_state.revoked.clear()


def test_redis_word_counts_if_asked_after_the_mark_was_heard_of(cancellations: Cancellations) -> None:
    asked_before = steady_s()
    cancellations.hear(["a"])
    cancellations.not_named("a", asked_at=asked_before)
    assert "a" in worker_state.revoked
    cancellations.not_named("a", asked_at=steady_s() + 1)
    assert "a" not in worker_state.revoked


def test_what_remote_control_revoked_stands_until_redis_has_it(cancellations: Cancellations) -> None:
    worker_state.revoked.add("a")
    assert cancellations.new() == {"a"}
    assert cancellations.new() == set()
    cancellations.not_named("a", asked_at=steady_s() + 1)
    assert "a" in worker_state.revoked, "Redis may not have been told yet"
    cancellations.not_told({"a"})
    assert cancellations.new() == {"a"}
    cancellations.are_marked({"a"})
    cancellations.not_named("a", asked_at=steady_s() + 1)
    assert "a" not in worker_state.revoked
    assert cancellations.new() == set()


def test_ends_are_recorded_together_and_on_another_thread(cancellations: Cancellations) -> None:
    class Backend:
        def __init__(self) -> None:
            self.may_go_on, self.calls = threading.Event(), list[set[str]]()

        def revoke(self, job_ids: list[str], *, known_only: bool) -> list[tuple[str, str]]:
            assert known_only and threading.current_thread() is not threading.main_thread()
            self.may_go_on.wait(10)
            self.calls.append(set(job_ids))
            return [(job_id, "prompts.chat") for job_id in job_ids]

    backend: Any = Backend()
    for number in range(50):
        cancellations.end(backend, [f"{number}"], known_only=True)
    assert cancellations.is_ending
    backend.may_go_on.set()
    cancellations._threads.shutdown()
    assert set[str]().union(*backend.calls) == {f"{number}" for number in range(50)}
    assert len(backend.calls) <= 3 and not cancellations.is_ending
