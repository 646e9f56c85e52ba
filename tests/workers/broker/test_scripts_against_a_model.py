"""The broker's scripts in a real Redis beside a plain model: whatever workers do, each message is in one place."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from tasks.wire import redis_keys
from tests.support.examples import examples
from tests.support.redis_server import RedisServer
from workers.broker.messages import read

from .broker import STEPS, Broker, list_name, message

FAR_MS = 99_999_999_999_999
QUEUES = ("q", "r")


class Model(RuleBasedStateMachine):
    """Two workers: leases that one takes have ended at once, so that a heartbeat of the other finds them dead."""

    port: ClassVar[int]

    def __init__(self) -> None:
        super().__init__()
        self.client: Any = redis.Redis(port=self.port)
        self.client.flushall()
        self.living, self.dying = Broker(self.client), Broker(self.client, lease_s=-1)
        self.count = 0
        self.waiting: dict[str, list[str]] = {list_name(queue, step): [] for queue in QUEUES for step in STEPS}
        """Next to be taken first."""
        self.leased: dict[str, tuple[str, str, Broker]] = {}
        """Tag -> message, the list it came from, who took it."""
        self.delayed: set[str] = set()
        self.dead: set[str] = set()
        self.gone: set[str] = set()
        self.deaths: dict[str, int] = {}
        self.tags: set[str] = set()

    def teardown(self) -> None:
        self.client.close()

    @rule(queue=st.sampled_from(QUEUES), step=st.sampled_from(STEPS))
    def put(self, queue: str, step: int) -> None:
        self.count += 1
        job_id = f"{self.count}"
        self.living.put(message(job_id, priority=step, queue=queue), queue=queue, step=step)
        self.waiting[list_name(queue, step)].append(job_id)

    @rule(room=st.integers(0, 4), dies=st.booleans(), queues=st.sampled_from([("q",), ("r", "q"), ()]))
    def take(self, room: int, dies: bool, queues: tuple[str, ...]) -> None:
        broker = self.dying if dies else self.living
        expected: list[Any] = []
        for name in [list_name(queue, step) for step in STEPS for queue in queues]:
            while self.waiting[name] and len(expected) < room:
                expected.append((self.waiting[name].pop(0), name))
        taken = broker.exchange(*queues, room=room).taken
        assert [job_of(raw) for _, _, raw in taken] == [job_id for job_id, _ in expected]
        for (tag, _, _), (job_id, name) in zip(taken, expected, strict=True):
            assert tag not in self.tags, "a fence is given once"
            self.tags.add(tag)
            self.leased[tag] = job_id, name, broker

    @precondition(lambda self: self.leased)
    @rule(data=st.data(), how=st.sampled_from(["ack", "hand_back", "delay", "bury"]))
    def let_go(self, data: st.DataObject, how: str) -> None:
        tag = data.draw(st.sampled_from(sorted(self.leased)))
        job_id, name, broker = self.leased.pop(tag)
        match how:
            case "ack":
                broker.leases.ack(tag)
                broker.exchange()
                self.gone.add(job_id)
            case "hand_back":
                broker.leases.hand_back(tag)
                self.waiting[name].insert(0, job_id)
            case "delay":
                broker.leases.delay(tag, FAR_MS)
                self.delayed.add(job_id)
            case "bury":
                broker.leases.bury(tag)
                self.dead.add(job_id)
        broker.say_news()

    @precondition(lambda self: self.leased)
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        """The one that keeps its leases renews; what it does not name, of the dead, comes back."""
        kept = [tag for tag, (_, _, broker) in self.leased.items() if broker is self.living]
        lost = data.draw(st.sets(st.sampled_from(sorted(self.tags))))
        stale = sorted(lost - set(self.leased))
        _, told, given_back, *_ = self.living.heartbeat([*kept, *stale])
        assert sorted(tag.decode() for tag in told) == stale
        dead = [tag for tag, (_, _, broker) in self.leased.items() if broker is self.dying]
        assert given_back == len(dead)
        for tag in sorted(dead, key=lambda tag: int(tag[3:])):
            self._comes_back(*self.leased.pop(tag)[:2])
            self.dying.leases.held.pop(tag)

    def _comes_back(self, job_id: str, name: str) -> None:
        self.deaths[job_id] = self.deaths.get(job_id, 0) + 1
        if self.deaths[job_id] == 1:
            self.waiting[name].insert(0, job_id)
        else:
            self.delayed.add(job_id)

    @precondition(lambda self: self.delayed)
    @rule(data=st.data())
    def comes_due(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.delayed)))
        for queue in QUEUES:
            for raw in self.client.zrange(redis_keys.delayed(queue), 0, -1):
                if job_of(raw) == job_id:
                    self.client.zadd(redis_keys.delayed(queue), {raw: 1})
                    self.living.exchange(queue, room=0)
                    priority = json.loads(raw)["properties"]["priority"]
                    self.waiting[list_name(queue, priority)].insert(0, job_id)
        self.delayed.remove(job_id)

    @invariant()
    def each_message_is_in_one_place(self) -> None:
        for name, job_ids in self.waiting.items():
            assert [job_of(raw) for raw in self.client.lrange(name, 0, -1)[::-1]] == job_ids
        assert {tag.decode() for tag in self.client.hkeys("unacked")} == set(self.leased)
        for index in ("unacked_index", redis_keys.LEASES):
            assert {tag.decode() for tag in self.client.zrange(index, 0, -1)} == set(self.leased)
        delayed = [raw for queue in QUEUES for raw in self.client.zrange(redis_keys.delayed(queue), 0, -1)]
        assert sorted(map(job_of, delayed)) == sorted(self.delayed)
        dead = [json.loads(letter)["id"] for letter in self.client.lrange(redis_keys.DEAD, 0, -1)]
        assert sorted(dead) == sorted(self.dead)

    @invariant()
    def every_message_says_how_often_its_worker_died(self) -> None:
        texts = [raw for name in self.waiting for raw in self.client.lrange(name, 0, -1)]
        assert {job_of(raw): read(raw).deliveries for raw in texts} == {
            job_of(raw): self.deaths.get(job_of(raw), 0) for raw in texts
        }


def job_of(raw: bytes) -> str:
    return str(json.loads(raw)["headers"]["id"])


def test_whatever_workers_do_each_message_is_in_one_place(server: RedisServer) -> None:
    machine = type("Case", (Model,), {"port": server.port})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples(40), stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
