"""What a process holds, and what it says of it when a connection breaks."""

from __future__ import annotations

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from workers.broker.commands import Command, Commands
from workers.broker.leases import REJECTED, Lease, Leases
from workers.broker.link import Link

from .broker import SEPARATOR, STEPS


@pytest.fixture
def leases() -> Leases:
    leases = Leases()
    leases.held = {tag: Lease(tag, "q", b"{}") for tag in ("a", "b", "c", "d")}
    return leases


def commands_of(leases: Leases) -> Commands:
    return Commands(leases, prefix="", unacked="u", index="i", steps=STEPS, separator=SEPARATOR, lease_s=6)


def test_what_is_let_go_is_held_no_more_and_said_once(leases: Leases) -> None:
    leases.ack("a")
    leases.ack("a")
    leases.hand_back("b")
    leases.hand_back("b")
    leases.delay("c", 5)
    leases.bury("d")
    leases.bury("d")
    assert leases.held == {}
    assert [lease.tag for lease in leases.acks] == ["a"]
    assert [lease.tag for lease in leases.returns] == ["b"]
    assert [(lease.tag, due_ms) for lease, due_ms in leases.delays] == [("c", 5)]
    assert [(grave.lease.tag, grave.kind) for grave in leases.graves] == [("d", REJECTED)]


def test_the_condemned_is_buried_with_the_first_reason(leases: Leases) -> None:
    leases.condemn("a", "invalid", "first")
    leases.condemn("a", "invalid", "second")
    leases.condemn("unheld", "invalid", "nobody has it")
    leases.ack("a")
    assert leases.acks == []
    assert [(grave.kind, grave.reason) for grave in leases.graves] == [("invalid", "first")]
    assert leases.condemned == {}


def test_a_reason_that_comes_late_is_taken(leases: Leases) -> None:
    leases.bury("a")
    leases.condemn("a", "unknown_task", "why")
    assert [(grave.kind, grave.reason) for grave in leases.graves] == [("unknown_task", "why")]


def test_lost_leases_are_forgotten_whole(leases: Leases) -> None:
    leases.condemn("a", "invalid", "why")
    assert [lease.tag for lease in leases.lose(["a", "nobody's"])] == ["a"]
    leases.ack("a")
    assert not leases.has_news


def test_a_job_that_goes_back_is_not_said_to_be_running(leases: Leases) -> None:
    for tag in ("a", "b", "c"):
        leases.start(tag, f"job {tag}", has_record=True)
    leases.hand_back("a")
    leases.delay("b", 5)
    assert leases.started_jobs == {"c": ("job c", True)}
    assert leases.returns[0].started


def test_what_a_broken_connection_lost_is_said_again_in_order(leases: Leases) -> None:
    commands, link = commands_of(leases), Link(load_scripts=lambda: None)
    leases.start("d", "job d")
    leases.acks = [Lease(f"done-{n}", "q", b"") for n in range(1_500)]
    leases.hand_back("a")
    leases.delay("b", 5)
    leases.bury("c")
    batch = commands.news(now_ms=0)
    batch += [commands.exchange([], lambda queue: [], room=0, then=lambda _: None) for _ in range(2)]
    assert not leases.has_news
    link._expected.extend(batch)
    link.forsake()
    assert [lease.tag for lease in leases.acks] == [f"done-{n}" for n in range(1_500)]
    assert leases.started_jobs == {"d": ("job d", False)}
    assert [lease.tag for lease in leases.returns] == ["a"]
    assert [lease.tag for lease, _ in leases.delays] == ["b"]
    assert [grave.lease.tag for grave in leases.graves] == ["c"]
    assert not link.is_waiting


def test_a_command_without_a_reply_is_told_why() -> None:
    told: list[object] = []
    link = Link(load_scripts=lambda: None)
    link._expected.append(Command(("PING",), told.append))
    link.forsake()
    assert isinstance(told[0], RedisConnectionError)


def test_a_grave_whose_end_can_not_be_told_is_left_to_others(leases: Leases) -> None:
    leases.tell_end = lambda grave: False
    leases.bury("a")
    assert commands_of(leases).news(now_ms=0) == []
    assert "a" not in leases.held, "not renewed: when its lease has ended, another worker finds the same"
