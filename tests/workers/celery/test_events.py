"""What the worker says of itself and of its tasks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

from workers.celery.events import MOST_AT_ONCE, EventDispatcher


class Recorder(EventDispatcher):
    """Keeps what it would publish."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.published: list[Any] = []
        self.retries: list[bool] = []
        super().__init__(*args, **options)

    def _publish(self, event: Any, producer: Any, routing_key: str, retry: bool = False, **_: Any) -> None:
        self.published.append(event)
        self.retries.append(retry)


@pytest.fixture
def app() -> Iterator[Celery]:
    with Celery("events", broker="memory://", set_as_current=False) as app:
        yield app


def test_the_task_events_of_a_turn_share_a_message(app: Celery) -> None:
    with app.connection() as connection:
        dispatcher = Recorder(connection, app=app, buffer_group=["task"])
        for number in range(MOST_AT_ONCE + 44):
            dispatcher.send("task-started", uuid=f"{number}")
        dispatcher.flush()
    assert [len(events) for events in dispatcher.published] == [MOST_AT_ONCE, 44]


def test_an_event_is_sent_once_whatever_celery_asks_for(app: Celery) -> None:
    with app.connection() as connection:
        dispatcher = Recorder(connection, app=app)
        dispatcher.send("worker-heartbeat", retry=True, freq=2)
    assert dispatcher.published[-1]["freq"] == 2
    assert not any(dispatcher.retries)


def test_it_knows_whose_events_anybody_wants(app: Celery) -> None:
    with app.connection() as connection:
        quiet, all_of_them = Recorder(connection, app=app, groups=["worker"]), Recorder(connection, app=app)
        assert (quiet.sends("worker"), quiet.sends("task")) == (True, False)
        assert all_of_them.sends("task")
        all_of_them.disable()
        assert not all_of_them.sends("task")
