"""An answer that is read as it comes through real workers, one of which dies in the middle."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from tests.support.waiting import wait_until

from .harness import MESSAGES, World

if TYPE_CHECKING:
    from tasks import StreamEvent


@pytest.mark.promise(31)
def test_a_killed_workers_half_answer_is_not_spliced(world: World) -> None:
    world.start_redis()
    job = world.queue.submit(model="slower", messages=MESSAGES)
    events: list[StreamEvent] = []

    def read() -> None:
        for event in job.events(timeout_s=60):
            events.append(event)  # noqa: PERF402 - what has come is looked at meanwhile

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    wait_until(lambda: world.redis.zcard("pm:streams:asked"), "somebody has asked")
    doomed = world.start_worker(concurrency=1)
    wait_until(lambda: sum(event.kind == "text" for event in events) > 3, "half an answer has come")
    doomed.kill()
    world.start_worker(concurrency=1)
    (result,) = world.results([job])
    reader.join(60)

    assert [event.kind for event in events if event.kind != "text"] == ["started", "restarted", "usage", "end"]
    kinds = [event.kind for event in events]
    begun = kinds.index("restarted")
    assert "".join(event.text for event in events[begun:]) == result.text
    assert kinds[:begun].count("text") > 3 and kinds[begun:].count("text") > 3, "both came in pieces"
    assert result.suspected_double_payment
    assert "".join(job.stream()) == result.text, "who begins now never saw the half"
    assert world.redis.zcard("pm:streams:asked") == 0
