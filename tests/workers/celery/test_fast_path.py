"""Which messages are answered before Celery makes requests of them, and what becomes of an end that is not stored."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from celery import signals
from celery.worker import state as worker_state

from workers.broker.kombu.channel import Channel
from workers.broker.leases import Lease, Leases
from workers.broker.messages import MARKS, READ
from workers.celery.fast_path import _FastPath
from workers.pipeline.at_hand import Read
from workers.prompt.job import PromptJob

TASK = "prompts.chat"
EMBEDDED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


class Message:
    """One of our client's, as the consumer has it."""

    delivery_tag = "tag"

    def __init__(self, *, payload: Any = None, properties: Any = None, **headers: Any) -> None:
        self.channel = object.__new__(Channel)
        self.channel.connection = SimpleNamespace(channels=[])
        self.channel._closed = True
        self.channel.leases = Leases()
        self.channel.leases.held["tag"] = Lease("tag", "prompts", b"")
        self.headers = {"id": "job", "task": TASK, **headers}
        self.properties = {MARKS: {}, **(properties or {})}
        self.payload = (["text"], {}, EMBEDDED) if payload is None else payload


class Worker:
    """A consumer, its pool, and a pipeline whose memory may have the answer."""

    def __init__(self, *, data: bytes | None = b"answer") -> None:
        self.aside: list[Any] = []
        self.usual: list[Any] = []
        self.acked: list[Any] = []
        self.buckets: dict[str, Any] = {TASK: None}
        self.read: Read | None = Read(PromptJob("job", "chat", "m", {}), Any, "digest", data)  # type: ignore[arg-type]
        at_hand: Any = SimpleNamespace(read=lambda *_, **__: self.read)
        pool = SimpleNamespace(aside=SimpleNamespace(put=lambda *ending: self.aside.append(ending)))
        consumer = SimpleNamespace(
            pool=pool, task_buckets=self.buckets, event_dispatcher=None, connection_errors=(OSError,)
        )
        self.path = _FastPath(SimpleNamespace(name=TASK), consumer, lambda *given: self.usual.append(given), at_hand)

    def takes(self, message: Message, *, callbacks: Any = ()) -> bool:
        return self.path.takes(message, lambda *given: self.acked.append(given), None, callbacks)


def test_an_answer_is_stored_before_its_message_is_acknowledged() -> None:
    worker, message, before = Worker(), Message(), Counter(worker_state.total_count)
    assert worker.takes(message)
    leases = message.channel.leases
    assert (leases.answered, worker.acked) == ({"tag"}, [])
    [(tag, _, then)] = worker.aside
    then(None)
    assert (tag, len(worker.acked), leases.answered, worker.usual) == ("tag", 1, set(), [])
    assert leases.held["tag"].has_result, "which is looked up where Redis may have lost it"
    assert worker_state.total_count - before == Counter({TASK: 1})


def test_a_job_whose_result_is_not_stored_goes_the_usual_way() -> None:
    worker, message = Worker(), Message()
    assert worker.takes(message)
    worker.aside[0][2](ValueError("refused"))
    assert ([given[0] for given in worker.usual], worker.acked) == ([message], [])
    assert not message.channel.leases.answered


def test_a_job_without_an_answer_takes_along_what_was_read() -> None:
    worker, message = Worker(data=None), Message()
    assert not worker.takes(message)
    assert message.properties[MARKS] == {READ: worker.read}


@pytest.mark.parametrize(
    "message",
    [
        Message(expires="2026-01-01T00:00:00+00:00"),
        Message(ignore_result=True),
        Message(stamped_headers=["x"]),
        Message(properties={MARKS: {"suspected_double_payment": True}}),
        Message(properties={MARKS: None}),
        Message(payload=([], {"model": "m"}, EMBEDDED)),
        Message(payload=(["text"], {}, {**EMBEDDED, "chord": {}, "callbacks": [{}]})),
        Message(payload="no body"),
    ],
    ids=[
        "expires",
        "no result",
        "stamps",
        "a redelivery",
        "no marks",
        "a stock producer",
        "callbacks",
        "unreadable",
    ],
)
def test_unusual_messages_go_the_usual_way(message: Message) -> None:
    worker = Worker()
    assert not worker.takes(message)
    assert not worker.aside and not (message.properties[MARKS] or {}).get(READ)


def test_unusual_workers_take_the_usual_way(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker()
    assert not worker.takes(Message(), callbacks=[print])
    worker.buckets[TASK] = object()
    assert not worker.takes(Message()), "the task has a rate limit"
    worker.buckets[TASK] = None
    monkeypatch.setattr(worker_state, "should_stop", 0)
    assert not worker.takes(Message()), "it stops"
    monkeypatch.undo()
    monkeypatch.setattr(worker_state, "revoked", {"job"})
    assert not worker.takes(Message()), "it was cancelled"
    monkeypatch.undo()
    assert worker.takes(Message())


@pytest.mark.parametrize("name", ["task_received", "task_prerun", "task_success", "task_postrun"])
def test_who_listens_to_signals_hears_of_every_job(name: str) -> None:
    def hear(**_: Any) -> None:
        """A receiver of the app's."""

    worker, signal = Worker(), getattr(signals, name)
    signal.connect(hear)
    try:
        assert not worker.takes(Message())
    finally:
        signal.disconnect(hear)
    assert worker.takes(Message())
